// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/tiled/work_items.h"

#include <algorithm>

#include "isa/kernels.h"

namespace sparsekernels::tiled {
namespace {

VectorOrder order_of(const Activation& tensor, const LaneGrid& lanes, int64_t channels) {
  if (lanes.adjacent) return VectorOrder::kLanes;
  if (transposes_channels(tensor, channels)) return VectorOrder::kChannels;
  return tensor.stride[3] == 1 ? VectorOrder::kColumns : VectorOrder::kScattered;
}

}  // namespace

WorkItem work_item_at(const Plan& plan, int64_t group, int64_t index) {
  WorkItem work_item = {};
  work_item.group = group;
  const int64_t columns = plan.items_of(2), rows = plan.items_of(1);
  work_item.first[1] = index % columns * plan.item_columns;
  work_item.first[0] = index / columns % rows * plan.item_rows;
  work_item.first_lane_set = index / columns / rows * plan.item_lane_sets;
  work_item.lane_sets = std::min(plan.item_lane_sets, plan.lanes.lane_sets() - work_item.first_lane_set);
  work_item.size[0] = std::min(plan.item_rows, plan.lanes.size[0] - work_item.first[0]);
  work_item.size[1] = std::min(plan.item_columns, plan.lanes.size[1] - work_item.first[1]);
  return work_item;
}

Side source_side(const Lattice& lattice) {
  Side side = {};
  side.tensor = &lattice.source;
  side.channels = lattice.source_channels;
  for (int d = 0; d < 2; ++d) {
    side.step[d] = lattice.source_step[d];
    side.origin[d] = lattice.origin[d];
    side.margin[d] = lattice.most_shift[d];
    side.phase_of[d].assign(static_cast<size_t>(side.step[d]), -1);
    for (size_t i = 0; i < lattice.phases[d].size(); ++i)
      side.phase_of[d][static_cast<size_t>(lattice.phases[d][i])] = static_cast<int64_t>(i);
  }
  side.phase_columns = static_cast<int64_t>(lattice.phases[1].size());
  return side;
}

Side dest_side(const Lattice& lattice) {
  Side side = {};
  side.tensor_is_dest = true;
  side.tensor = &lattice.dest;
  side.channels = lattice.dest_channels;
  for (int d = 0; d < 2; ++d) {
    side.step[d] = lattice.dest_step[d];
    for (int64_t r = 0; r < side.step[d]; ++r) side.phase_of[d].push_back(r);
  }
  side.phase_columns = side.step[1];
  return side;
}

const PackKernels& pack_kernels(DType dtype) {
  return cpu_kernels().tiled_pack[static_cast<int>(dtype)];
}

void pack_or_unpack(
    void (*run)(const PackCall&), const Plan& plan, const Side& side, const WorkItem& work_item, int64_t channel,
    int64_t channels, const Planes& planes, const PackedEpilogue& packed) {
  const LaneGrid& lanes = plan.lanes;
  const Activation& tensor = *side.tensor;
  std::vector<int64_t> phases[2];
  for (int d = 0; d < 2; ++d) {
    for (const int64_t index : side.phase_of[d])
      phases[d].push_back(index < 0 ? -1 : index * planes.phase * (d == 0 ? side.phase_columns : 1));
  }
  PackCall call = {};
  call.data = tensor.data;
  call.channels = channels;
  call.rows = (work_item.size[0] + side.margin[0]) * side.step[0];
  call.columns = (work_item.size[1] + side.margin[1]) * side.step[1];
  call.channel_stride = tensor.stride[1];
  call.row_stride = tensor.stride[2] * lanes.position_step[0];
  call.column_stride = tensor.stride[3] * lanes.position_step[1];
  call.order = order_of(tensor, lanes, channels);
  call.plane_channel = planes.channel;
  call.plane_row = planes.row;
  call.row_step = static_cast<int32_t>(side.step[0]);
  call.column_step = static_cast<int32_t>(side.step[1]);
  call.row_phase = phases[0].data();
  call.column_phase = phases[1].data();
  call.epilogue = packed;
  const int64_t grid = lanes.grid[0] * lanes.grid[1];
  for (int64_t s = 0; s < work_item.lane_sets; ++s) {
    call.vectors = planes.vectors + s * planes.lane_set;
    for (int64_t j = 0; j < kLanes; ++j) {
      const int64_t lane = (work_item.first_lane_set + s) * kLanes + j;
      call.row_begin[j] = call.row_end[j] = call.column_begin[j] = call.column_end[j] = 0;
      call.lane[j] = 0;
      if (lane >= lanes.lanes) continue;
      const int64_t cell[2] = {lane % grid / lanes.grid[1], lane % lanes.grid[1]};
      int64_t at = lane / grid * tensor.stride[0] + (work_item.group * side.channels + channel) * tensor.stride[1];
      for (int d = 0; d < 2; ++d) {
        int64_t origin = cell[d] * lanes.origin_step[d], before = 0;
        if (plan.kind == TileKind::kWeightGradient && !lanes.adjacent) {
          // A region that would stick out is moved back inside, its gradients before `before` another region's: zero
          // times what the image has elsewhere might be NaN.
          before = std::max<int64_t>(0, origin + lanes.size[d] - lanes.total[d]);
          origin -= before;
        }
        const int64_t position = origin + work_item.first[d] * lanes.position_step[d];
        const int64_t first = position * side.step[d] + side.origin[d], size = tensor.size[2 + d];
        const int64_t step = lanes.position_step[d], count = d == 0 ? call.rows : call.columns;
        const int64_t inside = first < 0 ? divide_up(-first, step) : 0;
        const int64_t begin = side.tensor_is_dest ? std::max(inside, before - work_item.first[d]) : inside;
        const int64_t end = first < size ? divide_up(size - first, step) : 0;
        (d == 0 ? call.row_begin : call.column_begin)[j] = static_cast<int32_t>(std::min(begin, count));
        (d == 0 ? call.row_end : call.column_end)[j] = static_cast<int32_t>(std::min(end, count));
        at += first * tensor.stride[2 + d];
      }
      call.lane[j] = at;
    }
    run(call);
  }
}

TileRows::TileRows(const Plan& plan, const WorkItem& work_item, const Planes& source) {
  if (plan.flat) {
    count = 1;
    columns = work_item.lane_sets * work_item.size[0] * work_item.size[1];
    planes = {0};
    return;
  }
  count = work_item.lane_sets * work_item.size[0];
  columns = work_item.size[1];
  for (int64_t s = 0; s < work_item.lane_sets; ++s)
    for (int64_t y = 0; y < work_item.size[0]; ++y) planes.push_back(s * source.lane_set + y * source.row);
}

Planes source_planes(const Plan& plan, const WorkItem& work_item, float* vectors) {
  const int64_t columns = plan.flat ? work_item.size[1] : plan.plane_columns;
  const int64_t lane_set = plan.flat ? work_item.size[0] * work_item.size[1] : plan.plane_vectors;
  return {
      .vectors = vectors,
      .channel = plan.channel_vectors * kLanes,
      .lane_set = lane_set * kLanes,
      .phase = plan.phase_vectors * kLanes,
      .row = columns * kLanes};
}

Planes result_planes(const WorkItem& work_item, int64_t residues, float* vectors) {
  const int64_t lane_set = work_item.size[0] * work_item.size[1] * kLanes;
  const int64_t phase = work_item.lane_sets * lane_set;
  return {
      .vectors = vectors,
      .channel = residues * phase,
      .lane_set = lane_set,
      .phase = phase,
      .row = work_item.size[1] * kLanes};
}

}  // namespace sparsekernels::tiled
