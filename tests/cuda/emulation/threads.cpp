// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The threads of a grid as fibers of one thread of the CPU. Which one runs next is random, by the seed, wherever one
// waits; so is the order of the blocks, and how many of them are there at once.
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace emulated {

Device device;
Launch launch;
Thread* current = nullptr;

namespace {

constexpr int kMaxBlockThreads = 1024;

std::mt19937_64 random_numbers;
std::vector<Thread*> ready;
void (*body_of_threads)(const void*) = nullptr;
const void* context_of_threads = nullptr;
std::map<const void*, int> dynamic_limits, static_sizes;

uint3 place_in(int index, dim3 size) {
  const auto i = static_cast<unsigned>(index);
  return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

const char* text_of(State state) {
  switch (state) {
    case State::kAtBlockBarrier:
      return "__syncthreads";
    case State::kAtWarpBarrier:
      return "__syncwarp";
    case State::kAtWarpStep:
      return "a step of its warp";
    case State::kReady:
      return "nothing";
    case State::kDone:
      return "nothing: it has ended";
  }
  return "";
}

// An access that the CPU refuses ends the launch.
sigjmp_buf before_crash;

void crash(int, siginfo_t* info, void*) {
  if (current == nullptr) std::abort();
  fault("crash", nullptr, "block %d thread %d touches %p", current->block->index, current->index, info->si_addr);
  siglongjmp(before_crash, 1);
}

class CrashHandler {
 public:
  CrashHandler() {
    struct sigaction action = {};
    action.sa_sigaction = crash;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &before_[0]);
    sigaction(SIGBUS, &action, &before_[1]);
  }
  CrashHandler(const CrashHandler&) = delete;
  ~CrashHandler() {
    sigaction(SIGSEGV, &before_[0], nullptr);
    sigaction(SIGBUS, &before_[1], nullptr);
  }

 private:
  struct sigaction before_[2];
};

// Nothing can go on, and not all have ended.
void report_deadlock(const std::vector<std::unique_ptr<Block>>& blocks) {
  for (const auto& block : blocks) {
    if (block->running == 0) continue;
    const Thread *waits = nullptr, *elsewhere = nullptr;
    for (const Thread& thread : block->threads) {
      if (thread.state != State::kDone && waits == nullptr) waits = &thread;
    }
    for (const Thread& thread : block->threads) {
      if (thread.state != waits->state || thread.waits_at != waits->waits_at) elsewhere = &thread;
    }
    fault(
        "barrier", waits->waits_at,
        "block %d: thread %d waits at %s for threads that never come; thread %d waits at %s", block->index,
        waits->index, text_of(waits->state), elsewhere == nullptr ? -1 : elsewhere->index,
        elsewhere == nullptr ? "the same" : text_of(elsewhere->state));
  }
}

}  // namespace

size_t random_below(size_t bound) {
  return static_cast<size_t>(random_numbers() % bound);
}

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  ready.push_back(&thread);
}

void thread_body() {
  body_of_threads(context_of_threads);
  if (!current->in_flight.empty() || !current->uncommitted.empty()) {
    fault("copy", nullptr, "block %d thread %d ends before its copies arrive", current->block->index, current->index);
  }
  current->state = State::kDone;
  Block& block = *current->block;
  --block.running;
  suspend();
}

void yield() {
  make_ready(*current);
  suspend();
}

uint3 thread_index() {
  return current->place;
}
uint3 block_index() {
  return current->block->place;
}
dim3 block_size() {
  return launch.block;
}
dim3 grid_size() {
  return launch.grid;
}
unsigned lane_index() {
  return static_cast<unsigned>(current->index) % 32;
}

void set_dynamic_limit(const void* kernel, int bytes) {
  dynamic_limits[kernel] = bytes;
}

int static_shared_bytes(const void* kernel) {
  return static_sizes[kernel];
}

int run(
    const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* context) {
  const size_t blocks = size_t{grid.x} * grid.y * grid.z, threads = size_t{block.x} * block.y * block.z;
  if (blocks == 0 || threads == 0 || threads > kMaxBlockThreads) return 9;
  const auto limit = dynamic_limits.find(kernel);
  if (shared_bytes > static_cast<size_t>(limit == dynamic_limits.end() ? 48 * 1024 : limit->second)) return 1;
  const uint32_t next = launch.first_segment + static_cast<uint32_t>(launch.segments.size());
  launch = {};
  launch.kernel = kernel;
  launch.grid = grid;
  launch.block = block;
  launch.shared_bytes = shared_bytes;
  launch.first_segment = next;
  body_of_threads = body;
  context_of_threads = context;
  random_numbers.seed(device.seed);

  std::vector<int> order(blocks);
  for (size_t i = 0; i < blocks; ++i) order[i] = static_cast<int>(i);
  std::shuffle(order.begin(), order.end(), random_numbers);
  const size_t most = std::min<size_t>({kSlots, kMaxThreads / threads, blocks});
  const size_t resident = 1 + random_below(most);
  std::vector<std::unique_ptr<Block>> slots(resident);
  size_t started = 0, ended = 0;
  ready.clear();

  const auto start = [&](size_t slot) {
    if (started == blocks) {
      slots[slot].reset();
      return;
    }
    slots[slot] = std::make_unique<Block>();
    Block& one = *slots[slot];
    one.slot = static_cast<int>(slot);
    one.index = order[started++];
    one.place = place_in(one.index, grid);
    one.running = static_cast<int>(threads);
    one.threads.resize(threads);
    begin_shared(one);
    for (size_t i = 0; i < threads; ++i) {
      Thread& thread = one.threads[i];
      thread.block = &one;
      thread.index = static_cast<int>(i);
      thread.place = place_in(thread.index, block);
      prepare(thread, slot * threads + i);
      make_ready(thread);
    }
  };
  for (size_t slot = 0; slot < resident; ++slot) start(slot);
  const CrashHandler handler;
  const bool crashed = sigsetjmp(before_crash, 1) != 0;
  current = nullptr;
  while (ended < blocks && !crashed) {
    if (ready.empty()) {
      std::vector<std::unique_ptr<Block>> left;
      for (auto& one : slots) {
        if (one != nullptr) left.push_back(std::move(one));
      }
      report_deadlock(left);
      for (auto& one : left) end_shared(*one);
      return 0;
    }
    const size_t at = random_below(ready.size());
    Thread* thread = ready[at];
    ready[at] = ready.back();
    ready.pop_back();
    Block& of = *thread->block;
    resume(*thread);
    if (of.running == 0) {
      static_sizes[kernel] = std::max(static_sizes[kernel], static_cast<int>(of.shared_total));
      end_shared(of);
      ++ended;
      start(static_cast<size_t>(of.slot));
    }
  }
  for (auto& one : slots) {
    if (one != nullptr) end_shared(*one);
  }
  body_of_threads = nullptr;
  return 0;
}

}  // namespace emulated
