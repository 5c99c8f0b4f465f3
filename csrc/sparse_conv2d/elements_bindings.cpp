// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The elements of a dense weight that its pattern uses, and whether others are not zero, as torch operators. Python
// defines the schemas (sparsekernels/ops/sparse_conv2d/{outside,elements}.py).
#include "sparse_conv2d/elements.h"

#include "sparse_conv2d/outside_glue.h"

namespace sparsekernels {
namespace {

void boxed_guard(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {1, 1});
  Handle mask = arguments.tensor();
  require(mask.dtype() == aoti_torch_dtype_bool(), "sparse_conv2d: expected mask of dtype bool", mask);
  mask = mask.is_contiguous() ? std::move(mask) : contiguous(mask);
  const int64_t elements = elements_of(mask.sizes(), mask.dim());
  const int64_t words = MaskWords::words_of(elements);
  Handle guard = empty(&words, 1, aoti_torch_dtype_int64(), mask);
  MaskWords::make(static_cast<const uint8_t*>(mask.data()), elements, static_cast<int64_t*>(guard.data()));
  stack[0] = to_stack(std::move(guard));
}

void boxed_nonzeros_outside(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {4, 1});
  Handle weight = arguments.tensor();
  const Handle guard = arguments.tensor();
  int64_t version = arguments.integer();
  const double multiply_adds = arguments.number();
  if (make_contiguous(weight)) version = kNoVersion;
  stack[0] = torch::stable::detail::from(nonzeros_outside(dense_weight(weight), guard, version, multiply_adds));
}

void boxed_sparse_values(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 1});
  Handle weight = arguments.tensor();
  const Handle places = arguments.tensor();
  make_contiguous(weight);
  require(
      places.dim() == 1 && places.dtype() == aoti_torch_dtype_int64() && places.is_contiguous() &&
          places.device_type() == aoti_torch_device_type_cpu(),
      "sparse_conv2d: expected flat_indices of int64 and one contiguous dimension", places);
  const DenseWeight dense = dense_weight(weight);
  const int64_t nonzeros = places.sizes()[0];
  Handle values = empty(&nonzeros, 1, weight.dtype(), weight);
  const auto* const at = static_cast<const int64_t*>(places.data());
  const Threads threads = torch_threads();
  gather_places(dense, at, nonzeros, threads, values.data());
  require(
      count_nonzeros(dense, threads) == count_nonzeros({values.data(), dense.dtype, nonzeros}, threads),
      "sparse_conv2d: expected weight that is zero outside of its pattern in compiled code; set_pattern() takes its"
      " nonzeros in, then compile again",
      weight);
  stack[0] = to_stack(std::move(values));
}

void boxed_taken_inside(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {4, 2});
  Handle weight = arguments.tensor();
  const Handle guard = arguments.tensor();
  int64_t version = arguments.integer();
  const double multiply_adds = arguments.number();
  if (make_contiguous(weight)) version = kNoVersion;
  const DenseWeight dense = dense_weight(weight);
  int64_t* const words = mask_words(guard, dense.elements);
  const int64_t used = MaskWords(words, dense.elements).used();
  Handle values = empty(&used, 1, weight.dtype(), weight);
  const int64_t outside = Guard(words).take(dense, version, multiply_adds, torch_threads(), values.data());
  stack[0] = to_stack(std::move(values));
  stack[1] = torch::stable::detail::from(outside);
}

void boxed_taken_elements(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 1});
  Handle weight = arguments.tensor();
  const Handle guard = arguments.tensor();
  make_contiguous(weight);
  const DenseWeight dense = dense_weight(weight);
  const MaskWords mask(mask_words(guard, dense.elements), dense.elements);
  const int64_t used = mask.used();
  Handle values = empty(&used, 1, weight.dtype(), weight);
  take_elements(dense, mask, false, torch_threads(), values.data());
  stack[0] = to_stack(std::move(values));
}

// The values of a mask, which are `values` contiguous ones of a CPU.
void check_values(const Handle& values, const MaskWords& mask) {
  require(
      values.dim() == 1 && values.sizes()[0] == mask.used() && values.is_contiguous() &&
          values.device_type() == aoti_torch_device_type_cpu(),
      "sparse_conv2d: expected contiguous values, one for each element of the guard's mask", values);
}

void boxed_spread_elements(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {3, 1});
  Handle values = arguments.tensor();
  const Handle guard = arguments.tensor();
  const std::vector<int64_t> size = arguments.integers();
  make_contiguous(values);
  for (const int64_t one : size)
    require(one >= 0, "sparse_conv2d: expected size of numbers that are not negative", size);
  const auto dim = static_cast<int64_t>(size.size());
  const int64_t elements = elements_of(size.data(), dim);
  const MaskWords mask(mask_words(guard, elements), elements);
  check_values(values, mask);
  Handle dense = empty(size.data(), dim, values.dtype(), values);
  spread_elements(values.data(), dtype_of(values, "sparse_conv2d"), mask, torch_threads(), dense.data());
  stack[0] = to_stack(std::move(dense));
}

void boxed_spread_elements_in_place(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {3, 0});
  const Handle weight = arguments.tensor();
  Handle values = arguments.tensor();
  const Handle guard = arguments.tensor();
  require(weight.is_contiguous(), "sparse_conv2d: expected contiguous weight", weight);
  require(values.dtype() == weight.dtype(), "sparse_conv2d: expected values of the dtype of weight", values);
  make_contiguous(values);
  const DenseWeight dense = dense_weight(weight);
  const MaskWords mask(mask_words(guard, dense.elements), dense.elements);
  check_values(values, mask);
  spread_elements(values.data(), dense.dtype, mask, torch_threads(), weight.data());
}

void boxed_clear_others(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 0});
  const Handle weight = arguments.tensor(), guard = arguments.tensor();
  require(weight.is_contiguous(), "sparse_conv2d: expected contiguous weight", weight);
  const DenseWeight dense = dense_weight(weight);
  clear_others(
      MaskWords(mask_words(guard, dense.elements), dense.elements), dense.dtype, torch_threads(), weight.data());
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_sparse_conv2d_guard", &sparsekernels::boxed_guard);
  m.impl("_nonzeros_outside", &sparsekernels::boxed_nonzeros_outside);
  m.impl("_sparse_values", &sparsekernels::boxed_sparse_values);
  m.impl("_taken_inside", &sparsekernels::boxed_taken_inside);
  m.impl("_taken_elements", &sparsekernels::boxed_taken_elements);
  m.impl("_spread_elements", &sparsekernels::boxed_spread_elements);
  m.impl("_spread_elements_", &sparsekernels::boxed_spread_elements_in_place);
  m.impl("_clear_others_", &sparsekernels::boxed_clear_others);
}
