// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "base/jit/executable.h"

#include <cstring>

#include "base/jit/assembler.h"

// ForwardKernels follow the calling convention of 64-bit Unix.
#if defined(__x86_64__) && defined(__LP64__) && !defined(__CYGWIN__) && (defined(__unix__) || defined(__APPLE__))
#define SPARSEKERNELS_EXECUTABLE 1
#else
#define SPARSEKERNELS_EXECUTABLE 0
#endif

#if SPARSEKERNELS_EXECUTABLE
#include <sys/mman.h>
#endif

namespace sparsekernels {

#if SPARSEKERNELS_EXECUTABLE

std::unique_ptr<Executable> Executable::make(const std::vector<Assembler>& sections) {
  std::unique_ptr<Executable> result(new Executable);
  size_t size = 0;
  for (const Assembler& section : sections) {
    result->starts_.push_back(size);
    size += (section.size() + 63) / 64 * 64;
  }
  constexpr size_t kPage = 4096;
  size = (size + kPage) / kPage * kPage;
  void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  result->memory_ = static_cast<uint8_t*>(memory);
  result->size_ = size;
  for (size_t i = 0; i < sections.size(); ++i)
    if (sections[i].size() > 0)
      std::memcpy(result->memory_ + result->starts_[i], sections[i].code(), sections[i].size());
  if (mprotect(memory, size, PROT_READ | PROT_EXEC) != 0) return nullptr;
  return result;
}

Executable::~Executable() {
  if (memory_ != nullptr) munmap(memory_, size_);
}

#else

std::unique_ptr<Executable> Executable::make(const std::vector<Assembler>&) {
  return nullptr;
}
Executable::~Executable() = default;

#endif

}  // namespace sparsekernels
