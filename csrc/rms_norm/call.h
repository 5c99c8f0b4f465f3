// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What one RMSNorm call is, to a kernel: pointers, sizes and strides. Shared by the CPU and the CUDA kernels, knows no
// torch.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace sparsekernels {

constexpr int kMaxLeadingDims = 4;

// The rows that a call visits: the leading dimensions, collapsed as far as every tensor of the call allows. Dimension
// ndim - 1 is the innermost. A call with one stride between rows has ndim == 1; rows == product of sizes.
struct RowSpace {
  int64_t rows = 0;
  int64_t cols = 0;
  int32_t ndim = 0;
  int64_t sizes[kMaxLeadingDims] = {};
};

// One tensor over a RowSpace. The cols elements of a row are contiguous; strides are in elements, one a dimension of
// the RowSpace. data == nullptr: the call has no such tensor.
struct RowTensor {
  void* data = nullptr;
  int64_t strides[kMaxLeadingDims] = {};
};

// output = s / sqrt(mean(s^2) + eps) * w with s = input + residual (rounded to dtype, written to sum), or s = input
// where there is no residual. w is weight, or 1 + weight where unit_offset. cast_before: the quotient is rounded to
// dtype before it is multiplied; dtype is that of the product.
struct RmsNormForward {
  RowSpace space;
  RowTensor input;
  RowTensor residual;
  RowTensor output;
  RowTensor sum;
  const void* weight = nullptr;  // cols contiguous elements of weight_dtype, or none
  DType dtype = DType::kFloat32;
  DType weight_dtype = DType::kFloat32;
  double eps = 0;
  bool cast_before = false;
  bool unit_offset = false;  // only where there is a weight
};

// With r = 1 / sqrt(mean(x^2) + eps), a = w * grad_output, w as in the forward, c = mean(a * x):
//   grad_input  = r * a - r^3 * c * x + grad_sum
//   grad_weight = sum over rows of grad_output * x * r
struct RmsNormBackward {
  RowSpace space;
  RowTensor grad_output;
  RowTensor input;
  RowTensor grad_sum;    // may be missing
  RowTensor grad_input;  // missing where that gradient is not needed
  const void* weight = nullptr;
  void* grad_weight = nullptr;  // cols elements of weight_dtype; missing where that gradient is not needed
  void* workspace = nullptr;    // rms_norm_workspace_bytes() bytes, 64-byte aligned
  DType dtype = DType::kFloat32;
  DType weight_dtype = DType::kFloat32;
  double eps = 0;
  bool unit_offset = false;
};

}  // namespace sparsekernels
