// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Stands for csrc/base/cuda/ptx.cuh on the emulated device.
#pragma once

#include "cuda_runtime.h"

namespace sparsekernels::cuda {

inline void prefetch(const void* address) {
  emulated::access(address, 1, emulated::Access::kPrefetch);
}

}  // namespace sparsekernels::cuda
