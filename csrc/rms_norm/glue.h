// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What RMSNorm's bindings for CPU and CUDA share: checks, the rows of a call, the operators around a launcher.
#pragma once

#include <cmath>
#include <optional>

#include "base/torch_glue.h"
#include "rms_norm/call.h"

namespace sparsekernels {

inline double eps_or_default(std::optional<double> eps, DType dtype) {
  if (!eps) {
    return dtype == DType::kFloat64 ? std::numeric_limits<double>::epsilon()
                                    : static_cast<double>(std::numeric_limits<float>::epsilon());
  }
  require(*eps >= 0, "rms_norm: expected eps of at least 0", *eps);  // false for NaN
  return *eps;
}

// Checks input, the normalized dimensions and weight against one another; returns the number of leading dimensions.
inline int64_t check_shapes(const Handle& input, int64_t dims, int64_t size, const Handle& weight) {
  const int64_t leading = input.dim() - dims;
  require(dims > 0 && leading >= 0, "rms_norm: expected input with the dimensions of normalized_shape", input);
  const int64_t* sizes = input.sizes() + leading;
  int64_t product = 1;
  for (int64_t d = 0; d < dims; ++d) product *= sizes[d];
  require(product == size, "rms_norm: expected input that ends in normalized_shape", input);
  if (weight) {
    require(weight.dim() == dims, "rms_norm: expected weight of shape normalized_shape", weight);
    const int64_t* weight_sizes = weight.sizes();
    for (int64_t d = 0; d < dims; ++d)
      require(weight_sizes[d] == sizes[d], "rms_norm: expected weight of shape normalized_shape", weight);
    require(
        weight.device_type() == input.device_type() && weight.device_index() == input.device_index(),
        "rms_norm: expected weight on the device of input", weight);
  }
  return leading;
}

// The number of normalized dimensions and the variant, in the one number that Python makes of them
// (sparsekernels/ops/rms_norm/arguments.py).
struct RmsNormVariant {
  explicit RmsNormVariant(int64_t packed)
      : dims(packed & 0xff), cast_before((packed & 0x100) != 0), unit_offset((packed & 0x200) != 0) {
    if (packed >> 10 != 0) dims = 0;  // refused as dimensions that do not fit
  }
  int64_t dims;
  bool cast_before, unit_offset;
};

// Whether torch gives a product of these dtypes that of the input.
inline bool does_not_widen(DType weight, DType input) {
  return weight == input || input == DType::kFloat64 || (input == DType::kFloat32 && weight != DType::kFloat64);
}

// Whether the dimensions from `leading` on lie side by side in memory.
inline bool rows_are_contiguous(const Handle& tensor, int64_t leading) {
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  int64_t expected = 1;
  for (int64_t d = tensor.dim() - 1; d >= leading; --d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// The tensor itself where its rows are contiguous, else a contiguous copy.
inline Handle with_contiguous_rows(Handle tensor, int64_t leading) {
  return rows_are_contiguous(tensor, leading) ? std::move(tensor) : contiguous(tensor);
}

// Describes the rows that the given tensors share; missing tensors are allowed. Returns false where they need more
// than kMaxLeadingDims strides.
template <int kTensors>
bool describe_rows(
    const Handle& shape_of, int64_t leading, const Handle* const (&handles)[kTensors],
    RowTensor* const (&rows)[kTensors], RowSpace& space) {
  const int64_t *sizes = shape_of.sizes(), dim = shape_of.dim();
  const int64_t* strides[kTensors];
  for (int t = 0; t < kTensors; ++t) {
    strides[t] = *handles[t] ? handles[t]->strides() : nullptr;
    rows[t]->data = *handles[t] ? handles[t]->data() : nullptr;
  }
  space = RowSpace();
  space.rows = space.cols = 1;
  for (int64_t d = leading; d < dim; ++d) space.cols *= sizes[d];
  for (int64_t d = 0; d < leading; ++d) space.rows *= sizes[d];
  for (int64_t d = 0; d < leading; ++d) {
    if (sizes[d] == 1) continue;
    bool merges = space.ndim > 0;
    for (int t = 0; t < kTensors && merges; ++t)
      merges = strides[t] == nullptr || rows[t]->strides[space.ndim - 1] == strides[t][d] * sizes[d];
    if (!merges && space.ndim == kMaxLeadingDims) return false;
    const int at = merges ? space.ndim - 1 : space.ndim++;
    space.sizes[at] = merges ? space.sizes[at] * sizes[d] : sizes[d];
    for (int t = 0; t < kTensors; ++t) rows[t]->strides[at] = strides[t] == nullptr ? 0 : strides[t][d];
  }
  if (space.ndim == 0) {
    space.ndim = 1;
    space.sizes[0] = 1;
    for (int t = 0; t < kTensors; ++t) rows[t]->strides[0] = 0;
  }
  return true;
}

// describe_rows, on contiguous copies of the first `inputs` tensors where they need more strides than a kernel takes.
// The other tensors are results, which are contiguous.
template <int kTensors>
void describe_or_copy_rows(
    int64_t leading, int inputs, Handle* const (&handles)[kTensors], RowTensor* const (&rows)[kTensors],
    RowSpace& space) {
  const Handle* views[kTensors];
  for (int t = 0; t < kTensors; ++t) views[t] = handles[t];
  if (describe_rows<kTensors>(*handles[0], leading, views, rows, space)) return;
  for (int t = 0; t < inputs; ++t)
    if (*handles[t]) *handles[t] = contiguous(*handles[t]);
  describe_rows<kTensors>(*handles[0], leading, views, rows, space);
}

// The operators. A launcher is given a call that is checked, described and allocated, and never an empty one.

template <class Launch>
void boxed_forward(StableIValue* stack, StackCounts counts, bool add, Launch launch) {
  Arguments arguments(stack, counts, add ? StackCounts{6, 2} : StackCounts{5, 1});
  Handle input = arguments.tensor();
  Handle residual = add ? arguments.tensor() : Handle();
  const RmsNormVariant variant(arguments.integer());
  const int64_t dims = variant.dims, size = arguments.integer();
  Handle weight = arguments.optional_tensor();
  const std::optional<double> eps = arguments.optional_number();

  RmsNormForward call;
  call.dtype = dtype_of(input, "rms_norm");
  call.eps = eps_or_default(eps, call.dtype);
  const int64_t leading = check_shapes(input, dims, size, weight);
  if (add) require_like(residual, input, "rms_norm: expected residual of the shape, dtype and device of input");
  if (weight) {
    call.weight_dtype = dtype_of(weight, "rms_norm");
    if (!weight.is_contiguous()) weight = contiguous(weight);
    call.weight = weight.data();
    call.cast_before = variant.cast_before;
    call.unit_offset = variant.unit_offset;
    require(
        !variant.cast_before || does_not_widen(call.weight_dtype, call.dtype),
        "rms_norm: expected weight whose product with input has the dtype of input", weight);
  }
  Handle output = empty_output(input);
  Handle sum = add ? empty_output(input) : Handle();
  input = with_contiguous_rows(std::move(input), leading);
  if (add) residual = with_contiguous_rows(std::move(residual), leading);
  describe_or_copy_rows<4>(
      leading, 2, {&input, &residual, &output, &sum}, {&call.input, &call.residual, &call.output, &call.sum},
      call.space);
  if (call.space.rows > 0 && call.space.cols > 0) launch(call, input);
  stack[0] = to_stack(std::move(output));
  if (add) stack[1] = to_stack(std::move(sum));
}

// launch(call, input) must write all of grad_weight, also for no rows, where it is asked for.
template <class Launch>
void boxed_backward(StableIValue* stack, StackCounts counts, Launch launch) {
  Arguments arguments(stack, counts, {9, 2});
  Handle grad_output = arguments.tensor();
  Handle input = arguments.tensor();
  const RmsNormVariant variant(arguments.integer());
  const int64_t dims = variant.dims, size = arguments.integer();
  Handle weight = arguments.optional_tensor();
  const std::optional<double> eps = arguments.optional_number();
  Handle grad_sum = arguments.optional_tensor();
  const bool need_input = arguments.boolean();
  const bool need_weight = arguments.boolean();

  RmsNormBackward call;
  call.dtype = dtype_of(input, "rms_norm");
  call.eps = eps_or_default(eps, call.dtype);
  const int64_t leading = check_shapes(input, dims, size, weight);
  require_like(grad_output, input, "rms_norm: expected grad_output of the shape, dtype and device of input");
  if (grad_sum) require_like(grad_sum, input, "rms_norm: expected grad_sum of the shape, dtype and device of input");
  require(!need_weight || weight, "rms_norm: expected weight with need_weight", weight);
  if (weight) {
    call.weight_dtype = dtype_of(weight, "rms_norm");
    if (!weight.is_contiguous()) weight = contiguous(weight);
    call.weight = weight.data();
    call.unit_offset = variant.unit_offset;
  }
  Handle grad_input = need_input ? empty_output(input) : Handle();
  Handle grad_weight = need_weight ? empty(weight.sizes(), weight.dim(), weight.dtype(), weight) : Handle();
  if (need_weight) call.grad_weight = grad_weight.data();
  input = with_contiguous_rows(std::move(input), leading);
  grad_output = with_contiguous_rows(std::move(grad_output), leading);
  if (grad_sum) grad_sum = with_contiguous_rows(std::move(grad_sum), leading);
  describe_or_copy_rows<4>(
      leading, 3, {&grad_output, &input, &grad_sum, &grad_input},
      {&call.grad_output, &call.input, &call.grad_sum, &call.grad_input}, call.space);
  if (call.space.cols > 0 && (call.space.rows > 0 || need_weight)) launch(call, input);
  stack[0] = to_stack(need_input ? std::move(grad_input) : empty_placeholder(input));
  stack[1] = to_stack(need_weight ? std::move(grad_weight) : empty_placeholder(weight ? weight : input));
}

}  // namespace sparsekernels
