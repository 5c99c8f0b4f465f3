// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A chain of layers, a few images at a time. Each layer runs as it would alone, on one thread; layer_chain/plan.h says
// how many images, and where their tensors lie.
#include "layer_chain/call.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "base/workspace.h"
#include "isa/kernels.h"
#include "layer_chain/prepare.h"

namespace sparsekernels {
namespace {

thread_local Workspace tensor_workspace;  // a thread's tensors within a segment

Threads one_thread() {
  return {1, [](int64_t count, const ParallelBody& body) { body(0, count); }};
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
  for (int64_t microbatch = 0; microbatch < divide_up(dest.size[0], layout.images); ++microbatch) {
    float* const begin = static_cast<float*>(dest.data) + microbatch * layout.image;
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

// Each image by itself: the bits of a layer that is called with one.
void run_image_by_image(
    const ChainConvolution& layer, const PreparedLayer& prepared, const Activation& source, const Activation& dest,
    const void* residual) {
  check_rows(layer.pattern);  // tiles read them, and they may have changed
  PreparedForward call = prepared.call;
  Epilogue epilogue = layer.epilogue;
  for (int64_t image = 0; image < source.size[0]; ++image) {
    const auto at = [&](const void* data, const Activation& tensor) -> char* {
      return const_cast<char*>(static_cast<const char*>(data)) + image * tensor.stride[0] * element_size(tensor.dtype);
    };
    call.lattice.source.data = at(source.data, source);
    call.lattice.dest.data = at(dest.data, dest);
    epilogue.residual = residual == nullptr ? nullptr : at(residual, dest);
    const PackedEpilogue packed = packed_epilogue(epilogue, layer.pattern.rows, source.dtype, call.lattice.dest.data);
    run(call, layer.pattern, packed, one_thread());
  }
}

void run_convolution(
    const ChainConvolution& layer, const PreparedLayer& prepared, const Activation& source, const Activation& dest,
    const void* residual, float* epilogue_floats) {
  if (prepared.image_by_image) return run_image_by_image(layer, prepared, source, dest, residual);
  const jit::PlannedForward& planned = prepared.call.planned;
  Lattice lattice = prepared.call.lattice;
  lattice.source.data = source.data;
  if (planned.planes_image) lattice.source.data = static_cast<float*>(source.data) - prepared.above;
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
  jit::run_items(lattice, planned, layer.pattern, prepared.values.data(), packed, 0, planned.items(lattice));
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
  std::vector<std::shared_ptr<const PreparedChain>> dropped;  // destroyed after the lock is released
  const std::lock_guard<ForkSafeMutex> lock(mutex_);
  prepared_.swap(dropped);
  return tensors;
}

void LayerChain::output_size(const int64_t (&input)[4], int64_t (&output)[4]) const {
  const std::vector<ChainTensor> tensors = tensors_of(layers_, input);
  output[0] = input[0];
  std::copy_n(tensors.back().size, 3, output + 1);
}

std::shared_ptr<const PreparedChain> LayerChain::prepared(const int64_t (&input)[4], const Threads& threads) {
  const auto fits = [&](const std::shared_ptr<const PreparedChain>& one) {
    return std::equal(input, input + 4, one->input) && one->threads == threads.count;
  };
  // Whether one that fits is in front, where it is put.
  const auto find = [&] {
    const auto found = std::find_if(prepared_.begin(), prepared_.end(), fits);
    if (found == prepared_.end()) return false;
    std::rotate(prepared_.begin(), found, found + 1);
    return true;
  };
  {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (find()) return prepared_.front();
  }
  const auto result = std::make_shared<const PreparedChain>(prepare_chain(layers_, dtype_, input, threads));
  std::shared_ptr<const PreparedChain> last;  // destroyed after the lock is released
  const std::lock_guard<ForkSafeMutex> lock(mutex_);
  if (find()) return prepared_.front();  // another thread was first
  constexpr size_t kMostSizes = 4;
  if (prepared_.size() == kMostSizes) {
    last.swap(prepared_.back());
    prepared_.pop_back();
  }
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
  // What leads from one segment into the next, of the whole batch: two buffers alternate.
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
