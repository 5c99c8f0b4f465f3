// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

#include "layer_chain/prepare.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/jit/kernel_cache.h"

namespace sparsekernels {

namespace {

// Thrown where the system gives no executable memory for kernels that layouts were chosen for.
struct KernelsRefused {};

Lattice lattice_of(
    const ChainLayer& layer, const std::vector<ChainTensor>& tensors, size_t result, DType dtype, int64_t images) {
  const Activation source = activation_of(tensors[static_cast<size_t>(layer.source)], dtype, images, nullptr);
  const Activation dest = activation_of(tensors[result], dtype, images, nullptr);
  return forward_lattice(layer.convolution()->geometry, source, dest);
}

PreparedLayer prepare_layer(
    const ChainLayer& layer, const ChainLayerPlan& plan, const std::vector<ChainTensor>& tensors, size_t result_tensor,
    DType dtype, int64_t images, const Threads& threads) {
  const ChainConvolution& convolution = *layer.convolution();
  PreparedLayer result;
  result.epilogue_floats.resize(static_cast<size_t>(kEpilogueHeader + convolution.pattern.rows));
  Epilogue epilogue = convolution.epilogue;
  const char some_place = 0;
  epilogue.residual = convolution.residual ? &some_place : nullptr;
  result.epilogue =
      pack_epilogue(epilogue, convolution.pattern.rows, dtype, &some_place, result.epilogue_floats.data());
  const ChainLayout &source = tensors[static_cast<size_t>(layer.source)].layout, &dest = tensors[result_tensor].layout;
  const ChainLayout& residual = tensors[static_cast<size_t>(convolution.residual.value_or(0))].layout;
  result.residual_is_elsewhere = convolution.residual && !(residual == dest);
  const Threads one = {1, threads.run};  // one will run it; all may compile it
  const auto lattice = [&](int64_t count) { return lattice_of(layer, tensors, result_tensor, dtype, count); };
  result.call = prepare_forward(
      lattice(images), convolution.pattern, result.epilogue.flags, one, plan.plan.images,
      result.residual_is_elsewhere ? std::optional(residual.channel) : std::nullopt, dest.images);
  jit::PlannedForward& planned = result.call.planned;
  const bool stores = result.call.engine == Engine::kJit && planned.plan.direct;
  if (!stores && !(dest.is_plain && !result.residual_is_elsewhere)) {
    if (result.call.engine == Engine::kTiled) throw KernelsRefused();
    throw std::logic_error("layer_chain: expected the plan that layouts were chosen for, got another");
  }
  if (result.call.engine == Engine::kTiled) {
    result.image_by_image = true;
    result.call = prepare_forward(lattice(1), convolution.pattern, result.epilogue.flags, one);
    return result;
  }
  planned.dest_vector_stride = dest.vector_stride;
  planned.residual_image = residual.image;
  planned.residual_channel = residual.channel;
  planned.residual_vector_stride = residual.vector_stride;
  planned.source_vector_stride = source.vector_stride;
  if (!source.is_plain && source == plan.wanted) {
    planned.planes_image = source.image;
    result.above = source.first - source.planes;
  }
  const int64_t narrow = convolution.pattern.dtype == DType::kFloat32 ? 0 : divide_up(convolution.pattern.nonzeros, 2);
  std::vector<float> halves(static_cast<size_t>(narrow));
  result.values.resize(static_cast<size_t>(convolution.pattern.nonzeros + 2 * jit::kValueBias));
  jit::arrange_values(
      planned.kernels->order(), convolution.pattern.values, convolution.pattern.dtype, threads, halves.data(),
      result.values.data());
  return result;
}

std::string size_text(const int64_t (&size)[3]) {
  return std::to_string(size[0]) + "x" + std::to_string(size[1]) + "x" + std::to_string(size[2]);
}

// Rows and columns of a layer's result for those of its input; zero where it does not fit.
void layer_size(const ChainLayer& layer, const int64_t (&from)[2], int64_t (&to)[2]) {
  for (int d = 0; d < 2; ++d) {
    int64_t padding, reach, stride;
    if (const MaxPool2d* const pooling = layer.pooling()) {
      padding = 2 * pooling->padding[d];
      reach = pooling->window[d];
      stride = pooling->stride[d];
    } else {
      const ChainConvolution& convolution = *layer.convolution();
      padding = convolution.geometry.padding[d] + convolution.padding_after[d];
      reach = convolution.geometry.dilation[d] * (convolution.geometry.kernel[d] - 1) + 1;
      stride = convolution.geometry.stride[d];
    }
    const int64_t span = from[d] + padding - reach;
    to[d] = span < 0 || from[d] == 0 ? 0 : span / stride + 1;
  }
}

}  // namespace

std::vector<ChainTensor> tensors_of(const std::vector<ChainLayer>& layers, const int64_t (&input)[4]) {
  std::vector<ChainTensor> tensors = {{.size = {input[1], input[2], input[3]}}};
  tensors[0].layout = plain_layout(tensors[0].size);
  for (size_t i = 0; i < layers.size(); ++i) {
    const ChainLayer& layer = layers[i];
    ChainTensor& source = tensors[static_cast<size_t>(layer.source)];
    const ChainConvolution* const convolution = layer.convolution();
    if (convolution && source.size[0] != convolution->input_channels) {
      throw std::invalid_argument(
          "layer_chain: expected input of " + std::to_string(convolution->input_channels) + " channels in layer " +
          std::to_string(i) + ", got " + std::to_string(source.size[0]));
    }
    const int64_t from[2] = {source.size[1], source.size[2]};
    int64_t to[2];
    layer_size(layer, from, to);
    if (to[0] == 0 || to[1] == 0) {
      throw std::invalid_argument(
          "layer_chain: expected input that layer " + std::to_string(i) + " fits into, got " + std::to_string(from[0]) +
          "x" + std::to_string(from[1]));
    }
    source.last_use = static_cast<int>(i);
    ChainTensor made = {.size = {convolution ? convolution->pattern.rows : source.size[0], to[0], to[1]}};
    if (layer.residual()) {
      ChainTensor& residual = tensors[static_cast<size_t>(*layer.residual())];
      if (!std::equal(made.size, made.size + 3, residual.size)) {
        throw std::invalid_argument(
            "layer_chain: expected residual of the size " + size_text(made.size) + " of the result of layer " +
            std::to_string(i) + ", got " + size_text(residual.size));
      }
      residual.last_use = static_cast<int>(i);
    }
    made.layout = plain_layout(made.size);
    tensors.push_back(made);
  }
  tensors.back().last_use = static_cast<int>(layers.size());
  return tensors;
}

namespace {

// Each layer by itself, of the whole batch, all tensors plain. `may_exchange`: planes.
std::vector<ChainLayerPlan> plan_layers(
    const std::vector<ChainLayer>& layers, const std::vector<ChainTensor>& tensors, DType dtype, int64_t batch,
    bool may_exchange) {
  std::vector<ChainLayerPlan> plans;
  for (size_t i = 0; i < layers.size(); ++i) {
    const ChainLayer& layer = layers[i];
    const ChainTensor& source = tensors[static_cast<size_t>(layer.source)];
    ChainLayerPlan one = {};
    one.wanted = plain_layout(source.size);
    one.plan.images = 1;
    if (const ChainConvolution* const convolution = layer.convolution()) {
      const ConvGeometry& geometry = convolution->geometry;
      // they may have changed since they were added
      const int64_t taps = geometry.kernel[0] * geometry.kernel[1];
      check_indices(convolution->pattern, convolution->input_channels / geometry.groups * taps);
      // Whatever the number of threads, so that bits do not depend on it.
      const int64_t most = std::min<int64_t>(jit::kMostImages, std::max<int64_t>(1, batch / cost::chain::kThreads));
      Lattice lattice = lattice_of(layer, tensors, i + 1, dtype, batch);
      merge_positions(lattice);
      one.plan = jit::make_forward_plan(
          lattice, jit::traits_of(convolution->pattern, lattice.dest_channels), 0, 1, std::nullopt, most);
      one.exchanges_planes = may_exchange && may_exchange_planes(lattice, convolution->pattern, one.plan);
      one.gathers = one.exchanges_planes && lattice.taps.size() == 1 && lattice.groups == 1 &&
                    !lattice.some_reach_nothing &&
                    one.plan.images * (source.elements() + kLanes * source.size[0]) < int64_t{1} << 30;
      if (one.exchanges_planes) one.wanted = planes_as_layout(lattice, one.plan, source);
    }
    plans.push_back(std::move(one));
  }
  return plans;
}

// What leads from one segment to another is plain. Pooling has as many images interleaved in its source as in its
// result, so that where one of these has become plain, the other does.
void make_plain_between(
    const std::vector<ChainLayer>& layers, const std::vector<ChainSegment>& segments,
    std::vector<ChainTensor>& tensors) {
  const auto make_plain = [](ChainTensor& tensor) { tensor.layout = plain_layout(tensor.size); };
  for (const ChainSegment& segment : segments) {
    make_plain(tensors[static_cast<size_t>(segment.first)]);
    make_plain(tensors[static_cast<size_t>(segment.last)]);
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < layers.size(); ++i) {
      ChainTensor &source = tensors[static_cast<size_t>(layers[i].source)], &made = tensors[i + 1];
      if (!layers[i].pooling() || source.layout.images == made.layout.images) continue;
      make_plain(source);
      make_plain(made);
      changed = true;
    }
  }
}

PreparedChain prepare_chain(
    const std::vector<ChainLayer>& layers, DType dtype, const int64_t (&input)[4], const Threads& threads,
    bool may_exchange) {
  PreparedChain result;
  std::copy_n(input, 4, result.input);
  result.threads = threads.count;
  result.tensors = tensors_of(layers, input);
  std::vector<ChainLayerPlan> plans = plan_layers(layers, result.tensors, dtype, input[0], may_exchange);
  choose_layouts(layers, plans, result.tensors);
  result.segments = plan_chain(layers, plans, result.tensors, dtype, input[0], threads.count);
  make_plain_between(layers, result.segments, result.tensors);
  for (std::vector<PreparedLayer>& prepared : result.layers) prepared.resize(layers.size());
  for (const ChainSegment& segment : result.segments) {
    const int64_t images[2] = {segment.images, input[0] % segment.images};
    for (int left = 0; left < 2; ++left) {
      if (images[left] == 0 || images[left] > input[0]) continue;
      for (size_t i = static_cast<size_t>(segment.first); i < static_cast<size_t>(segment.last); ++i) {
        if (layers[i].pooling()) continue;
        result.layers[left][i] =
            prepare_layer(layers[i], plans[i], result.tensors, i + 1, dtype, images[left], threads);
      }
    }
  }
  return result;
}

}  // namespace

PreparedChain prepare_chain(
    const std::vector<ChainLayer>& layers, DType dtype, const int64_t (&input)[4], const Threads& threads) {
  try {
    return prepare_chain(layers, dtype, input, threads, true);
  } catch (const KernelsRefused&) {  // tiles read and store plain tensors
    return prepare_chain(layers, dtype, input, threads, false);
  }
}

}  // namespace sparsekernels
