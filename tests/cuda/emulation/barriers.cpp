// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Where threads wait for each other: barriers of a block and of a warp, and steps of a warp.
#include <algorithm>

#include "state.h"

namespace emulated {

namespace {

void wait_as(State state) {
  current->state = state;
  suspend();
}

// The threads of a block that are at its barrier go on once none is elsewhere.
void pass_block_barrier(Block& block) {
  Known all;
  for (Thread& thread : block.threads) {
    if (thread.knows != nullptr) all = join(all, thread.knows);
  }
  ++block.epoch;
  for (Thread& thread : block.threads) {
    if (thread.state == State::kDone) continue;
    thread.knows = all;
    thread.got = static_cast<uint64_t>(block.counted);
    thread.segment = 0;
    make_ready(thread);
  }
  block.waiting = block.counted = 0;
}

uint64_t combined(Thread& one, int lane, unsigned mask) {
  Thread& own = lane_of(one, lane);
  if (own.what == Warp::kShuffle) {
    const int source = own.source_lane;
    if (source < 0 || source >= lanes_of(one) || (mask >> source & 1) == 0) {
      fault(
          "shuffle", own.waits_at, "block %d thread %d reads lane %d, which takes no part (mask %08x)",
          own.block->index, own.index, source, mask);
      return own.given;
    }
    return lane_of(one, source).given;
  }
  uint64_t result = 0;
  bool first = true;
  for (int other = 0; other < lanes_of(one); ++other) {
    if ((mask >> other & 1) == 0) continue;
    const uint64_t word = lane_of(one, other).given;
    const auto number = static_cast<uint32_t>(word), so_far = static_cast<uint32_t>(result);
    const auto with_sign = static_cast<int32_t>(number), sign_so_far = static_cast<int32_t>(so_far);
    switch (own.what) {
      case Warp::kBallot:
        result |= (word & 1) << other;
        break;
      case Warp::kAdd:
        result = static_cast<uint32_t>(so_far + number);
        break;
      case Warp::kMin:
        result = first || with_sign < sign_so_far ? number : so_far;
        break;
      case Warp::kMax:
        result = first || with_sign > sign_so_far ? number : so_far;
        break;
      case Warp::kUnsignedMin:
        result = first || number < so_far ? number : so_far;
        break;
      case Warp::kUnsignedMax:
        result = first || number > so_far ? number : so_far;
        break;
      case Warp::kAnd:
        result = first ? number : so_far & number;
        break;
      case Warp::kOr:
        result = so_far | number;
        break;
      case Warp::kXor:
        result = so_far ^ number;
        break;
      case Warp::kShuffle:
        break;
    }
    first = false;
  }
  return result;
}

// Whether all lanes of the current thread's mask are where it is. Lanes that have ended take no part.
bool is_last_of_warp(State state, unsigned& present) {
  present = 0;
  for (int lane = 0; lane < lanes_of(*current); ++lane) {
    if ((current->mask >> lane & 1) == 0) continue;
    const Thread& thread = lane_of(*current, lane);
    if (thread.state == State::kDone) continue;
    const bool same = &thread == current || (thread.state == state && thread.mask == current->mask &&
                                             (state == State::kAtWarpBarrier || thread.what == current->what));
    if (!same) return false;
    present |= 1u << lane;
  }
  return true;
}

bool mask_is_right(unsigned mask, const void* place) {
  const unsigned lane = lane_index();
  if ((mask >> lane & 1) != 0) return true;
  fault("mask", place, "block %d thread %d is not in its mask %08x", current->block->index, current->index, mask);
  return false;
}

}  // namespace

int block_barrier(bool value) {
  Block& block = *current->block;
  ++block.waiting;
  block.counted += value ? 1 : 0;
  current->waits_at = __builtin_return_address(0);
  if (block.waiting == static_cast<int>(block.threads.size())) {
    current->state = State::kAtBlockBarrier;
    pass_block_barrier(block);
    suspend();
  } else {
    wait_as(State::kAtBlockBarrier);
  }
  return static_cast<int>(current->got);
}

void warp_barrier(unsigned mask) {
  if (!mask_is_right(mask, __builtin_return_address(0))) return;
  current->mask = mask;
  current->waits_at = __builtin_return_address(0);
  unsigned present;
  if (!is_last_of_warp(State::kAtWarpBarrier, present)) {
    wait_as(State::kAtWarpBarrier);
    return;
  }
  std::array<uint32_t, 32> all = {};
  Known known;
  for (int lane = 0; lane < lanes_of(*current); ++lane) {
    if ((present >> lane & 1) == 0) continue;
    const Thread& thread = lane_of(*current, lane);
    for (size_t other = 0; other < 32; ++other) all[other] = std::max(all[other], thread.seen[other]);
    all[static_cast<size_t>(lane)] = std::max(all[static_cast<size_t>(lane)], thread.tick);
    known = join(known, thread.knows);
  }
  for (int lane = 0; lane < lanes_of(*current); ++lane) {
    if ((present >> lane & 1) == 0) continue;
    Thread& thread = lane_of(*current, lane);
    thread.seen = all;
    thread.knows = known;
    new_segment(thread);
    make_ready(thread);
  }
  suspend();
}

uint64_t warp_step(Warp what, unsigned mask, uint64_t given, int source_lane) {
  if (!mask_is_right(mask, __builtin_return_address(0))) return given;
  current->what = what;
  current->mask = mask;
  current->given = given;
  current->source_lane = source_lane;
  current->waits_at = __builtin_return_address(0);
  unsigned present;
  if (!is_last_of_warp(State::kAtWarpStep, present)) {
    wait_as(State::kAtWarpStep);
    return current->got;
  }
  for (int lane = 0; lane < lanes_of(*current); ++lane) {
    if ((present >> lane & 1) != 0) lane_of(*current, lane).got = combined(*current, lane, present);
  }
  for (int lane = 0; lane < lanes_of(*current); ++lane) {
    if ((present >> lane & 1) != 0) make_ready(lane_of(*current, lane));
  }
  suspend();
  return current->got;
}

}  // namespace emulated
