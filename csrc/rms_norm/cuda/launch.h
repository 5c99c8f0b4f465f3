// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// RMSNorm on CUDA devices. Knows no torch: raw pointers, sizes and a stream. Every call runs on the current device, and
// returns the error of its launch. How the kernels work, and what they cost: docs/rms_norm.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "rms_norm/call.h"

namespace sparsekernels::cuda {

// The bits of a row depend on its contents, its length and the weight alone: not on the other rows, the strides or the
// alignment.
cudaError_t rms_norm_forward(const RmsNormForward& call, cudaStream_t stream);

// One launch. grad_input as above; grad_weight has the same bits from run to run for the same shape and device.
// Safe to capture into a CUDA graph; a captured call is one memset of 64 bytes and one kernel.
cudaError_t rms_norm_backward(const RmsNormBackward& call, cudaStream_t stream);

// Bytes that RmsNormBackward::workspace must hold, for the current device; the call may still lack its workspace.
size_t rms_norm_workspace_bytes(const RmsNormBackward& call);

}  // namespace sparsekernels::cuda
