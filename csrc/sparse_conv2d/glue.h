// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the bindings of sparse operations share: the geometry of a convolution, the indices of a pattern.
#pragma once

#include "base/torch_glue.h"
#include "base/torch_threads.h"
#include "sparse_conv2d/call.h"

namespace sparsekernels {
namespace {

// kernel, stride, padding (top, bottom, left, right), dilation, groups.
constexpr size_t kGeometryNumbers = 11;
constexpr int64_t kMostTaps = 1 << 24;

struct Geometry {
  ConvGeometry conv;
  int64_t padding_after[2];

  explicit Geometry(const std::vector<int64_t>& numbers) {
    require(numbers.size() == kGeometryNumbers, "sparse_conv2d: expected geometry of 11 numbers", numbers);
    for (size_t d = 0; d < 2; ++d) {
      conv.kernel[d] = numbers[d];
      conv.stride[d] = numbers[2 + d];
      conv.padding[d] = numbers[4 + 2 * d];
      padding_after[d] = numbers[5 + 2 * d];
      conv.dilation[d] = numbers[8 + d];
      require(
          conv.kernel[d] > 0 && conv.stride[d] > 0 && conv.dilation[d] > 0 && conv.padding[d] >= 0 &&
              padding_after[d] >= 0,
          "sparse_conv2d: expected geometry of positive kernel, stride and dilation and of padding of at least 0",
          numbers);
      constexpr int64_t kMost = 1 << 20;
      require(
          conv.kernel[d] < kMost && conv.stride[d] < kMost && conv.dilation[d] < kMost && conv.padding[d] < kMost &&
              padding_after[d] < kMost && conv.kernel[d] * conv.dilation[d] < kMost,
          "sparse_conv2d: expected geometry of numbers below 2^20", numbers);
    }
    conv.groups = numbers[10];
    require(conv.groups > 0, "sparse_conv2d: expected groups of at least 1", conv.groups);
    require(taps() < kMostTaps, "sparse_conv2d: expected kernel of less than 2^24 elements", taps());
  }

  int64_t taps() const { return conv.kernel[0] * conv.kernel[1]; }
  // Negative or zero where the kernel does not fit.
  int64_t output_size(int d, int64_t input_size) const {
    const int64_t span = input_size + conv.padding[d] + padding_after[d] - conv.dilation[d] * (conv.kernel[d] - 1) - 1;
    return span < 0 ? 0 : span / conv.stride[d] + 1;
  }
};

inline void check_like(const Handle& tensor, const Handle& input, int64_t size, const char* expected) {
  require(
      tensor.dim() == 1 && tensor.sizes()[0] == size && tensor.dtype() == input.dtype() &&
          tensor.device_type() == input.device_type() && tensor.is_contiguous(),
      expected, tensor);
}

inline const int32_t* indices(const Handle& tensor, int64_t size) {
  require(
      tensor.dim() == 1 && tensor.sizes()[0] == size && tensor.dtype() == aoti_torch_dtype_int32() &&
          tensor.device_type() == aoti_torch_device_type_cpu() && tensor.is_contiguous(),
      "sparse_conv2d: expected contiguous indices of int32 and one size on the CPU", tensor);
  return static_cast<const int32_t*>(tensor.data());
}

inline int64_t length(const Handle& tensor) {
  require(tensor.dim() == 1, "sparse_conv2d: expected indices of 1 dimension", tensor);
  return tensor.sizes()[0];
}

// Without values.
inline SparsePattern pattern_of(const Handle& crow, const Handle& col, const Geometry& geometry) {
  SparsePattern pattern;
  pattern.rows = length(crow) - 1;
  pattern.nonzeros = length(col);
  require(
      pattern.rows >= 0 && pattern.rows % geometry.conv.groups == 0,
      "sparse_conv2d: expected crow_indices of rows that groups divide", pattern.rows);
  pattern.crow_indices = indices(crow, pattern.rows + 1);
  pattern.col_indices = indices(col, pattern.nonzeros);
  return pattern;
}

inline Handle contiguous_vector(Handle tensor) {
  return tensor.is_contiguous() ? std::move(tensor) : contiguous(tensor);
}

}  // namespace
}  // namespace sparsekernels
