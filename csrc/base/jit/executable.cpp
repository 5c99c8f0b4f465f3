// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "base/jit/executable.h"

#include <algorithm>
#include <bitset>
#include <cstring>
#include <list>
#include <mutex>
#include <tuple>
#include <utility>

#include "base/fork_safe_mutex.h"
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
namespace {

constexpr size_t kPage = 4096;

// Null where the system refuses.
uint8_t* map(size_t bytes, int protection) {
  void* const memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<uint8_t*>(memory);
}

// Without its addresses where they cannot be given back: to unmap a part of a mapping makes another one of the rest.
void unmap(uint8_t* memory, size_t bytes) {
  if (munmap(memory, bytes) != 0) madvise(memory, bytes, MADV_DONTNEED);
}

}  // namespace

// Pages that pieces of code take and give back.
class Arena {
 public:
  static constexpr size_t kPages = 512, kMostPagesOfOne = kPages / 4;

  Arena() : memory_(map(kPages * kPage, PROT_NONE)) {}
  ~Arena() {
    if (memory_ != nullptr) unmap(memory_, kPages * kPage);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  bool is_mapped() const { return memory_ != nullptr; }
  bool is_empty() const { return taken_.none(); }
  bool is_full() const { return taken_.all(); }

  // The first that are free and follow each other, or null.
  uint8_t* take(size_t pages) {
    if (pages > most_) return nullptr;
    size_t most = 0;
    for (size_t at = 0, free = 0; at < kPages; ++at) {
      free = taken_[at] ? 0 : free + 1;
      most = std::max(most, free);
      if (free < pages) continue;
      mark(at + 1 - pages, pages, true);
      return memory_ + (at + 1 - pages) * kPage;
    }
    most_ = most;
    return nullptr;
  }

  void give_back(const uint8_t* memory, size_t pages) {
    mark(static_cast<size_t>(memory - memory_) / kPage, pages, false);
    most_ = std::min(kPages, 2 * most_ + pages);
  }

  std::list<Arena>::iterator place;  // its own, in the list that has it

 private:
  void mark(size_t first, size_t pages, bool is_taken) {
    for (size_t at = first; at < first + pages; ++at) taken_[at] = is_taken;
  }

  uint8_t* const memory_;
  std::bitset<kPages> taken_;
  size_t most_ = kPages;  // no more follow each other
};

namespace {

// Those with code in them. Under the lock nothing is mapped and nothing is freed.
class Arenas {
 public:
  // Null where the system gives no more memory.
  std::pair<Arena*, uint8_t*> take(size_t pages) {
    {
      const std::lock_guard<ForkSafeMutex> lock(mutex_);
      for (Arena& arena : arenas_) {
        if (arena.is_full()) break;
        if (uint8_t* const memory = arena.take(pages)) {
          if (arena.is_full()) arenas_.splice(arenas_.end(), arenas_, arena.place);
          return {&arena, memory};
        }
      }
    }
    std::list<Arena> added(1);
    Arena& arena = added.front();
    if (!arena.is_mapped()) return {nullptr, nullptr};
    arena.place = added.begin();
    uint8_t* const memory = arena.take(pages);
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    arenas_.splice(arenas_.begin(), added);
    return {&arena, memory};
  }

  void give_back(Arena* arena, uint8_t* memory, size_t pages) {
    madvise(memory, pages * kPage, MADV_DONTNEED);  // a fourth of the time of munmap, and the mapping stays one
    std::list<Arena> empty;                         // unmapped after the lock is released
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    const bool was_full = arena->is_full();
    arena->give_back(memory, pages);
    if (arena->is_empty()) {
      empty.splice(empty.begin(), arenas_, arena->place);
    } else if (was_full) {
      arenas_.splice(arenas_.begin(), arenas_, arena->place);
    }
  }

 private:
  ForkSafeMutex mutex_;
  std::list<Arena> arenas_;  // the full ones come last
};

Arenas& arenas() {
  static MadeOnce<std::unique_ptr<Arenas>> one;
  return *one.get([] { return std::make_unique<Arenas>(); });
}

}  // namespace

std::unique_ptr<Executable> Executable::make(const std::vector<Assembler>& sections) {
  std::unique_ptr<Executable> result(new Executable);
  size_t size = 0;
  for (const Assembler& section : sections) {
    result->starts_.push_back(size);
    size += (section.size() + 63) / 64 * 64;
  }
  size = (size + kPage) / kPage * kPage;
  if (size <= Arena::kMostPagesOfOne * kPage) {
    std::tie(result->arena_, result->memory_) = arenas().take(size / kPage);
  } else {
    result->memory_ = map(size, PROT_NONE);
  }
  uint8_t* const memory = result->memory_;
  if (memory == nullptr) return nullptr;
  result->size_ = size;
  if (mprotect(memory, size, PROT_READ | PROT_WRITE) != 0) return nullptr;
  for (size_t i = 0; i < sections.size(); ++i)
    if (sections[i].size() > 0) std::memcpy(memory + result->starts_[i], sections[i].code(), sections[i].size());
  if (mprotect(memory, size, PROT_READ | PROT_EXEC) != 0) return nullptr;
  return result;
}

Executable::~Executable() {
  if (arena_ != nullptr) {
    arenas().give_back(arena_, memory_, size_ / kPage);
  } else if (memory_ != nullptr) {
    unmap(memory_, size_);
  }
}

#else

std::unique_ptr<Executable> Executable::make(const std::vector<Assembler>&) {
  return nullptr;
}
Executable::~Executable() = default;

#endif

}  // namespace sparsekernels
