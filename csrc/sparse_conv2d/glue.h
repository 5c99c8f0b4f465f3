// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the bindings of sparse operations share: the geometry of a convolution, the indices of a pattern.
#pragma once

#include <algorithm>

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

inline Activation activation_of(const Handle& tensor) {
  Activation result;
  result.data = tensor.data();
  result.dtype = dtype_of(tensor, "sparse_conv2d");
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  for (int d = 0; d < 4; ++d) {
    result.size[d] = sizes[d];
    result.stride[d] = strides[d];
    require(sizes[d] < int64_t{1} << 30, "sparse_conv2d: expected input and grad_output of sizes below 2^30", sizes[d]);
  }
  return result;
}

inline void check_activation(const Handle& tensor, const Geometry& geometry) {
  require(tensor.dim() == 4, "sparse_conv2d: expected input and grad_output of 4 dimensions", tensor);
  require(
      dtype_of(tensor, "sparse_conv2d") != DType::kFloat64,
      "sparse_conv2d: expected input and grad_output of float32, bfloat16 or float16", tensor);
  require(
      tensor.device_type() == aoti_torch_device_type_cpu(), "sparse_conv2d: expected input and grad_output on the CPU",
      tensor);
  const int64_t channels = tensor.sizes()[1], groups = geometry.conv.groups;
  require(
      channels > 0 && channels % groups == 0,
      "sparse_conv2d: expected input and grad_output with channels that groups divide", channels);
  require(
      channels / groups <= std::numeric_limits<int32_t>::max() / geometry.taps(),
      "sparse_conv2d: expected channels such that an output channel has less than 2^31 weights", channels);
}

// As torch decides for its convolutions (`suggest_memory_format`), from sizes and strides alone: gaps do not count, and
// what could be either, one channel of one pixel with equal strides, is contiguous. So is what becomes that when it is
// copied: several images of one pixel and one channel.
inline bool is_channels_last(const Handle& tensor) {
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  if (sizes[0] == 0 || sizes[1] == 0 || sizes[2] == 0 || sizes[3] == 0) return false;
  if (sizes[0] > 1 && sizes[1] == 1 && sizes[2] == 1 && sizes[3] == 1) return false;
  const int64_t row = strides[3] * sizes[3], image = strides[2] * sizes[2];
  return strides[1] > 0 && strides[3] >= strides[1] * sizes[1] && strides[2] >= row && strides[0] >= image &&
         image != strides[1];
}

// Whether the tensor has the sizes of `other`, and its strides where these matter.
inline bool lies_as(const Handle& tensor, const Activation& other) {
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  bool same = true;
  for (int d = 0; d < 4; ++d) same = same && sizes[d] == other.size[d];
  for (int d = 0; d < 4; ++d) same = same && (sizes[d] < 2 || strides[d] == other.stride[d]);
  return same;
}

// The tensor that a forward fills.
struct Sizes {
  int64_t of[4];
};

inline Sizes output_sizes(const Handle& input, const Activation& source, const Geometry& geometry, int64_t rows) {
  Sizes sizes = {{source.size[0], rows, 0, 0}};
  for (int d = 0; d < 2; ++d) {
    sizes.of[2 + d] = geometry.output_size(d, source.size[2 + d]);
    require(sizes.of[2 + d] > 0, "sparse_conv2d: expected input that the kernel fits into", input);
  }
  return sizes;
}

inline Handle empty_output(const Handle& input, const Activation& source, const Geometry& geometry, int64_t rows) {
  return empty_activation(output_sizes(input, source, geometry, rows).of, is_channels_last(input), input);
}

inline Epilogue epilogue_of(
    const Handle& input, const Handle& bias, const Handle& residual, std::optional<double> low,
    std::optional<double> high, const Activation& dest) {
  Epilogue epilogue;
  if (bias) epilogue.bias = bias.data();
  if (residual) {
    require(
        residual.dim() == 4 && residual.dtype() == input.dtype() && residual.device_type() == input.device_type() &&
            lies_as(residual, dest),
        "sparse_conv2d: expected residual of the shape, strides, dtype and device of the output", residual);
    epilogue.residual = residual.data();
  }
  if (low) epilogue.low = static_cast<float>(*low);
  if (high) epilogue.high = static_cast<float>(*high);
  require(epilogue.low <= epilogue.high, "sparse_conv2d: expected low of at most high", epilogue.low);
  return epilogue;
}

inline Handle checked_bias(Handle bias, const Handle& input, int64_t rows) {
  if (!bias) return bias;
  bias = contiguous_vector(std::move(bias));
  check_like(
      bias, input, rows, "sparse_conv2d: expected bias of one element per output channel in dtype and device of input");
  return bias;
}

inline void check_grad_output(
    const Handle& grad_output, const Geometry& geometry, int64_t rows, const int64_t (&input)[2]) {
  check_activation(grad_output, geometry);
  const Activation grads = activation_of(grad_output);
  require(grads.size[1] == rows, "sparse_conv2d: expected grad_output of the channels of the output", grad_output);
  for (int d = 0; d < 2; ++d) {
    require(
        geometry.output_size(d, input[d]) == grads.size[2 + d],
        "sparse_conv2d: expected grad_output of the size of the output", grad_output);
  }
}

// A weight whose storage was resized beneath it has no memory.
inline void require_memory(const Handle& weight) {
  if (weight.data() != nullptr) return;
  for (int64_t d = 0; d < weight.dim(); ++d)
    if (weight.sizes()[d] == 0) return;
  require(false, "sparse_conv2d: expected weight whose memory is there", weight);
}

}  // namespace
}  // namespace sparsekernels
