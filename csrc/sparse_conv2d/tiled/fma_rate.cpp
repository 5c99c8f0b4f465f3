// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/tiled/fma_rate.h"

#include <algorithm>
#include <chrono>
#include <mutex>

#include "isa/kernels.h"

namespace sparsekernels::tiled {
namespace {

using Clock = std::chrono::steady_clock;

// The best rate of this thread, GFLOP/s, over `seconds`; a processor takes some milliseconds to find its frequency.
double best_rate(double seconds) {
  constexpr int64_t kRounds = 2000;
  alignas(64) float vectors[kRateVectors * kLanes] = {}, sums[kRateVectors * kLanes];
  const auto multiply_add_vectors = cpu_kernels().tiles.multiply_add_vectors;
  double best = 0;
  const Clock::time_point begin = Clock::now();
  for (Clock::time_point start = begin; std::chrono::duration<double>(start - begin).count() < seconds;) {
    multiply_add_vectors(vectors, kRounds, sums);
    const Clock::time_point stop = Clock::now();
    const double taken = std::chrono::duration<double>(stop - start).count();
    best = std::max(best, 2.0 * kLanes * kRateVectors * kRounds / taken * 1e-9);
    start = stop;
  }
  return best;
}

}  // namespace

double fma_from_l1_gflops(const Threads& threads) {
  std::mutex lock;
  double total = 0;
  threads.run(threads.count, [&](int64_t, int64_t) {  // one range a thread
    const double rate = best_rate(0.1);
    const std::lock_guard<std::mutex> hold(lock);
    total += rate;
  });
  return total;
}

}  // namespace sparsekernels::tiled
