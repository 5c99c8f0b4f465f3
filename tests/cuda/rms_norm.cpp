// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// csrc/rms_norm/cuda on the emulated device, for test_rms_norm_emulated.py.
#include <cuda_runtime.h>

namespace sparsekernels::cuda {
namespace {
EMULATED_DYNAMIC_SHARED(uint4, dynamic_shared);
}
}  // namespace sparsekernels::cuda

#include "rms_norm/cuda/backward.cu"

extern "C" {
__attribute__((visibility("default"))) int forward(const sparsekernels::RmsNormForward* call) {
  return sparsekernels::cuda::rms_norm_forward(*call, nullptr);
}
__attribute__((visibility("default"))) size_t workspace_bytes(const sparsekernels::RmsNormBackward* call) {
  return sparsekernels::cuda::rms_norm_workspace_bytes(*call);
}
__attribute__((visibility("default"))) int backward(const sparsekernels::RmsNormBackward* call, size_t stream) {
  return sparsekernels::cuda::rms_norm_backward(*call, reinterpret_cast<cudaStream_t>(stream));
}
}
