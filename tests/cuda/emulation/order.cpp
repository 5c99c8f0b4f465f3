// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What happened before what, and copies that have not arrived. A thread's accesses fall into segments; barriers order
// them within a block and a warp, and between blocks what atomics pass on: all that their thread knew at its last
// fence, to those who change the same word later, once they fence.
#include <algorithm>

#include "state.h"

namespace emulated {

Known join(const Known& a, const Known& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  auto all = std::make_shared<Knowledge>(*a);
  for (const auto& [block, theirs] : *b) {
    KnownBlock& ours = (*all)[block];
    if (theirs.epoch > ours.epoch) {
      ours = theirs;
    } else if (theirs.epoch == ours.epoch) {
      for (const auto& [thread, tick] : theirs.ticks) ours.ticks[thread] = std::max(ours.ticks[thread], tick);
    }
  }
  return all;
}

void fence() {
  current->knows = join(current->knows, current->pending);
  current->pending = nullptr;
  auto own = std::make_shared<Knowledge>();
  KnownBlock& entry = (*own)[current->block->index];
  entry.epoch = current->block->epoch;
  for (int lane = 0; lane < lanes_of(*current); ++lane) {
    const uint32_t seen = current->seen[static_cast<size_t>(lane)];
    if (seen > 0) entry.ticks[lane_of(*current, lane).index] = seen;
  }
  entry.ticks[current->index] = current->tick;
  current->fenced = join(current->knows, own);
  new_segment(*current);
}

void before_atomic(const void* address, size_t bytes) {
  if (current == nullptr) return;
  if (random_below(2) == 0) yield();
  require_aligned(address, bytes);
  check(reinterpret_cast<uintptr_t>(address), bytes, Access::kAtomic, __builtin_return_address(0));
  Known& message = launch.messages[reinterpret_cast<uintptr_t>(address)];
  current->pending = join(current->pending, message);
  message = join(message, current->fenced);
}

uint32_t segment_of_current() {
  if (current->segment == 0) {
    current->segment = launch.first_segment + static_cast<uint32_t>(launch.segments.size());
    launch.segments.push_back({current->block->index, current->index, current->block->epoch, current->tick});
  }
  return current->segment;
}

bool happened_before(uint32_t id) {
  if (id < launch.first_segment) return true;
  const Segment& segment = launch.segments[id - launch.first_segment];
  if (segment.block == current->block->index) {
    if (segment.thread == current->index || segment.epoch < current->block->epoch) return true;
    const auto lane = static_cast<size_t>(segment.thread % 32);
    if (segment.thread / 32 == current->index / 32 && current->seen[lane] >= segment.tick) return true;
  }
  if (current->knows == nullptr) return false;
  const auto known = current->knows->find(segment.block);
  if (known == current->knows->end()) return false;
  if (segment.epoch < known->second.epoch) return true;
  const auto tick = known->second.ticks.find(segment.thread);
  return segment.epoch == known->second.epoch && tick != known->second.ticks.end() && segment.tick <= tick->second;
}

std::string name_of(uint32_t id) {
  if (id < launch.first_segment) return "the host";
  const Segment& segment = launch.segments[id - launch.first_segment];
  return "block " + std::to_string(segment.block) + " thread " + std::to_string(segment.thread);
}

void copy_async(void* to, const void* from, size_t bytes, size_t zeros) {
  const void* place = __builtin_return_address(0);
  if (bytes != 4 && bytes != 8 && bytes != 16) fault("copy", place, "a copy of %zu bytes", bytes);
  require_aligned(to, bytes);
  require_aligned(from, bytes);
  check(reinterpret_cast<uintptr_t>(from), bytes - zeros, Access::kRead, place);
  check(reinterpret_cast<uintptr_t>(to), bytes, Access::kWrite, place);
  current->uncommitted.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, zeros});
  mark_in_flight(current->uncommitted.back());
}

void commit_copies() {
  current->in_flight.push_back(std::move(current->uncommitted));
  current->uncommitted.clear();
}

void wait_for_copies(unsigned but_last) {
  new_segment(*current);
  while (current->in_flight.size() > but_last) {
    for (const Copy& copy : current->in_flight.front()) arrive(copy);
    current->in_flight.pop_front();
  }
}

}  // namespace emulated
