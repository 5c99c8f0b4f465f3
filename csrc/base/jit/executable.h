// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Memory that holds machine code: written first, then readable and executable, never both writable and executable.
// Small code shares arenas, so that tens of thousands of them are few mappings, of which a process has only so many;
// the memory of what is destroyed goes back at once, its addresses with the arena or to the next code. Larger code is
// a mapping of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace sparsekernels {

class Arena;
class Assembler;

class Executable {
 public:
  // The sections, each at a multiple of 64 bytes; null where the system gives no such memory.
  static std::unique_ptr<Executable> make(const std::vector<Assembler>& sections);
  ~Executable();
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  const uint8_t* section(size_t i) const { return memory_ + starts_[i]; }
  size_t size() const { return size_; }

 private:
  Executable() = default;

  Arena* arena_ = nullptr;  // or null: a mapping of its own
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
  std::vector<size_t> starts_;
};

}  // namespace sparsekernels
