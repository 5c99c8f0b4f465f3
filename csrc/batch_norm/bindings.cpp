// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Training BatchNorm with a sum, limits and dropout on the CPU, as torch operators. The schemas are defined in Python
// (sparsekernels/ops/batch_norm/implementations.py).
#include <algorithm>
#include <cmath>

#include "base/torch_glue.h"
#include "batch_norm/call.h"
#include "isa/kernels.h"

namespace sparsekernels {
namespace {

bool is_float32(const Handle& tensor) {
  return tensor.dtype() == aoti_torch_dtype_float32();
}

BatchNormSpace space_of(const Handle& input) {
  require(
      is_float32(input) && input.dim() >= 2 && input.is_contiguous(),
      "batch_norm: expected contiguous input of float32 and at least 2 dimensions", input);
  const int64_t* const sizes = input.sizes();
  BatchNormSpace space;
  space.images = sizes[0];
  space.channels = sizes[1];
  space.plane = 1;
  for (int64_t d = 2; d < input.dim(); ++d) space.plane *= sizes[d];
  require(space.images > 0 && space.channels > 0 && space.plane > 0, "batch_norm: expected input with elements", input);
  return space;
}

const float* per_channel(const Handle& tensor, int64_t channels, const char* expected) {
  if (!tensor) return nullptr;
  require(
      is_float32(tensor) && tensor.dim() == 1 && tensor.sizes()[0] == channels && tensor.is_contiguous(), expected,
      tensor);
  return static_cast<const float*>(tensor.data());
}

// p as it is compared with random numbers of 32 bits.
uint32_t threshold_of(double p) {
  require(p >= 0 && p < 1, "batch_norm: expected p of at least 0 and below 1", p);
  return static_cast<uint32_t>(std::min(std::nearbyint(std::ldexp(p, 32)), 4294967295.0));
}

template <class Body>
void for_channels(const BatchNormSpace& space, Body body) {
  constexpr int64_t kGrain = 1 << 14;
  const int64_t grain = std::max<int64_t>(1, kGrain / (space.images * space.plane));
  torch::stable::parallel_for(0, space.channels, grain, body);
}

void boxed_batch_norm(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {9, 3});
  const Handle input = arguments.tensor(), residual = arguments.optional_tensor();
  const Handle weight = arguments.optional_tensor(), bias = arguments.optional_tensor();
  BatchNormForward call;
  call.eps = arguments.number();
  const std::optional<double> low = arguments.optional_number(), high = arguments.optional_number();
  const double p = arguments.number();
  call.seed = static_cast<uint64_t>(arguments.integer());
  call.space = space_of(input);
  const int64_t channels = call.space.channels;
  call.weight = per_channel(weight, channels, "batch_norm: expected contiguous weight of float32 [channels]");
  call.bias = per_channel(bias, channels, "batch_norm: expected contiguous bias of float32 [channels]");
  if (residual) {
    require_like(residual, input, "batch_norm: expected residual of the shape, dtype and device of input");
    require(residual.is_contiguous(), "batch_norm: expected contiguous residual", residual);
    call.residual = static_cast<const float*>(residual.data());
  }
  require(call.eps > 0, "batch_norm: expected eps above 0", call.eps);
  call.has_low = low.has_value();
  call.has_high = high.has_value();
  call.low = static_cast<float>(low.value_or(0));
  call.high = static_cast<float>(high.value_or(0));
  call.threshold = threshold_of(p);
  call.scale = static_cast<float>(1 / (1 - p));

  Handle output = empty_output(input);
  const int64_t statistics_sizes[] = {3, channels};
  Handle statistics = empty(statistics_sizes, 2, input.dtype(), input);
  const bool passes_all = !call.has_low && !call.has_high && call.threshold == 0;
  const int64_t kept_sizes[] = {passes_all ? 0 : call.space.images * channels * call.space.words()};
  Handle kept = empty(kept_sizes, 1, aoti_torch_dtype_int16(), input);
  call.source = static_cast<const float*>(input.data());
  call.dest = static_cast<float*>(output.data());
  call.statistics = static_cast<float*>(statistics.data());
  call.kept = passes_all ? nullptr : static_cast<uint16_t*>(kept.data());
  for_channels(call.space, [&](int64_t begin, int64_t end) { cpu_kernels().batch_norm_forward(call, begin, end); });
  stack[0] = to_stack(std::move(output));
  stack[1] = to_stack(std::move(statistics));
  stack[2] = to_stack(std::move(kept));
}

void boxed_batch_norm_backward(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {8, 3});
  Handle gradient = arguments.tensor();
  const Handle input = arguments.tensor(), weight = arguments.optional_tensor(), statistics = arguments.tensor();
  const Handle kept = arguments.tensor();
  const double p = arguments.number();
  const bool need_input = arguments.boolean(), need_residual = arguments.boolean();
  BatchNormBackward call;
  call.space = space_of(input);
  const int64_t channels = call.space.channels;
  require_like(gradient, input, "batch_norm: expected gradient of the shape, dtype and device of input");
  if (!gradient.is_contiguous()) gradient = contiguous(gradient);
  require(
      is_float32(statistics) && statistics.dim() == 2 && statistics.sizes()[0] == 3 &&
          statistics.sizes()[1] == channels && statistics.is_contiguous(),
      "batch_norm: expected statistics as the forward pass returns them", statistics);
  require(
      kept.dtype() == aoti_torch_dtype_int16() && kept.dim() == 1 && kept.is_contiguous() &&
          (kept.sizes()[0] == 0 || kept.sizes()[0] == call.space.images * channels * call.space.words()),
      "batch_norm: expected kept as the forward pass returns it", kept);
  threshold_of(p);
  call.weight = per_channel(weight, channels, "batch_norm: expected contiguous weight of float32 [channels]");
  call.scale = static_cast<float>(1 / (1 - p));
  const int64_t parameters_sizes[] = {2, channels};
  Handle parameters = empty(parameters_sizes, 2, input.dtype(), input);
  Handle result = need_input ? empty_output(input) : empty_placeholder(input);
  Handle residual = need_residual ? empty_output(input) : empty_placeholder(input);
  call.gradient = static_cast<const float*>(gradient.data());
  call.source = static_cast<const float*>(input.data());
  call.statistics = static_cast<const float*>(statistics.data());
  call.kept = kept.sizes()[0] == 0 ? nullptr : static_cast<const uint16_t*>(kept.data());
  call.dest = need_input ? static_cast<float*>(result.data()) : nullptr;
  call.residual = need_residual ? static_cast<float*>(residual.data()) : nullptr;
  call.parameters = static_cast<float*>(parameters.data());
  for_channels(call.space, [&](int64_t begin, int64_t end) { cpu_kernels().batch_norm_backward(call, begin, end); });
  stack[0] = to_stack(std::move(result));
  stack[1] = to_stack(std::move(parameters));
  stack[2] = to_stack(std::move(residual));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_batch_norm_act", &sparsekernels::boxed_batch_norm);
  m.impl("_batch_norm_act_backward", &sparsekernels::boxed_batch_norm_backward);
}
