// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/work_items.h"

#include <algorithm>
#include <cstring>

#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::jit {

WorkItem work_item_at(
    const Lattice& lattice, const Layout& layout, int64_t item_microbatches, int64_t group, int64_t index) {
  WorkItem work_item = {};
  work_item.group = group;
  const int64_t strip[2] = {index / layout.strips[1] % layout.strips[0], index % layout.strips[1]};
  for (int d = 0; d < 2; ++d) {
    work_item.first[d] = strip[d] * layout.strip[d];
    work_item.size[d] = std::min(layout.strip[d], lattice.size[d] - work_item.first[d]);
  }
  work_item.first_microbatch = index / (layout.strips[0] * layout.strips[1]) * item_microbatches;
  work_item.microbatches = std::min(item_microbatches, layout.microbatches - work_item.first_microbatch);
  return work_item;
}

VectorOrder pack_order_of(const Activation& tensor, int64_t channels) {
  return transposes_channels(tensor, channels) ? VectorOrder::kChannels : VectorOrder::kColumns;
}

namespace {

// What a work item reads or writes of a tensor: position p of dimension d has first[d] + p * step[d] to last[d] + p *
// step[d].
PrefetchCursor prefetch_of(
    const Activation& tensor, const Layout& layout, const WorkItem& work_item, int64_t channel, int64_t channels,
    const int64_t (&first)[2], const int64_t (&last)[2], const int64_t (&step)[2]) {
  const int64_t elements = tensor.size[0] * tensor.size[1] * tensor.size[2] * tensor.size[3];
  if (elements < cost::kFewestPrefetchedElements) return PrefetchCursor();
  int64_t begin[4] = {work_item.first_microbatch * layout.images, channel};
  int64_t end[4] = {
      std::min(tensor.size[0], (work_item.first_microbatch + work_item.microbatches) * layout.images),
      channel + channels};
  for (int d = 0; d < 2; ++d) {
    begin[2 + d] = std::max<int64_t>(0, work_item.first[d] * step[d] + first[d]);
    end[2 + d] = std::min(tensor.size[2 + d], (work_item.first[d] + work_item.size[d] - 1) * step[d] + last[d] + 1);
  }
  if (layout.strips[1] == 1) {  // whole rows, which follow each other
    begin[3] = 0;
    end[3] = tensor.size[3];
  }
  return PrefetchCursor(tensor, begin, end);
}

}  // namespace

PrefetchCursor prefetch_source(const Lattice& lattice, const Layout& layout, const WorkItem& work_item) {
  int64_t last[2];
  for (int d = 0; d < 2; ++d)
    last[d] = lattice.origin[d] + lattice.phases[d].back() + lattice.most_shift[d] * lattice.source_step[d];
  return prefetch_of(
      lattice.source, layout, work_item, work_item.group * lattice.source_channels, lattice.source_channels,
      lattice.origin, last, lattice.source_step);
}

PrefetchCursor prefetch_dest(
    const Lattice& lattice, const Layout& layout, const WorkItem& work_item, int64_t channel, int64_t channels) {
  const int64_t first[2] = {0, 0}, last[2] = {lattice.dest_step[0] - 1, lattice.dest_step[1] - 1};
  return prefetch_of(lattice.dest, layout, work_item, channel, channels, first, last, lattice.dest_step);
}

void gather_source(
    const Lattice& lattice, const Layout& layout, const WorkItem& work_item, int64_t vector_stride, float* planes) {
  const Activation& source = lattice.source;
  const int64_t columns = static_cast<int64_t>(layout.first_column.size());
  const int64_t floats = layout.phases * layout.phase_floats + layout.behind_floats;
  const int64_t rows = work_item.size[0] + lattice.most_shift[0];
  std::vector<int32_t> places(static_cast<size_t>(divide_up(floats, kLanes) * kLanes));
  for (int64_t b = 0; b < work_item.microbatches; ++b) {
    const int64_t first_image = (work_item.first_microbatch + b) * layout.images;
    std::fill(places.begin(), places.end(), -1);
    for (int64_t phase = 0; phase < layout.phases; ++phase) {
      const int64_t top = lattice.origin[0] + lattice.phases[0][static_cast<size_t>(phase / columns)];
      const int64_t left = layout.first_column[static_cast<size_t>(phase % columns)];
      int32_t* at = places.data() + phase * layout.phase_floats;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t y = top + (work_item.first[0] + row) * lattice.source_step[0];
        for (int64_t column = 0; column < layout.pitch; ++column) {
          const int64_t x = left + (work_item.first[1] + column) * lattice.source_step[1];
          const int64_t position = y * source.size[3] + x;
          const bool inside = y >= 0 && y < source.size[2] && x >= 0 && x < source.size[3];
          for (int64_t image = 0; image < layout.images; ++image, ++at) {
            if (inside && first_image + image < source.size[0])
              *at = static_cast<int32_t>(
                  image * source.stride[0] + position / kLanes * vector_stride + position % kLanes);
          }
        }
      }
    }
    GatherCall call = {};
    call.source = static_cast<const float*>(source.data) + first_image * source.stride[0];
    call.places = places.data();
    call.floats = floats;
    call.channels = lattice.source_channels;
    call.source_channel = source.stride[1];
    call.planes = planes + b * layout.microbatch_floats;
    call.channel_floats = layout.channel_floats;
    call.vector_stride = layout.vector_stride;
    cpu_kernels().jit_pack[static_cast<int>(DType::kFloat32)].gather(call);
  }
}

void pack_source(const Lattice& lattice, const Layout& layout, const WorkItem& work_item, float* planes) {
  PackCall call = {};
  set_strides(call, lattice.source);
  call.channels = lattice.source_channels;
  call.order = pack_order_of(lattice.source, call.channels);
  call.channel_floats = layout.channel_floats;
  call.phase_floats = layout.phase_floats;
  call.vector_stride = layout.vector_stride;
  call.behind_floats = layout.behind_floats;
  call.rows = work_item.size[0] + lattice.most_shift[0];
  call.pitch = layout.pitch;
  std::vector<int64_t> first[2];
  for (const int64_t phase : lattice.phases[0])
    first[0].push_back(lattice.origin[0] + phase + work_item.first[0] * lattice.source_step[0]);
  for (const int64_t column : layout.first_column)
    first[1].push_back(column + work_item.first[1] * lattice.source_step[1]);
  for (int d = 0; d < 2; ++d) {
    call.step[d] = lattice.source_step[d];
    call.phases[d] = static_cast<int64_t>(first[d].size());
    call.first[d] = first[d].data();
  }
  for (int64_t b = 0; b < work_item.microbatches; ++b) {
    set_images(call, lattice.source, layout, work_item.first_microbatch + b, work_item.group * lattice.source_channels);
    call.planes = planes + b * layout.microbatch_floats;
    cpu_kernels().jit_pack[static_cast<int>(lattice.source.dtype)].pack(call);
    // the plane of zeros behind all channels
    for (int64_t vector = 0;
         lattice.some_reach_nothing && vector < layout.vectors(work_item.size[0], work_item.size[1]); ++vector)
      std::memset(
          call.planes + call.channels * layout.channel_floats + vector * layout.vector_stride, 0,
          kLanes * sizeof(float));
  }
}

}  // namespace sparsekernels::jit
