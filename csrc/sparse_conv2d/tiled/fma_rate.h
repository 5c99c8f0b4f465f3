// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The yardstick of the sparse kernels: how fast this machine does multiply-adds that take one operand from the first
// cache.
#pragma once

#include "base/threads.h"

namespace sparsekernels::tiled {

// In GFLOP/s, on all of `threads` together: multiply-adds whose one operand is one of 24 vectors (1.5 KB) that are read
// in turn, and nothing else. Takes 0.1 s.
double fma_from_l1_gflops(const Threads& threads);

}  // namespace sparsekernels::tiled
