// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/nonzeros.h"

#include <algorithm>

#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/lattice.h"

namespace sparsekernels {

void parallel_for_nonzeros(int64_t count, const Threads& threads, const ParallelBody& body) {
  constexpr int64_t kGrain = cost::threads::kGatheredGrain;
  if (count == 0) return;
  if (count < cost::threads::kFewestGathered) return body(0, count);
  threads.run(divide_up(count, kGrain), [&](int64_t begin, int64_t end) {
    body(begin * kGrain, std::min(count, end * kGrain));
  });
}

void gather_elements(
    const std::vector<int32_t>& order, const void* from, DType dtype, const Threads& threads, void* to) {
  parallel_for_nonzeros(static_cast<int64_t>(order.size()), threads, [&](int64_t begin, int64_t end) {
    if (dtype == DType::kFloat32) return gather(order, from, begin, end, static_cast<float*>(to));
    gather(order, from, begin, end, static_cast<uint16_t*>(to));
  });
}

}  // namespace sparsekernels
