// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The entry from torch, of calls with a plan (to planned.h) and without one (to call.h): the fine-grained sparse
// convolution on the CPU as torch operators. Linear layers are its 1x1 case. The schemas are defined in Python
// (sparsekernels/ops/sparse_conv2d/{implementations,plans,outside}.py).
// More than 400 lines: each operator's checks, one after another.
#include <algorithm>

#include "base/numbered.h"
#include "sparse_conv2d/call.h"
#include "sparse_conv2d/glue.h"
#include "sparse_conv2d/jit/kernel_cache.h"
#include "sparse_conv2d/outside_glue.h"
#include "sparse_conv2d/owned_plan.h"
#include "sparse_conv2d/tiled/fma_rate.h"

namespace sparsekernels {
namespace {

void boxed_sparse_conv2d(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {9, 1});
  const Handle input = arguments.tensor();
  const Handle values = contiguous_vector(arguments.tensor());
  Handle given_bias = arguments.optional_tensor();
  const Handle crow = arguments.tensor(), col = arguments.tensor();
  const Geometry geometry(arguments.integers());
  const Handle residual = arguments.optional_tensor();
  const std::optional<double> low = arguments.optional_number(), high = arguments.optional_number();

  check_activation(input, geometry);
  SparsePattern pattern = pattern_of(crow, col, geometry);
  check_like(
      values, input, pattern.nonzeros,
      "sparse_conv2d: expected values of the size of col_indices in dtype and device of input");
  pattern.values = values.data();
  pattern.dtype = dtype_of(values, "sparse_conv2d");
  const Handle bias = checked_bias(std::move(given_bias), input, pattern.rows);
  const Activation source = activation_of(input);
  Handle output = empty_output(input, source, geometry, pattern.rows);
  const Activation dest = activation_of(output);
  sparse_conv2d(
      geometry.conv, pattern, source, epilogue_of(input, bias, residual, low, high, dest), dest, torch_threads());
  stack[0] = to_stack(std::move(output));
}

// Never destroyed: tensors may outlive static objects.
Numbered<OwnedPlan>* const all_plans =
    new Numbered<OwnedPlan>("sparse_conv2d: expected plan to be the number of one made and not freed");

Numbered<OwnedPlan>& plans() {
  return *all_plans;
}

void boxed_plan(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {5, 1});
  Handle crow = arguments.tensor(), col = arguments.tensor();
  const Geometry geometry(arguments.integers());
  const int64_t columns = arguments.integer();
  Handle order = arguments.optional_tensor();
  const SparsePattern pattern = pattern_of(crow, col, geometry);
  require(
      pattern.rows > 0 && columns > 0 && columns % geometry.taps() == 0 &&
          columns <= std::numeric_limits<int32_t>::max() / pattern.rows,
      "sparse_conv2d: expected columns to be a multiple of the taps, in a weight of less than 2^31 elements", columns);
  stack[0] = torch::stable::detail::from(
      plans().add(std::make_shared<OwnedPlan>(std::move(crow), std::move(col), std::move(order), geometry, columns)));
}

void boxed_free_plan(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {1, 0});
  plans().free(arguments.integer());
}

// The values at a plan's nonzeros, or its dense weight, which becomes contiguous. It has the dtype and device of the
// `other` factor, or `expected` is the error.
PlannedWeight planned_weight(Handle& weight, const Handle& other, const char* expected, const PlannedConv2d& plan) {
  require(weight.dtype() == other.dtype() && weight.device_type() == other.device_type(), expected, weight);
  make_contiguous(weight);
  PlannedWeight values;
  values.data = weight.data();
  values.dtype = dtype_of(weight, "sparse_conv2d");
  values.dense = weight.dim() != 1;
  const int64_t elements = elements_of(weight.sizes(), weight.dim());
  require(
      elements == (values.dense ? plan.rows() * plan.columns() : plan.nonzeros()),
      "sparse_conv2d: expected weight of the nonzeros of the plan, in 1 dimension, or of all elements", weight);
  return values;
}

void boxed_planned_input_gradient(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {10, 1});
  const Handle grad_output = arguments.tensor();
  Handle weight = arguments.tensor();
  const std::shared_ptr<OwnedPlan> owner = plans().find(arguments.integer());
  const int64_t height = arguments.integer(), width = arguments.integer();
  const bool channels_last = arguments.boolean();
  Handle given_bias = arguments.optional_tensor();
  const Handle residual = arguments.optional_tensor();
  const std::optional<double> low = arguments.optional_number(), high = arguments.optional_number();

  const Geometry& geometry = owner->geometry();
  const std::shared_ptr<PlannedConv2d> plan = owner->current();
  const int64_t input_size[2] = {height, width};
  check_grad_output(grad_output, geometry, plan->rows(), input_size);
  const PlannedWeight values = planned_weight(
      weight, grad_output, "sparse_conv2d: expected weight of the dtype and device of grad_output", *plan);
  const Activation grads = activation_of(grad_output);
  const int64_t channels = plan->columns() / geometry.taps() * geometry.conv.groups;
  const Handle bias = checked_bias(std::move(given_bias), grad_output, channels);
  // what is stored phase by phase has no epilogue
  require(
      (geometry.conv.stride[0] == 1 && geometry.conv.stride[1] == 1) || (!bias && !residual && !low && !high),
      "sparse_conv2d: expected stride 1 of an input gradient with a bias, a residual or limits",
      geometry.conv.stride[0] == 1 ? geometry.conv.stride[1] : geometry.conv.stride[0]);
  const int64_t sizes[4] = {grads.size[0], channels, height, width};
  Handle grad_input = empty_activation(sizes, channels_last, grad_output);
  const Activation dest = activation_of(grad_input);
  const Epilogue epilogue = epilogue_of(grad_output, bias, residual, low, high, dest);
  plan->input_gradient(values, grads, epilogue, dest, torch_threads());
  stack[0] = to_stack(std::move(grad_input));
}

void boxed_planned_weight_gradient(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {3, 1});
  const Handle grad_output = arguments.tensor(), input = arguments.tensor();
  const std::shared_ptr<OwnedPlan> owner = plans().find(arguments.integer());

  const Geometry& geometry = owner->geometry();
  const std::shared_ptr<PlannedConv2d> plan = owner->current();
  check_activation(input, geometry);
  require(
      grad_output.dtype() == input.dtype(), "sparse_conv2d: expected grad_output of the dtype of input", grad_output);
  const Activation source = activation_of(input);
  require(
      source.size[1] == plan->columns() / geometry.taps() * geometry.conv.groups,
      "sparse_conv2d: expected input with the channels of the plan", input);
  const int64_t input_size[2] = {source.size[2], source.size[3]};
  check_grad_output(grad_output, geometry, plan->rows(), input_size);
  const Activation grads = activation_of(grad_output);
  require(grads.size[0] == source.size[0], "sparse_conv2d: expected grad_output of the batch of input", grad_output);
  const int64_t nonzeros = plan->nonzeros();
  Handle grad_values = empty(&nonzeros, 1, input.dtype(), input);
  plan->weight_gradient(grads, source, grad_values.data(), torch_threads());
  stack[0] = to_stack(std::move(grad_values));
}

// A call by a plan: what both forward operators do.
struct PlannedCall {
  Handle input, weight, given_bias, residual;
  std::optional<double> low, high;
  std::shared_ptr<OwnedPlan> owner;
};

// guard: null, or the words of a `Guard`, by which a dense weight has to be zero outside of the pattern.
StableIValue forward(PlannedCall call, const Handle* guard, int64_t version) {
  const Geometry& geometry = call.owner->geometry();
  const std::shared_ptr<PlannedConv2d> current = call.owner->current();
  PlannedConv2d& plan = *current;
  const Handle& input = call.input;
  check_activation(input, geometry);
  require(
      input.sizes()[1] == plan.columns() / geometry.taps() * geometry.conv.groups,
      "sparse_conv2d: expected input with the channels of the plan", input);
  if (make_contiguous(call.weight)) version = kNoVersion;  // a copy's memory is another tensor's afterwards
  const PlannedWeight values =
      planned_weight(call.weight, input, "sparse_conv2d: expected weight of the dtype and device of input", plan);
  const Handle bias = checked_bias(std::move(call.given_bias), input, plan.rows());
  const Activation source = activation_of(input);
  Handle output = empty_output(input, source, geometry, plan.rows());
  const Activation dest = activation_of(output);
  if (guard != nullptr) {
    require(values.dense, "sparse_conv2d: expected a dense weight with a guard", call.weight);
    const DenseWeight dense = {values.data, values.dtype, plan.rows() * plan.columns()};
    const auto positions = static_cast<double>(dest.size[0] * dest.size[2] * dest.size[3]);
    const double multiply_adds = positions * static_cast<double>(plan.nonzeros());
    require(
        nonzeros_outside(dense, *guard, version, multiply_adds) == 0,
        "sparse_conv2d: expected weight that is zero outside of its pattern", call.weight);
  }
  const Epilogue epilogue = epilogue_of(input, bias, call.residual, call.low, call.high, dest);
  plan.forward(values, source, epilogue, dest, torch_threads());
  return to_stack(std::move(output));
}

// What all such calls begin with.
PlannedCall planned_call(Arguments& arguments) {
  PlannedCall call;
  call.input = arguments.tensor();
  call.weight = arguments.tensor();
  call.given_bias = arguments.optional_tensor();
  call.owner = plans().find(arguments.integer());
  return call;
}

void boxed_planned_sparse_conv2d(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {7, 1});
  PlannedCall call = planned_call(arguments);
  call.residual = arguments.optional_tensor();
  call.low = arguments.optional_number();
  call.high = arguments.optional_number();
  stack[0] = forward(std::move(call), nullptr, 0);
}

void boxed_guarded_sparse_conv2d(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {6, 1});
  PlannedCall call = planned_call(arguments);
  const Handle guard = arguments.tensor();
  stack[0] = forward(std::move(call), &guard, arguments.integer());
}

void boxed_input_gradient(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {9, 1});
  const Handle grad_output = arguments.tensor();
  const Handle values = contiguous_vector(arguments.tensor());
  const Handle crow = arguments.tensor(), col = arguments.tensor(), permutation = arguments.tensor();
  const Geometry geometry(arguments.integers());
  const int64_t height = arguments.integer(), width = arguments.integer();
  const bool channels_last = arguments.boolean();

  check_activation(grad_output, geometry);
  SparsePattern pattern = pattern_of(crow, col, geometry);
  pattern.permutation = indices(permutation, pattern.nonzeros);
  check_like(
      values, grad_output, pattern.nonzeros,
      "sparse_conv2d: expected values of the size of col_indices in dtype and device of grad_output");
  pattern.values = values.data();
  pattern.dtype = dtype_of(values, "sparse_conv2d");
  const Activation source = activation_of(grad_output);
  const int64_t input_size[2] = {height, width};
  for (int d = 0; d < 2; ++d) {
    require(
        geometry.output_size(d, input_size[d]) == source.size[2 + d],
        "sparse_conv2d: expected grad_output of the size of the output", grad_output);
  }
  const int64_t sizes[4] = {source.size[0], pattern.rows, height, width};
  Handle grad_input = empty_activation(sizes, channels_last, grad_output);
  sparse_conv2d_input_gradient(geometry.conv, pattern, source, activation_of(grad_input), torch_threads());
  stack[0] = to_stack(std::move(grad_input));
}

void boxed_weight_gradient(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {5, 1});
  const Handle grad_output = arguments.tensor(), input = arguments.tensor();
  const Handle crow = arguments.tensor(), col = arguments.tensor();
  const Geometry geometry(arguments.integers());

  check_activation(grad_output, geometry);
  check_activation(input, geometry);
  require(
      grad_output.dtype() == input.dtype(), "sparse_conv2d: expected grad_output of the dtype of input", grad_output);
  const SparsePattern pattern = pattern_of(crow, col, geometry);
  const Activation source = activation_of(input), grads = activation_of(grad_output);
  require(
      grads.size[1] == pattern.rows && grads.size[0] == source.size[0],
      "sparse_conv2d: expected grad_output of the batch of input and the rows of crow_indices", grad_output);
  for (int d = 0; d < 2; ++d) {
    require(
        geometry.output_size(d, source.size[2 + d]) == grads.size[2 + d],
        "sparse_conv2d: expected grad_output of the size of the output", grad_output);
  }
  Handle grad_values = empty(&pattern.nonzeros, 1, input.dtype(), input);
  sparse_conv2d_weight_gradient(geometry.conv, pattern, grads, source, grad_values.data(), torch_threads());
  stack[0] = to_stack(std::move(grad_values));
}

void boxed_fma_rate(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments(stack, {count, returned}, {0, 1});
  stack[0] = torch::stable::detail::from(tiled::fma_from_l1_gflops(torch_threads()));
}

void boxed_kept_kernels(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments(stack, {count, returned}, {0, 1});
  stack[0] = torch::stable::detail::from(jit::jit_allowed() ? jit::kept_kernel_bytes() : int64_t{-1});
}

void boxed_most_kernels(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments(stack, {count, returned}, {0, 1});
  stack[0] = torch::stable::detail::from(jit::most_kernel_bytes());
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_sparse_conv2d", &sparsekernels::boxed_sparse_conv2d);
  m.impl("_plan_sparse_conv2d", &sparsekernels::boxed_plan);
  m.impl("_planned_sparse_conv2d", &sparsekernels::boxed_planned_sparse_conv2d);
  m.impl("_planned_sparse_conv2d_input_gradient", &sparsekernels::boxed_planned_input_gradient);
  m.impl("_planned_sparse_conv2d_weight_gradient", &sparsekernels::boxed_planned_weight_gradient);
  m.impl("_guarded_sparse_conv2d", &sparsekernels::boxed_guarded_sparse_conv2d);
  m.impl("_sparse_conv2d_input_gradient", &sparsekernels::boxed_input_gradient);
  m.impl("_sparse_conv2d_weight_gradient", &sparsekernels::boxed_weight_gradient);
}

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CompositeExplicitAutograd, m) {
  m.impl("_free_sparse_conv2d_plan", &sparsekernels::boxed_free_plan);
  m.impl("_fma_from_l1_gflops", &sparsekernels::boxed_fma_rate);
  m.impl("_kept_kernel_bytes", &sparsekernels::boxed_kept_kernels);
  m.impl("_most_kernel_bytes", &sparsekernels::boxed_most_kernels);
}
