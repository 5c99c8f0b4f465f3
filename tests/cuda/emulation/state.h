// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the emulation knows of a launch: its blocks, their threads, and what happened before what.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device.h"

namespace emulated {

// Where a thread stands: what it did in one segment, no other thread can tell apart. A new one begins where a thread
// synchronizes.
struct Segment {
  int block;
  int thread;
  uint32_t epoch;  // barriers of the block before it
  uint32_t tick;   // of the thread: barriers of its warp, and fences
};

// What a thread knows of another block: all before barrier `epoch`, and of some threads all up to a tick.
struct KnownBlock {
  uint32_t epoch = 0;
  std::map<int, uint32_t> ticks;
};
using Knowledge = std::map<int, KnownBlock>;
using Known = std::shared_ptr<const Knowledge>;
Known join(const Known& a, const Known& b);

struct Copy {
  char* to;
  const char* from;
  size_t bytes, zeros;
};

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kAtWarpStep, kDone };

struct Block;

struct Thread {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  int index = 0;
  State state = State::kReady;
  uint3 place = {};

  // At a barrier or a step of a warp.
  unsigned mask = 0;
  Warp what = Warp::kShuffle;
  uint64_t given = 0, got = 0;
  int source_lane = 0;
  const void* waits_at = nullptr;

  uint32_t tick = 1;
  std::array<uint32_t, 32> seen = {};  // of the lanes of its warp, up to which tick
  uint32_t segment = 0;                // 0: the next access begins one
  Known knows, pending, fenced;  // what it has; what atomics told it, and a fence would give; what it would pass on

  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> in_flight;
};

struct SharedObject {
  size_t offset;  // by which the compiler asks for it
  uintptr_t address;
  size_t bytes;
};

struct Block {
  int index = 0;
  int slot = 0;  // of shared memory
  uint3 place = {};
  uint32_t epoch = 1;
  int running = 0, waiting = 0, counted = 0;
  std::vector<Thread> threads;
  std::vector<SharedObject> shared;
  size_t shared_end = 0, shared_total = 0;
};

struct Launch {
  const void* kernel = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
  std::vector<Segment> segments;
  uint32_t first_segment = 2;
  std::map<uintptr_t, Known> messages;  // of atomics, by address
  bool abandoned = false;
};

extern Launch launch;
extern Thread* current;  // null outside of kernels

uint32_t segment_of_current();
// Whether all of a segment happened before what the current thread does now.
bool happened_before(uint32_t segment);
std::string name_of(uint32_t segment);

// memory.cpp
constexpr int kSlots = 8;
constexpr size_t kSlotBytes = size_t{1} << 18;
bool on_a_stack(uintptr_t address);
void check(uintptr_t address, size_t bytes, Access what, const void* place);
void begin_shared(Block& block);
void end_shared(Block& block);
void mark_in_flight(const Copy& copy);
void arrive(const Copy& copy);

// fibers.cpp
constexpr size_t kMaxThreads = 4096;
extern uintptr_t stacks_begin, stacks_end;
void prepare(Thread& thread, size_t stack);  // to run `thread_body` when it is resumed
void resume(Thread& thread);                 // from the scheduler
void suspend();                              // back to it

// threads.cpp
void thread_body();
void make_ready(Thread& thread);
size_t random_below(size_t bound);

inline void new_segment(Thread& thread) {
  ++thread.tick;
  thread.segment = 0;
}
inline Thread& lane_of(Thread& thread, int lane) {
  return thread.block->threads[static_cast<size_t>(thread.index / 32 * 32 + lane)];
}
inline int lanes_of(const Thread& thread) {
  const int lanes = static_cast<int>(thread.block->threads.size()) - thread.index / 32 * 32;
  return lanes < 32 ? lanes : 32;
}

}  // namespace emulated
