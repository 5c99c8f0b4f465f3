// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Torch's threads, for kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "base/threads.h"

namespace sparsekernels {

inline void run_parallel(int64_t count, const ParallelBody& body) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { body(begin, end); });
}

inline Threads torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()), run_parallel};
}

}  // namespace sparsekernels
