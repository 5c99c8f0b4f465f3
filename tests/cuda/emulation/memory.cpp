// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Every byte of global and shared memory has a cell: which segments of which threads touched it last. An access is a
// fault where the bytes are nobody's, were never written, or were touched by another thread and nothing orders the two.
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "state.h"

namespace emulated {
namespace {

constexpr uint32_t kByHost = 1, kAtomicFlag = 0x80000000u, kFlightFlag = 0x40000000u, kIdMask = 0x3fffffffu;

// The last write, or 0; and readers since then. Of many, two that nothing orders are kept, of different blocks or warps
// where there are such: no single thread is both.
struct Cell {
  uint32_t write, read[2];
};

struct Memory {
  uintptr_t begin, end;
  std::string name;
  std::vector<Cell> cells;
};

std::map<uintptr_t, Memory> memories;  // by where they end
Memory* recent = nullptr;

uintptr_t shared_begin = 0;
std::vector<Cell> shared_cells;
std::vector<std::string> faults;
std::set<std::string> seen_faults;
uintptr_t program_begin = 0, program_end = 0;

Memory* memory_at(uintptr_t address) {
  if (recent != nullptr && address >= recent->begin && address < recent->end) return recent;
  const auto found = memories.upper_bound(address);
  if (found == memories.end() || address < found->second.begin) return nullptr;
  return recent = &found->second;
}

// Constants of the program itself may be read.
bool is_constant(uintptr_t address) {
  if (program_begin == 0) {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
          uintptr_t begin = UINTPTR_MAX, end = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
            begin = std::min(begin, info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
            end = std::max(end, info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
          }
          const auto here = reinterpret_cast<uintptr_t>(&program_begin);
          if (here < begin || here >= end) return 0;
          program_begin = begin;
          program_end = end;
          return 1;
        },
        nullptr);
  }
  return address >= program_begin && address < program_end;
}

const SharedObject* shared_object_at(const Block& block, uintptr_t address, size_t bytes) {
  for (const SharedObject& object : block.shared) {
    if (address >= object.address && address + bytes <= object.address + object.bytes) return &object;
  }
  return nullptr;
}

const char* verb(Access what) {
  return what == Access::kRead ? "reads" : what == Access::kWrite ? "writes" : "changes atomically";
}

void report_race(
    Access what, const std::string& memory, size_t offset, uint32_t other, const char* did, const void* place) {
  const uint32_t id = other & kIdMask;
  const char* kind = "race";
  if (id >= launch.first_segment && launch.segments[id - launch.first_segment].block != current->block->index) {
    kind = "race between blocks";
  }
  fault(
      kind, place, "block %d thread %d %s %s + %zu, which %s %s, and nothing orders the two", current->block->index,
      current->index, verb(what), memory.c_str(), offset, name_of(id).c_str(), did);
}

int distance(uint32_t a, uint32_t b) {
  if (a < launch.first_segment || b < launch.first_segment) return 0;
  const Segment& one = launch.segments[a - launch.first_segment];
  const Segment& other = launch.segments[b - launch.first_segment];
  return one.block != other.block ? 2 : one.thread / 32 != other.thread / 32 ? 1 : 0;
}

struct Ordered {
  uint32_t id = 0;
  bool before = true;
  bool operator()(uint32_t asked) {
    if (asked != id) {
      id = asked;
      before = happened_before(asked);
    }
    return before;
  }
};

void add_reader(Cell& cell, uint32_t segment, Ordered& first, Ordered& second) {
  if (cell.read[0] == segment || cell.read[1] == segment) return;
  if (cell.read[0] == 0 || first(cell.read[0])) {
    cell.read[0] = segment;
  } else if (
      cell.read[1] == 0 || second(cell.read[1]) ||
      distance(cell.read[0], segment) > distance(cell.read[0], cell.read[1])) {
    cell.read[1] = segment;
  }
}

// Returns whether nothing was wrong.
void visit(
    Cell* cells, size_t bytes, Access what, bool written_before, const std::string& name, size_t offset,
    const void* place) {
  const uint32_t segment = segment_of_current();
  const uint32_t mark = segment | (what == Access::kAtomic ? kAtomicFlag : 0);
  Ordered write_ordered, first, second;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = cells[i];
    if (cell.write == 0) {
      if (!written_before && what != Access::kWrite) {
        fault(
            "unwritten", place, "block %d thread %d %s %s + %zu, which nothing wrote", current->block->index,
            current->index, verb(what), name.c_str(), offset + i);
        return;
      }
    } else if ((cell.write & kFlightFlag) != 0) {
      fault(
          "copy", place, "block %d thread %d %s %s + %zu, where a copy of %s is on its way", current->block->index,
          current->index, verb(what), name.c_str(), offset + i, name_of(cell.write & kIdMask).c_str());
      return;
    } else if (what == Access::kAtomic && (cell.write & kAtomicFlag) != 0) {
      // atomics do not race with atomics
    } else if (!write_ordered(cell.write & kIdMask)) {
      report_race(what, name, offset + i, cell.write, "wrote", place);
      if (what != Access::kRead) cell.write = mark;
      return;
    }
    if (what == Access::kRead) {
      add_reader(cell, segment, first, second);
      continue;
    }
    if (cell.read[0] != 0) {
      const uint32_t reader = !first(cell.read[0])                         ? cell.read[0]
                              : cell.read[1] != 0 && !second(cell.read[1]) ? cell.read[1]
                                                                           : 0;
      if (reader != 0) {
        report_race(what, name, offset + i, reader, "read", place);
        cell = {mark, {0, 0}};
        return;
      }
    }
    cell = {mark, {0, 0}};
  }
}

uintptr_t end_of_shared() {
  return shared_begin + kSlots * kSlotBytes;
}

}  // namespace

bool on_a_stack(uintptr_t address) {
  return address >= stacks_begin && address < stacks_end;
}

void check(uintptr_t address, size_t bytes, Access what, const void* place) {
  if (on_a_stack(address) || bytes == 0) return;
  const Block& block = *current->block;
  if (address >= shared_begin && address < end_of_shared()) {
    const SharedObject* object = shared_object_at(block, address, bytes);
    if (object == nullptr) {
      fault(
          "bounds", place, "block %d thread %d %s %zu bytes of shared memory that are no object's", block.index,
          current->index, verb(what), bytes);
      return;
    }
    if (what == Access::kPrefetch) return;
    const std::string name = "shared memory of " + std::to_string(object->bytes) + " bytes";
    visit(&shared_cells[address - shared_begin], bytes, what, false, name, address - object->address, place);
    return;
  }
  Memory* memory = memory_at(address);
  if (memory == nullptr && what == Access::kRead && is_constant(address)) return;
  if (memory == nullptr || address + bytes > memory->end) {
    std::string near;
    for (const auto& [end, one] : memories) {
      if (address + bytes > one.begin - 4096 && address < end + 4096) {
        near = ", " + std::to_string(static_cast<long long>(address) - static_cast<long long>(one.begin)) + " from " +
               one.name + " of " + std::to_string(end - one.begin);
      }
    }
    fault(
        "bounds", place, "block %d thread %d %s %zu bytes that are in no tensor%s", block.index, current->index,
        verb(what), bytes, near.c_str());
    return;
  }
  if (what == Access::kPrefetch) return;
  visit(&memory->cells[address - memory->begin], bytes, what, false, memory->name, address - memory->begin, place);
}

void access(const void* address, size_t bytes, Access what) {
  if (current != nullptr) check(reinterpret_cast<uintptr_t>(address), bytes, what, __builtin_return_address(0));
}

void require_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  fault("alignment", __builtin_return_address(0), "an access of %zu bytes that is not aligned", bytes);
}

// Shared memory. Each object lies no better than its type asks for, between bytes that are nobody's.

namespace {

constexpr size_t kMostStatic = 48 * 1024;

uintptr_t add_shared(Block& block, size_t offset, size_t bytes, size_t alignment, bool is_static) {
  constexpr size_t kGap = 64;
  size_t at = (block.shared_end + kGap + 2 * alignment - 1) / (2 * alignment) * (2 * alignment) + alignment;
  if (at + bytes + kGap > kSlotBytes) {
    std::fprintf(stderr, "the emulation has no room for %zu bytes of shared memory\n", bytes);
    std::abort();
  }
  block.shared_end = at + bytes;
  if (is_static) block.shared_total += (bytes + 15) / 16 * 16;
  const uintptr_t address = shared_begin + static_cast<size_t>(block.slot) * kSlotBytes + at;
  std::memset(reinterpret_cast<void*>(address), 0xff, bytes);  // NaN
  block.shared.push_back({offset, address, bytes});
  if (block.shared_total + launch.shared_bytes > static_cast<size_t>(device.shared_bytes)) {
    fault("shared memory", nullptr, "more than %d bytes in a block", device.shared_bytes);
  }
  return address;
}

// The __shared__ objects of the program: where they would lie among thread_local variables, by which the compiler asks.
struct Object {
  size_t bytes, alignment;
};
std::map<size_t, Object> objects;

// What __tls_get_addr is given.
struct Asked {
  size_t module, offset;
};

}  // namespace

void begin_shared(Block& block) {
  if (shared_begin != 0) return;
  void* all = mmap(nullptr, kSlots * kSlotBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) std::abort();
  shared_begin = reinterpret_cast<uintptr_t>(all);
  shared_cells.resize(kSlots * kSlotBytes);
  (void)block;
}

void end_shared(Block& block) {
  const auto first = shared_cells.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(block.slot) * kSlotBytes);
  std::fill(first, first + static_cast<std::ptrdiff_t>(block.shared_end), Cell{});
}

extern "C" void* __wrap___tls_get_addr(const Asked* asked) {
  if (current == nullptr) std::abort();
  Block& block = *current->block;
  for (const SharedObject& object : block.shared) {
    if (object.offset == asked->offset) return reinterpret_cast<void*>(object.address);
  }
  const auto object = objects.find(asked->offset);
  if (object == objects.end()) {
    std::fprintf(stderr, "the emulation knows of no __shared__ object at %zu\n", asked->offset);
    std::abort();
  }
  if (object->second.bytes <= kMostStatic) {
    return reinterpret_cast<void*>(
        add_shared(block, asked->offset, object->second.bytes, object->second.alignment, true));
  }
  return reinterpret_cast<void*>(add_shared(block, asked->offset, launch.shared_bytes, 16, false));
}

void mark_in_flight(const Copy& copy) {
  const auto to = reinterpret_cast<uintptr_t>(copy.to);
  if (to < shared_begin || to >= end_of_shared()) {
    fault("copy", nullptr, "a copy to what is not shared memory");
    return;
  }
  for (size_t i = 0; i < copy.bytes; ++i) shared_cells[to - shared_begin + i].write |= kFlightFlag;
}

void arrive(const Copy& copy) {
  const auto to = reinterpret_cast<uintptr_t>(copy.to);
  if (to < shared_begin || to >= end_of_shared()) return;
  for (size_t i = 0; i < copy.bytes; ++i) shared_cells[to - shared_begin + i] = {segment_of_current(), {0, 0}};
  if (memory_at(reinterpret_cast<uintptr_t>(copy.from)) != nullptr) {
    std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
  }
  std::memset(copy.to + copy.bytes - copy.zeros, 0, copy.zeros);
}

// Global memory

void add_memory(const void* address, size_t bytes, const char* name, bool initialized) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (bytes == 0) return;
  Memory& memory = memories[begin + bytes];
  memory = {begin, begin + bytes, name, {}};
  memory.cells.assign(bytes, Cell{initialized ? kByHost : 0, {0, 0}});
  recent = nullptr;
}

bool has_memory(const void* address) {
  return memory_at(reinterpret_cast<uintptr_t>(address)) != nullptr;
}

void remove_memory(const void* address) {
  const Memory* memory = memory_at(reinterpret_cast<uintptr_t>(address));
  if (memory != nullptr) memories.erase(memory->end);
  recent = nullptr;
}

void fill(void* address, int value, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  Memory* memory = memory_at(begin);
  if (bytes == 0) return;
  if (memory == nullptr || begin + bytes > memory->end) {
    fault("bounds", nullptr, "a memset of %zu bytes that are in no tensor", bytes);
    return;
  }
  std::memset(address, value, bytes);
  std::fill_n(memory->cells.begin() + static_cast<std::ptrdiff_t>(begin - memory->begin), bytes, Cell{kByHost, {0, 0}});
}

// Faults

void fault(const char* kind, const void* place, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  constexpr size_t kMost = 20;
  char key[96];
  const uintptr_t at =
      is_constant(reinterpret_cast<uintptr_t>(place)) ? reinterpret_cast<uintptr_t>(place) - program_begin : 0;
  std::snprintf(key, sizeof key, "%s at %#zx", kind, static_cast<size_t>(at));
  if (faults.size() < kMost && seen_faults.insert(key).second) faults.push_back(std::string(key) + ": " + text);
}

}  // namespace emulated

// For Python

extern "C" {
#define EMULATED_EXPORT __attribute__((visibility("default")))
EMULATED_EXPORT void emulated_add(const void* address, size_t bytes, const char* name, int initialized) {
  emulated::add_memory(address, bytes, name, initialized != 0);
}
EMULATED_EXPORT void emulated_object(size_t offset, size_t bytes, size_t alignment) {
  emulated::objects[offset] = {bytes, alignment};
}
EMULATED_EXPORT void emulated_remove(const void* address) {
  emulated::remove_memory(address);
}
EMULATED_EXPORT void emulated_device(int multiprocessors, int shared_bytes, uint64_t seed) {
  emulated::device = {multiprocessors, shared_bytes, seed};
}
// The faults since the last call, a line each.
EMULATED_EXPORT const char* emulated_faults() {
  static std::string text;
  text.clear();
  for (const std::string& one : emulated::faults) text += one + "\n";
  emulated::faults.clear();
  emulated::seen_faults.clear();
  return text.c_str();
}
}
