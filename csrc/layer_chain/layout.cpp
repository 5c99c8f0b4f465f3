// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "layer_chain/layout.h"

#include <algorithm>

namespace sparsekernels {
namespace {

// The vectors of all channels between each other, where nothing else is wanted: what is stored for a vector of
// positions is in one place, and not on as many pages as there are channels.
ChainLayout interleaved_layout(const ChainTensor& tensor, int64_t images) {
  const int64_t vector_stride = (tensor.size[0] | 1) * kLanes;
  return {
      .images = images,
      .channel = kLanes,
      .vector_stride = vector_stride,
      .image = divide_up(tensor.size[1] * tensor.size[2] * images, kLanes) * vector_stride};
}

// Whether a layer reads its source from such a layout.
bool can_read(const ChainLayer& layer, const ChainLayerPlan& plan, const ChainLayout& layout) {
  return plane_order(layout.vector_stride) == PlaneOrder::kPlanar || plan.wanted == layout ||
         (layer.convolution() && plan.gathers && layout.images == 1);
}

// Whether all strips of a result of `columns` columns begin at whole vectors.
bool strips_are_vectors(const jit::ForwardPlan& plan, int64_t columns) {
  if (plan.strips[1] > 1) return plan.strips[0] == 1 && plan.strip[0] == 1;  // of one row, in whole vectors
  return plan.strips[0] == 1 || plan.strip[0] * columns * plan.images % kLanes == 0;
}

// Whether a layer stores its result in such a layout, its source being in that one.
bool can_store(
    const ChainLayer& layer, const ChainLayerPlan& one, const ChainTensor& result, const ChainLayout& layout,
    const ChainLayout& source) {
  if (layer.pooling()) return layout.images == source.images;
  const jit::ForwardPlan& plan = one.plan;
  if (!one.exchanges_planes || !plan.gapless || plan.images != layout.images) return false;
  if (layout.images > 1 && layer.residual()) return false;
  return strips_are_vectors(plan, result.size[2]);
}

}  // namespace

ChainLayout plain_layout(const int64_t (&size)[3]) {
  const int64_t positions = size[1] * size[2];
  return {.images = 1, .channel = positions, .vector_stride = kLanes, .image = size[0] * positions, .is_plain = true};
}

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

ChainLayout planes_as_layout(const Lattice& lattice, const jit::ForwardPlan& plan, const ChainTensor& source) {
  const ChainLayout plain = plain_layout(source.size);
  const int64_t positions = source.size[1] * source.size[2], images = plan.images, vector_stride = plan.vector_stride;
  if (lattice.groups != 1 || lattice.some_reach_nothing || plan.phases != 1) return plain;
  if (positions * images < kLanes || positions < 2 || source.size[0] < 2)
    return plain;  // it may be described otherwise
  if (lattice.is_flat() && lattice.size[0] == 1 && lattice.size[1] == positions &&
      plane_order(vector_stride) == PlaneOrder::kInterleaved)
    return {
        .images = images,
        .channel = kLanes,
        .vector_stride = vector_stride,
        .image = divide_up(positions * images, kLanes) * vector_stride,
        .around = plan.back_floats};
  const int64_t above = -lattice.origin[0], rows = lattice.size[0] + lattice.most_shift[0];
  const bool is_copy = plan.strips[1] == 1 && plan.pitch == source.size[2] && plan.first_column[0] == 0 &&
                       lattice.source_step[0] == 1 && lattice.source_step[1] == 1 && above >= 0 &&
                       rows >= above + source.size[1];
  if (!is_copy) return plain;
  // from floats of a plane to those of all channels, where these lie between each other
  const auto spread = [&](int64_t floats) {
    return plane_order(vector_stride) == PlaneOrder::kPlanar ? floats : floats / kLanes * vector_stride;
  };
  const int64_t row = plan.pitch * images, below = (rows - above - source.size[1]) * row;
  if (plane_order(vector_stride) == PlaneOrder::kInterleaved && row % kLanes != 0)
    return plain;  // strips and images would begin within vectors
  const int64_t around = plan.front_floats + plan.back_floats, first = plan.front_floats + spread(above * row);
  if (plane_order(vector_stride) == PlaneOrder::kInterleaved)  // any strip of rows is a part of all of them
    return {
        .images = images,
        .channel = kLanes,
        .vector_stride = vector_stride,
        .image = spread(rows * row),
        .first = first,
        .planes = plan.front_floats,
        .below = spread(below),
        .around = around};
  if (images != 1 || plan.strips[0] != 1) return plain;
  return {
      .images = 1,
      .channel = plan.channel_floats,
      .vector_stride = kLanes,
      .image = plan.microbatch_floats,
      .first = first,
      .planes = plan.front_floats,
      .below = below + plan.behind_floats,
      .around = around};
}

// Pooling of kMostImages interleaved images reads and writes vectors: its source should be interleaved if the only
// reader of its result wants that interleaved.
void let_pools_want(
    const std::vector<ChainLayer>& layers, const std::vector<ChainTensor>& tensors,
    std::vector<ChainLayerPlan>& plans) {
  for (size_t pool = layers.size(); pool-- > 0;) {
    if (!layers[pool].pooling()) continue;
    const int result = static_cast<int>(pool) + 1;
    int readers = 0;
    const ChainLayout* wanted = nullptr;
    for (size_t i = pool + 1; i < layers.size(); ++i) {
      if (layers[i].source == result) ++readers, wanted = &plans[i].wanted;
      if (layers[i].adds(result)) readers = 2;
    }
    if (readers == 1 && wanted->images == jit::kMostImages)
      plans[pool].wanted = interleaved_layout(tensors[static_cast<size_t>(layers[pool].source)], jit::kMostImages);
  }
}

// A tensor has the layout that one reader wants, if its producer can store that and all other readers can read it. A
// residual may have any layout where kernels add it, except interleaved images; other layers need it in the layout in
// which they store the sum.
void choose_layouts(
    const std::vector<ChainLayer>& layers, std::vector<ChainLayerPlan>& plans, std::vector<ChainTensor>& tensors) {
  const size_t count = layers.size();
  let_pools_want(layers, tensors, plans);
  for (size_t tensor = 1; tensor <= count; ++tensor) {
    ChainTensor& one = tensors[tensor];
    const ChainLayer& maker = layers[tensor - 1];
    std::vector<size_t> readers;
    bool may_move = true, is_residual = false;
    for (size_t i = tensor; i < count; ++i) {
      if (layers[i].source == static_cast<int>(tensor)) readers.push_back(i);
      if (!layers[i].adds(static_cast<int>(tensor))) continue;
      is_residual = true;
      may_move = may_move && plans[i].exchanges_planes && plans[i].plan.direct;
      may_move = may_move && strips_are_vectors(plans[i].plan, one.size[2]);
    }
    if (!may_move) continue;
    std::vector<ChainLayout> wanted;
    for (const size_t i : readers) wanted.push_back(plans[i].wanted);
    if (readers.empty() && one.size[0] > 1) wanted.push_back(interleaved_layout(one, 1));
    const ChainLayout& source = tensors[static_cast<size_t>(maker.source)].layout;
    for (const ChainLayout& layout : wanted) {
      const auto reads = [&](size_t i) { return can_read(layers[i], plans[i], layout); };
      if (layout.is_plain || (is_residual && layout.images > 1)) continue;
      if (!can_store(maker, plans[tensor - 1], one, layout, source)) continue;
      if (!std::all_of(readers.begin(), readers.end(), reads)) continue;
      one.layout = layout;
      break;
    }
  }
}

}  // namespace sparsekernels
