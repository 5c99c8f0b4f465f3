// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A chain of layers, a few images at a time. Each layer runs as it would alone, on one thread; layer_chain/plan.h says
// how many images, and where their tensors lie.
#include "layer_chain/call.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "base/workspace.h"
#include "isa/kernels.h"
#include "layer_chain/layout.h"
#include "layer_chain/plan.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/jit/forward_driver.h"
#include "sparse_conv2d/jit/kernel_cache.h"

namespace sparsekernels {
namespace {

thread_local Workspace tensor_workspace;  // a thread's tensors within a segment

Threads one_thread() {
  return {1, [](int64_t count, const ParallelBody& body) { body(0, count); }};
}

// Where vectors lie between each other, rows and columns are those of one channel, without gaps.
Activation activation_of(const ChainTensor& tensor, DType dtype, int64_t images, void* place) {
  const ChainLayout& layout = tensor.layout;
  Activation result;
  result.data = place == nullptr ? nullptr : static_cast<char*>(place) + layout.first * element_size(dtype);
  result.dtype = dtype;
  result.size[0] = images;
  std::copy_n(tensor.size, 3, result.size + 1);
  result.stride[0] = layout.image;
  result.stride[1] = layout.channel;
  result.stride[2] = tensor.size[2];
  result.stride[3] = 1;
  return result;
}

// A sparse convolution of so many images, but for where its tensors lie.
struct PreparedLayer {
  Lattice lattice = {};
  jit::Correlation correlation;        // without kernels: it runs as it would alone
  bool residual_is_elsewhere = false;  // than where the result lies: in another layout
  int64_t above = 0;                   // floats from where the planes it reads begin to the source's first element
  std::vector<float> values;
  std::vector<float> epilogue_floats;
  PackedEpilogue epilogue = {};
};

}  // namespace

struct PreparedChain {
  int64_t input[4];
  int64_t threads;
  std::vector<ChainTensor> tensors;
  std::vector<ChainSegment> segments;
  // of a layer, for its segment's images, and for those that are left in the end
  std::vector<PreparedLayer> layers[2];
};

namespace {

Lattice lattice_of(
    const ChainLayer& layer, const std::vector<ChainTensor>& tensors, size_t result, DType dtype, int64_t images) {
  const Activation source = activation_of(tensors[static_cast<size_t>(layer.source)], dtype, images, nullptr);
  const Activation dest = activation_of(tensors[result], dtype, images, nullptr);
  Lattice lattice = forward_lattice(layer.convolution()->geometry, source, dest);
  merge_positions(lattice);
  return lattice;
}

PreparedLayer prepare_layer(
    const ChainLayer& layer, const ChainLayerPlan& plan, const std::vector<ChainTensor>& tensors, size_t result_tensor,
    DType dtype, int64_t images, const Threads& threads) {
  const ChainConvolution& convolution = *layer.convolution();
  PreparedLayer result;
  result.lattice = lattice_of(layer, tensors, result_tensor, dtype, images);
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
  result.correlation = jit::plan_correlation(
      result.lattice, convolution.pattern, result.epilogue.flags, one, plan.plan.images,
      result.residual_is_elsewhere ? std::optional(residual.channel) : std::nullopt, dest.images);
  const bool stores = result.correlation.kernels != nullptr && result.correlation.plan.direct;
  if (!stores && !(dest.is_plain && !result.residual_is_elsewhere)) throw std::logic_error("chain: another plan");
  if (result.correlation.kernels == nullptr) return result;
  result.correlation.dest_vector_stride = dest.vector_stride;
  result.correlation.residual_image = residual.image;
  result.correlation.residual_channel = residual.channel;
  result.correlation.residual_vector_stride = residual.vector_stride;
  result.correlation.source_vector_stride = source.vector_stride;
  if (!source.is_plain && source == plan.wanted) {
    result.correlation.planes_image = source.image;
    result.above = source.first - source.planes;
  }
  const int64_t narrow = convolution.pattern.dtype == DType::kFloat32 ? 0 : divide_up(convolution.pattern.nonzeros, 2);
  std::vector<float> halves(static_cast<size_t>(narrow));
  result.values.resize(static_cast<size_t>(convolution.pattern.nonzeros + 2 * jit::kValueBias));
  jit::arrange_values(
      result.correlation.kernels->order(), convolution.pattern.values, convolution.pattern.dtype, threads,
      halves.data(), result.values.data());
  return result;
}

void run_pooling(
    const MaxPool2d& pooling, const Activation& source, const Activation& dest, const ChainLayout& from,
    const ChainLayout& to) {
  MaxPool2d call = pooling;
  call.source = source.data;
  call.dest = dest.data;
  call.dtype = source.dtype;
  for (int d = 0; d < 2; ++d) {
    call.source_size[d] = source.size[2 + d];
    call.dest_size[d] = dest.size[2 + d];
  }
  call.channels = source.size[1];
  call.source_image = source.stride[0];
  call.source_channel = source.stride[1];
  call.dest_image = dest.stride[0];
  call.dest_channel = dest.stride[1];
  call.source_vector_stride = from.vector_stride;
  call.dest_vector_stride = to.vector_stride;
  call.images = from.images;
  std::vector<float> row(static_cast<size_t>(call.row_floats()));
  const int64_t planes = from.images == 1 ? source.size[0] * source.size[1] : divide_up(source.size[0], from.images);
  cpu_kernels().max_pool2d(call, row.data(), 0, planes);
}

// Zeros above and below each channel's plane, or all of them.
void clear_around(const ChainTensor& tensor, const Activation& dest) {
  const ChainLayout& layout = tensor.layout;
  const int64_t above = layout.first - layout.planes, positions = tensor.size[1] * tensor.size[2];
  if (above + layout.below == 0) return;
  for (int64_t image_block = 0; image_block < divide_up(dest.size[0], layout.images); ++image_block) {
    float* const begin = static_cast<float*>(dest.data) + image_block * layout.image;
    if (plane_order(layout.vector_stride) == PlaneOrder::kInterleaved) {  // whole vectors, of all channels
      std::fill_n(begin - above, above, 0.0f);
      std::fill_n(begin + positions * layout.images / kLanes * layout.vector_stride, layout.below, 0.0f);
      continue;
    }
    for (int64_t channel = 0; channel < tensor.size[0]; ++channel) {
      float* const first = begin + channel * layout.channel;
      std::fill_n(first - above, above, 0.0f);
      std::fill_n(first + positions, layout.below, 0.0f);
    }
  }
}

void run_convolution(
    const ChainConvolution& layer, const PreparedLayer& prepared, const Activation& source, const Activation& dest,
    const void* residual, float* epilogue_floats) {
  if (prepared.correlation.kernels == nullptr) {
    // Tiles are planned by the number of images, which depends on the threads here, and bits must not.
    Activation from = source, to = dest;
    from.size[0] = to.size[0] = 1;
    Epilogue epilogue = layer.epilogue;
    for (int64_t image = 0; image < source.size[0]; ++image) {
      const auto at = [&](const void* data, const Activation& tensor) -> char* {
        return const_cast<char*>(static_cast<const char*>(data)) +
               image * tensor.stride[0] * element_size(tensor.dtype);
      };
      from.data = at(source.data, source);
      to.data = at(dest.data, dest);
      epilogue.residual = residual == nullptr ? nullptr : at(residual, dest);
      sparse_conv2d(layer.geometry, layer.pattern, from, epilogue, to, one_thread());
    }
    return;
  }
  Lattice lattice = prepared.lattice;
  lattice.source.data = source.data;
  if (prepared.correlation.planes_image) lattice.source.data = static_cast<float*>(source.data) - prepared.above;
  lattice.dest.data = dest.data;
  PackedEpilogue packed = prepared.epilogue;
  if (residual != nullptr) {  // kernels read where it is from memory, which each thread has its own of
    packed.residual_bytes = distance(residual, dest.data);
    std::copy(prepared.epilogue_floats.begin(), prepared.epilogue_floats.end(), epilogue_floats);
    std::memcpy(epilogue_floats, &packed.residual_bytes, sizeof packed.residual_bytes);
    packed.bias = epilogue_floats + kEpilogueHeader;
    if (prepared.residual_is_elsewhere) {
      packed.residual = static_cast<const float*>(residual);
      packed.header = epilogue_floats;
    }
  }
  jit::run_items(
      lattice, prepared.correlation, layer.pattern, prepared.values.data(), packed, 0,
      prepared.correlation.items(lattice));
}

}  // namespace

LayerChain::~LayerChain() = default;

int LayerChain::add(const ChainLayer& layer) {
  const int tensors = static_cast<int>(layers_.size()) + 1;
  const auto exists = [&](int tensor) { return tensor >= 0 && tensor < tensors; };
  const int residual = layer.residual().value_or(0);
  if (!exists(layer.source) || !exists(residual)) {
    throw std::invalid_argument(
        "layer_chain: expected source and residual below " + std::to_string(tensors) + ", got " +
        std::to_string(layer.source) + " and " + std::to_string(residual));
  }
  layers_.push_back(layer);
  const std::lock_guard<std::mutex> lock(mutex_);
  prepared_.clear();
  return tensors;
}

namespace {

// Rows and columns of what a layer makes of so many; zero where it does not fit.
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
    const int64_t room = from[d] + padding - reach;
    to[d] = room < 0 || from[d] == 0 ? 0 : room / stride + 1;
  }
}

std::string size_text(const int64_t (&size)[3]) {
  return std::to_string(size[0]) + "x" + std::to_string(size[1]) + "x" + std::to_string(size[2]);
}

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

// Each layer by itself, of the whole batch, all tensors plain.
std::vector<ChainLayerPlan> plan_layers(
    const std::vector<ChainLayer>& layers, const std::vector<ChainTensor>& tensors, DType dtype, int64_t batch) {
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
      const Lattice lattice = lattice_of(layer, tensors, i + 1, dtype, batch);
      one.plan = jit::make_forward_plan(lattice, convolution->pattern.nonzeros, 0, 1, std::nullopt, most);
      one.by_jit = one.plan.is_worth_it && jit::may_use_jit(convolution->pattern) && dtype == DType::kFloat32;
      one.gathers = one.by_jit && lattice.taps.size() == 1 && lattice.groups == 1 && !lattice.some_reach_nothing &&
                    one.plan.images * (source.elements() + kLanes * source.size[0]) < int64_t{1} << 30;
      if (one.by_jit) one.wanted = planes_as_layout(lattice, one.plan, source);
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

}  // namespace

void LayerChain::output_size(const int64_t (&input)[4], int64_t (&output)[4]) const {
  const std::vector<ChainTensor> tensors = tensors_of(layers_, input);
  output[0] = input[0];
  std::copy_n(tensors.back().size, 3, output + 1);
}

std::shared_ptr<const PreparedChain> LayerChain::prepared(const int64_t (&input)[4], const Threads& threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto fits = [&](const std::shared_ptr<const PreparedChain>& one) {
    return std::equal(input, input + 4, one->input) && one->threads == threads.count;
  };
  const auto found = std::find_if(prepared_.begin(), prepared_.end(), fits);
  if (found != prepared_.end()) {
    std::rotate(prepared_.begin(), found, found + 1);
    return prepared_.front();
  }
  const auto result = std::make_shared<PreparedChain>();
  std::copy_n(input, 4, result->input);
  result->threads = threads.count;
  result->tensors = tensors_of(layers_, input);
  std::vector<ChainLayerPlan> plans = plan_layers(layers_, result->tensors, dtype_, input[0]);
  choose_layouts(layers_, plans, result->tensors);
  result->segments = plan_chain(layers_, plans, result->tensors, dtype_, input[0], threads.count);
  make_plain_between(layers_, result->segments, result->tensors);
  for (std::vector<PreparedLayer>& layers : result->layers) layers.resize(layers_.size());
  for (const ChainSegment& segment : result->segments) {
    const int64_t images[2] = {segment.images, input[0] % segment.images};
    for (int left = 0; left < 2; ++left) {
      if (images[left] == 0 || images[left] > input[0]) continue;
      for (size_t i = static_cast<size_t>(segment.first); i < static_cast<size_t>(segment.last); ++i) {
        if (layers_[i].pooling()) continue;
        result->layers[left][i] =
            prepare_layer(layers_[i], plans[i], result->tensors, i + 1, dtype_, images[left], threads);
      }
    }
  }
  constexpr size_t kMostSizes = 4;
  if (prepared_.size() == kMostSizes) prepared_.pop_back();
  prepared_.insert(prepared_.begin(), result);
  return result;
}

void LayerChain::run(
    const Activation& input, const Activation& output, const Threads& threads,
    const std::function<void*(int64_t)>& allocate) {
  if (input.size[0] == 0) return;
  if (layers_.empty()) throw std::invalid_argument("layer_chain: expected a chain with layers, got none");
  const std::shared_ptr<const PreparedChain> chain = prepared(input.size, threads);
  const int64_t batch = input.size[0], element = element_size(dtype_);
  // What leads from one segment into the next, of the whole batch: two take turns.
  int64_t most = 0, most_rows = 0;
  for (const ChainSegment& segment : chain->segments)
    if (segment.last < static_cast<int>(layers_.size()))
      most = std::max(most, chain->tensors[static_cast<size_t>(segment.last)].elements());
  for (const ChainLayer& layer : layers_)
    if (layer.convolution()) most_rows = std::max(most_rows, layer.convolution()->pattern.rows);
  void* between[2] = {};
  for (size_t i = 0; i < 2 && i + 1 < chain->segments.size(); ++i) between[i] = allocate(batch * most * element);
  const void* from = input.data;
  for (size_t p = 0; p < chain->segments.size(); ++p) {
    const ChainSegment& segment = chain->segments[p];
    void* const to = p + 1 == chain->segments.size() ? output.data : between[p % 2];
    const int64_t from_elements = chain->tensors[static_cast<size_t>(segment.first)].elements();
    const int64_t to_elements = chain->tensors[static_cast<size_t>(segment.last)].elements();
    threads.run(divide_up(batch, segment.images), [&](int64_t begin, int64_t end) {
      const TrimWorkspace trim{tensor_workspace};
      float *tensors, *epilogue_floats;
      WorkspaceLayout own;
      own.add(&tensors, divide_up(segment.elements * segment.images * element, 4));
      own.add(&epilogue_floats, kEpilogueHeader + most_rows);
      own.allocate(tensor_workspace);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t first = item * segment.images, images = std::min(segment.images, batch - first);
        const auto place = [&](int tensor) -> void* {
          if (tensor == segment.first)
            return const_cast<char*>(static_cast<const char*>(from)) + first * from_elements * element;
          if (tensor == segment.last) return static_cast<char*>(to) + first * to_elements * element;
          return reinterpret_cast<char*>(tensors) +
                 segment.places[static_cast<size_t>(tensor - 1 - segment.first)] * segment.images * element;
        };
        for (int i = segment.first; i < segment.last; ++i) {
          const ChainLayer& layer = layers_[static_cast<size_t>(i)];
          const auto activation = [&](int tensor) {
            const size_t t = static_cast<size_t>(tensor);
            return activation_of(chain->tensors[t], dtype_, images, place(tensor));
          };
          const Activation source = activation(layer.source), dest = activation(i + 1);
          const ChainTensor& made = chain->tensors[static_cast<size_t>(i) + 1];
          clear_around(made, dest);
          if (const MaxPool2d* const pooling = layer.pooling()) {
            run_pooling(*pooling, source, dest, chain->tensors[static_cast<size_t>(layer.source)].layout, made.layout);
            continue;
          }
          const PreparedLayer& prepared = chain->layers[images == segment.images ? 0 : 1][static_cast<size_t>(i)];
          const std::optional<int> residual = layer.residual();
          run_convolution(
              *layer.convolution(), prepared, source, dest, residual ? activation(*residual).data : nullptr,
              epilogue_floats);
        }
      }
    });
    from = to;
  }
}

}  // namespace sparsekernels
