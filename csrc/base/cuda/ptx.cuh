// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What there is in PTX only. The emulation of tests/cuda has a file of this name that takes its place.
#pragma once

namespace sparsekernels::cuda {

// Starts to bring a line into the L2 cache.
__device__ inline void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

}  // namespace sparsekernels::cuda
