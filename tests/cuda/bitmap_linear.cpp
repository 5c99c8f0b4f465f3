// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// csrc/sparse_conv2d/cuda/bitmap_linear.cu on the emulated device, for test_bitmap_linear_emulated.py.
#include <cuda_runtime.h>

namespace sparsekernels::cuda {
namespace {
EMULATED_DYNAMIC_SHARED(uint4, bitmap_shared);
}
}  // namespace sparsekernels::cuda

#include "sparse_conv2d/cuda/bitmap_linear.cu"

extern "C" __attribute__((visibility("default"))) int bitmap_linear(const sparsekernels::BitmapLinear* call) {
  return sparsekernels::cuda::bitmap_linear(*call, nullptr);
}
