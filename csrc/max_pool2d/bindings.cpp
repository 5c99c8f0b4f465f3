// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Max pooling on the CPU, as torch operators. The schemas are defined in Python
// (sparsekernels/ops/max_pool2d/implementations.py).
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "isa/kernels.h"
#include "max_pool2d/glue.h"

namespace sparsekernels {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements for which a thread is worth its while

// Whether channels are neighbors, and pixels follow each other without gaps.
bool has_lines(const Handle& input) {
  const int64_t *sizes = input.sizes(), *strides = input.strides();
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// The call of a contiguous `input`, all but where results go.
MaxPool2d call_of(const Handle& input, const std::vector<int64_t>& window, bool lines = false) {
  MaxPool2d call = pooling_of(window);
  require(
      input.dim() == 4 && (lines ? has_lines(input) : input.is_contiguous()),
      "max_pool2d: expected input of 4 dimensions, contiguous or in channels_last without gaps", input);
  call.dtype = dtype_of(input, "max_pool2d");
  require(call.dtype != DType::kFloat64, "max_pool2d: expected input of float32, bfloat16 or float16", input);
  const int64_t* const sizes = input.sizes();
  for (size_t d = 0; d < 2; ++d) {
    call.source_size[d] = sizes[2 + d];
    const int64_t span = call.source_size[d] + 2 * call.padding[d] - call.window[d];
    require(call.source_size[d] > 0 && span >= 0, "max_pool2d: expected input that the window fits into", input);
    call.dest_size[d] = span / call.stride[d] + 1;
  }
  call.source = input.data();
  call.source_channel = call.source_size[0] * call.source_size[1];
  call.dest_channel = call.dest_size[0] * call.dest_size[1];
  call.channels = std::max<int64_t>(1, sizes[1]);
  call.source_image = call.channels * call.source_channel;
  call.dest_image = call.channels * call.dest_channel;
  return call;
}

Handle empty_results(const MaxPool2d& call, const Handle& input, int32_t dtype, bool lines = false) {
  const int64_t sizes[] = {input.sizes()[0], input.sizes()[1], call.dest_size[0], call.dest_size[1]};
  return lines ? empty_activation(sizes, true, input) : empty(sizes, 4, dtype, input);
}

// body(begin, end) for planes of `elements`.
template <class Body>
void for_planes(const Handle& input, int64_t elements, Body body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, input.sizes()[0] * input.sizes()[1], grain, body);
}

void boxed_max_pool2d(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 1});
  const Handle input = arguments.tensor();
  const bool lines = input.dim() == 4 && !input.is_contiguous();
  MaxPool2d call = call_of(input, arguments.integers(), lines);
  Handle output = empty_results(call, input, input.dtype(), lines);
  call.dest = output.data();
  if (lines) {
    const int64_t grain = std::max<int64_t>(1, kGrain / (call.source_size[1] * call.stride[0] * call.channels));
    torch::stable::parallel_for(0, input.sizes()[0] * call.dest_size[0], grain, [&](int64_t begin, int64_t end) {
      cpu_kernels().max_pool2d_lines(call, begin, end);
    });
    stack[0] = to_stack(std::move(output));
    return;
  }
  for_planes(input, call.source_channel, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(call.row_floats()));
    cpu_kernels().max_pool2d(call, row.data(), begin, end);
  });
  stack[0] = to_stack(std::move(output));
}

void boxed_max_pool2d_places(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 2});
  const Handle input = arguments.tensor();
  MaxPool2d call = call_of(input, arguments.integers());
  require(call.dtype == DType::kFloat32, "max_pool2d: expected input of float32", input);
  require(
      call.source_channel <= std::numeric_limits<int32_t>::max(),
      "max_pool2d: expected input with planes below 2^31 elements", input);
  Handle output = empty_results(call, input, input.dtype());
  Handle places = empty_results(call, input, aoti_torch_dtype_int32());
  call.dest = output.data();
  int32_t* const found = static_cast<int32_t*>(places.data());
  for_planes(input, call.source_channel, [&](int64_t begin, int64_t end) {
    cpu_kernels().max_pool2d_places(call, found, begin, end);
  });
  stack[0] = to_stack(std::move(output));
  stack[1] = to_stack(std::move(places));
}

void boxed_max_pool2d_backward(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {3, 1});
  Handle gradient = arguments.tensor();
  const Handle places = arguments.tensor();
  const std::vector<int64_t> plane = arguments.integers();
  require(
      places.dtype() == aoti_torch_dtype_int32() && places.dim() == 4 && places.is_contiguous(),
      "max_pool2d: expected places as the forward pass returns them", places);
  require(
      gradient.dtype() == aoti_torch_dtype_float32() && gradient.dim() == 4 &&
          std::equal(gradient.sizes(), gradient.sizes() + 4, places.sizes()),
      "max_pool2d: expected gradient of float32 in the shape of places", gradient);
  require(
      plane.size() == 2 && plane[0] > 0 && plane[1] > 0 && plane[0] <= std::numeric_limits<int32_t>::max() / plane[1],
      "max_pool2d: expected size to be the height and width of the input", plane);
  if (!gradient.is_contiguous()) gradient = contiguous(gradient);
  const int64_t* const sizes = places.sizes();
  const int64_t dest_sizes[] = {sizes[0], sizes[1], plane[0], plane[1]};
  const int64_t results = sizes[2] * sizes[3], elements = plane[0] * plane[1];
  Handle output = empty(dest_sizes, 4, gradient.dtype(), gradient);
  const float* const from = static_cast<const float*>(gradient.data());
  const int32_t* const found = static_cast<const int32_t*>(places.data());
  float* const to = static_cast<float*>(output.data());
  std::atomic<bool> inside{true};
  const int64_t in_l1 = std::max<int64_t>(1, kGrain / 4 / elements);  // planes, which are still there to be added to
  for_planes(places, elements, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      if ((p - begin) % in_l1 == 0) {
        const int64_t cleared = std::min(in_l1, end - p) * elements;
        std::memset(to + p * elements, 0, static_cast<size_t>(cleared) * sizeof(float));
      }
      for (int64_t i = p * results; i < (p + 1) * results; ++i) {
        if (found[i] < 0 || found[i] >= elements) {
          inside = false;
          continue;
        }
        to[p * elements + found[i]] += from[i];
      }
    }
  });
  if (!inside) throw std::invalid_argument("max_pool2d: expected places within a plane, got one outside");
  stack[0] = to_stack(std::move(output));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_max_pool2d", &sparsekernels::boxed_max_pool2d);
  m.impl("_max_pool2d_places", &sparsekernels::boxed_max_pool2d_places);
  m.impl("_max_pool2d_backward", &sparsekernels::boxed_max_pool2d_backward);
}
