// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Chains of layers for inference on the CPU as torch operators. A chain has a handle; the caller that creates it
// frees it. The schemas are defined in Python (sparsekernels/ops/layer_chain/implementations.py).
#include "layer_chain/call.h"

#include <algorithm>

#include "base/numbered.h"
#include "max_pool2d/glue.h"
#include "sparse_conv2d/glue.h"

namespace sparsekernels {
namespace {

// A chain, and the tensors that its layers point into.
struct OwnedChain {
  explicit OwnedChain(DType dtype) : chain(dtype) {}
  std::vector<Handle> tensors;
  LayerChain chain;
};

// Never destroyed: tensors may outlive static objects.
Numbered<OwnedChain>* const all_chains =
    new Numbered<OwnedChain>("layer_chain: expected chain to be the number of one made and not freed");

Numbered<OwnedChain>& chains() {
  return *all_chains;
}

void boxed_make(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {1, 1});
  const Handle like = arguments.tensor();
  const DType dtype = dtype_of(like, "layer_chain");
  require(dtype != DType::kFloat64, "layer_chain: expected like of float32, bfloat16 or float16", like);
  stack[0] = torch::stable::detail::from(chains().add(std::make_shared<OwnedChain>(dtype)));
}

void boxed_add_convolution(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {11, 1});
  const std::shared_ptr<OwnedChain> owner = chains().find(arguments.integer());
  const int source = static_cast<int>(arguments.integer());
  ChainConvolution layer;
  Handle values = contiguous_vector(arguments.tensor());
  Handle bias = arguments.optional_tensor();
  Handle crow = arguments.tensor(), col = arguments.tensor();
  const Geometry geometry(arguments.integers());
  layer.input_channels = arguments.integer();
  const int residual = static_cast<int>(arguments.integer());
  constexpr int kNone = -1;  // as Python says it
  if (residual != kNone) layer.residual = residual;
  const std::optional<double> low = arguments.optional_number(), high = arguments.optional_number();

  const DType dtype = owner->chain.dtype();
  const auto fits = [&](const Handle& tensor, int64_t size) {
    return tensor.dim() == 1 && tensor.sizes()[0] == size && tensor.is_contiguous() &&
           dtype_of(tensor, "layer_chain") == dtype && tensor.device_type() == aoti_torch_device_type_cpu();
  };
  layer.geometry = geometry.conv;
  std::copy_n(geometry.padding_after, 2, layer.padding_after);
  layer.pattern = pattern_of(crow, col, geometry);
  require(layer.pattern.rows > 0, "layer_chain: expected crow_indices of at least 1 output channel", crow);
  require(
      fits(values, layer.pattern.nonzeros),
      "layer_chain: expected values of the size of col_indices in the dtype of the chain", values);
  layer.pattern.values = values.data();
  layer.pattern.dtype = dtype;
  const int64_t channels = layer.input_channels, groups = geometry.conv.groups;
  require(
      channels > 0 && channels % groups == 0 &&
          channels / groups <= std::numeric_limits<int32_t>::max() / geometry.taps(),
      "layer_chain: expected channels to be a positive number that groups divide", channels);
  if (bias) {
    bias = contiguous_vector(std::move(bias));
    require(
        fits(bias, layer.pattern.rows),
        "layer_chain: expected bias of one element per output channel in the dtype of the chain", bias);
    layer.epilogue.bias = bias.data();
  }
  if (low) layer.epilogue.low = static_cast<float>(*low);
  if (high) layer.epilogue.high = static_cast<float>(*high);
  require(layer.epilogue.low <= layer.epilogue.high, "layer_chain: expected low of at most high", layer.epilogue.low);
  check_indices(layer.pattern, channels / groups * geometry.taps());
  const int result = owner->chain.add({.source = source, .operation = layer});
  for (Handle* tensor : {&values, &bias, &crow, &col})
    if (*tensor) owner->tensors.push_back(std::move(*tensor));
  stack[0] = torch::stable::detail::from(int64_t{result});
}

void boxed_add_max_pool(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {3, 1});
  const std::shared_ptr<OwnedChain> owner = chains().find(arguments.integer());
  const int source = static_cast<int>(arguments.integer());
  const MaxPool2d pooling = pooling_of(arguments.integers());
  stack[0] = torch::stable::detail::from(int64_t{owner->chain.add({.source = source, .operation = pooling})});
}

void boxed_free(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {1, 0});
  chains().free(arguments.integer());
}

void boxed_run(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 1});
  Handle input = arguments.tensor();
  const std::shared_ptr<OwnedChain> owner = chains().find(arguments.integer());
  require(input.dim() == 4, "layer_chain: expected input of 4 dimensions", input);
  require(
      dtype_of(input, "layer_chain") == owner->chain.dtype(), "layer_chain: expected input of the dtype of the chain",
      input);
  if (!input.is_contiguous()) input = contiguous(input);
  Activation source, dest;
  source.data = input.data();
  source.dtype = dest.dtype = owner->chain.dtype();
  std::copy_n(input.sizes(), 4, source.size);
  for (const int64_t size : source.size)
    require(size < int64_t{1} << 30, "layer_chain: expected input of sizes below 2^30", size);
  owner->chain.output_size(source.size, dest.size);
  Handle output = empty(dest.size, 4, input.dtype(), input);
  dest.data = output.data();
  std::vector<Handle> held;
  owner->chain.run(source, dest, torch_threads(), [&](int64_t bytes) {
    const int64_t count = (bytes + 3) / 4;
    held.push_back(empty(&count, 1, aoti_torch_dtype_float32(), input));
    return held.back().data();
  });
  stack[0] = to_stack(std::move(output));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_make_layer_chain", &sparsekernels::boxed_make);
  m.impl("_run_layer_chain", &sparsekernels::boxed_run);
  m.impl("_add_sparse_conv2d", &sparsekernels::boxed_add_convolution);
}

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CompositeExplicitAutograd, m) {
  m.impl("_add_max_pool2d", &sparsekernels::boxed_add_max_pool);
  m.impl("_free_layer_chain", &sparsekernels::boxed_free);
}
