// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/forward_driver.h"

#include <algorithm>
#include <cstring>

#include "base/prefetch.h"
#include "base/workspace.h"
#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/jit/loop_driver.h"
#include "sparse_conv2d/jit/scatter_driver.h"
#include "sparse_conv2d/jit/work_items.h"
#include "sparse_conv2d/nonzeros.h"

namespace sparsekernels::jit {
namespace {

thread_local Workspace call_workspace;    // the values, for all threads of a call
thread_local Workspace worker_workspace;  // a thread's planes and vectors

// The vectors of a slice: [residue][micro-batch][vector][row].
struct SliceResults {
  int64_t rows, microbatch, residue;  // rows of the slice; strides in floats
};

void unpack_results(
    const Lattice& lattice, const ForwardPlan& plan, const WorkItem& work_item, int64_t row, const SliceResults& slice,
    const float* vectors, const PackedEpilogue& packed) {
  UnpackCall call = {};
  set_strides(call, lattice.dest);
  call.channels = slice.rows;
  call.order = pack_order_of(lattice.dest, call.channels);
  call.epilogue = packed;
  call.epilogue.bias += row;
  call.rows = work_item.size[0];
  call.columns = work_item.size[1];
  call.pitch = plan.pitch;
  // Two columns that alternate are written as one.
  const bool pairs = lattice.dest_step[1] == 2 && lattice.dest.stride[3] == 1 && call.order == VectorOrder::kColumns;
  for (int64_t residue = 0; residue < lattice.residues(); residue += pairs ? 2 : 1) {
    const int64_t at[2] = {residue / lattice.dest_step[1], residue % lattice.dest_step[1]};
    for (int d = 0; d < 2; ++d) {
      call.step[d] = lattice.dest_step[d];
      call.first[d] = work_item.first[d] * lattice.dest_step[d] + at[d];
    }
    for (int64_t b = 0; b < work_item.microbatches; ++b) {
      set_images(call, lattice.dest, plan, work_item.first_microbatch + b, row);
      call.vectors = vectors + residue * slice.residue + b * slice.microbatch;
      call.odd_vectors = pairs ? call.vectors + slice.residue : nullptr;
      cpu_kernels().jit_pack[static_cast<int>(lattice.dest.dtype)].unpack(call);
    }
  }
}

// Where a micro-batch's results of a row and those after it are stored, in a tensor of such strides; or their residual
// is.
int64_t place_of(
    const Lattice& lattice, const ForwardPlan& plan, const WorkItem& work_item, int64_t microbatch, int64_t row,
    int64_t image, int64_t channel, int64_t vector_stride) {
  const int64_t floats = (work_item.first[0] * lattice.dest.stride[2] + work_item.first[1]) * plan.images;
  return (work_item.first_microbatch + microbatch) * image + row * channel +
         (plane_order(vector_stride) == PlaneOrder::kPlanar ? floats : floats / kLanes * vector_stride);
}

// Null if kernels do not store them.
float* direct_to(
    const Lattice& lattice, const PlannedForward& planned, const WorkItem& work_item, int64_t microbatch, int64_t row) {
  if (!planned.plan.direct) return nullptr;
  const Activation& dest = lattice.dest;
  return static_cast<float*>(dest.data) + place_of(
                                              lattice, planned.plan, work_item, microbatch, row, dest.stride[0],
                                              dest.stride[1], planned.dest_vector_stride);
}

const float* residual_at(
    const Lattice& lattice, const PlannedForward& planned, const PackedEpilogue& packed, const WorkItem& work_item,
    int64_t microbatch, int64_t row) {
  if (packed.residual == nullptr) return nullptr;
  return packed.residual + place_of(
                               lattice, planned.plan, work_item, microbatch, row, planned.residual_image,
                               planned.residual_channel, planned.residual_vector_stride);
}

// A work item on its way through the slices.
struct ItemRun {
  const Lattice& lattice;
  const PlannedForward& planned;
  const PackedEpilogue& packed;
  const WorkItem& work_item;
  const float* values;
  const float* planes;
  int64_t planes_microbatch;
  float* sums;
  int64_t vectors;
  uint16_t last_masks[kMaskStride];  // of the last vector: only positions are stored
  std::vector<LoopTileVectors> tiles;
  PrefetchCursor next_source, next_results;  // what comes up meanwhile
  int64_t source_each, results_each;

  const uint16_t* masks(int64_t vector) const {
    const std::vector<uint16_t>& all = planned.kernels->masks();
    return vector + 1 == vectors || all.empty() ? last_masks : all.data() + vector * kMaskStride;
  }
  // Kernels that are called for a slice, or about as many.
  int64_t turns() const {
    const ForwardPlan& plan = planned.plan;
    if (plan.scatter_channels != 0) {
      const ScatterTables& tables = planned.kernels->scatter();
      const int64_t slices = static_cast<int64_t>(tables.first_run.size()) - 1;
      return std::max<int64_t>(1, static_cast<int64_t>(tiles.size() * tables.runs.size()) / slices);
    }
    const int64_t each = plan.block_rows == 0
                             ? work_item.microbatches * vectors
                             : static_cast<int64_t>(tiles.size()) * (plan.slice_rows / plan.block_rows) *
                                   tile_parts(plan.block_rows, plan.tile_vectors);
    return each * lattice.residues() * plan.panels;
  }
  void prefetch() {
    next_source.prefetch(source_each);
    next_results.prefetch(results_each);
  }
};

// Where the results of a slice go: its first row, of all groups, that of the slices whose results are written together,
// and how many rows these have.
struct SlicePlace {
  int64_t row, within, count;
};

void run_code(ItemRun& run, int64_t slice, const SlicePlace& place, const SliceResults& layout) {
  const Lattice& lattice = run.lattice;
  const PlannedForward& planned = run.planned;
  const ForwardPlan& plan = planned.plan;
  const ForwardKernels& kernels = *planned.kernels;
  const int64_t vectors = run.vectors, vector_stride = place.count * kLanes;
  for (int64_t panel = 0; panel < plan.panels; ++panel) {
    for (int64_t residue = 0; residue < lattice.residues(); ++residue) {
      const KernelEntry& entry = kernels.entry(run.work_item.group, slice, panel, residue);
      if (entry.kernel == nullptr) continue;
      const float* const own_values = run.values + entry.values + kValueBias;
      const KernelEntry* const next = &entry + 1 < kernels.end() ? &entry + 1 : &entry;
      const char* code = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(next->kernel));
      const int64_t code_lines = divide_up(next->bytes, kLineBytes);
      int64_t prefetched = 0, calls = 0;
      for (int64_t b = 0; b < run.work_item.microbatches; ++b) {
        const float* const from =
            run.planes + b * run.planes_microbatch + panel * plan.panel_channels * plan.channel_floats;
        float* to = run.sums + residue * layout.residue + b * layout.microbatch + place.within * kLanes;
        float* const dest = direct_to(lattice, planned, run.work_item, b, place.row);
        const float* const residual = residual_at(lattice, planned, run.packed, run.work_item, b, place.row);
        for (int64_t vector = 0; vector < vectors; ++vector, to += vector_stride) {
          const int64_t prefetch_until = code_lines * ++calls / (run.work_item.microbatches * vectors);
          for (; prefetched < prefetch_until; ++prefetched) __builtin_prefetch(code + prefetched * kLineBytes, 0, 2);
          run.prefetch();
          if (residual != nullptr) {
            const int64_t bytes = distance(
                residual + vector * planned.residual_vector_stride, dest + vector * planned.dest_vector_stride);
            std::memcpy(run.packed.header, &bytes, sizeof bytes);
          }
          entry.kernel(
              from + vector * plan.vector_stride, own_values, to, run.masks(vector),
              dest == nullptr ? nullptr : dest + vector * planned.dest_vector_stride, run.packed.bias + place.row);
        }
      }
    }
  }
}

void run_loops(ItemRun& run, int64_t slice, const SlicePlace& place, const SliceResults& layout) {
  const Lattice& lattice = run.lattice;
  const PlannedForward& planned = run.planned;
  const ForwardPlan& plan = planned.plan;
  int64_t residual_bytes;  // from dest, unless the residual lies in another way
  std::memcpy(&residual_bytes, run.packed.bias - kEpilogueHeader, sizeof residual_bytes);
  std::vector<LoopTile> tiles(run.tiles.size());
  for (size_t t = 0; t < tiles.size(); ++t) {
    LoopTile& tile = tiles[t];
    tile.epilogue = run.packed.bias;
    for (int64_t i = 0; i < run.tiles[t].count; ++i) {
      const int64_t b = run.tiles[t].microbatch[i], vector = run.tiles[t].vector[i];
      tile.vectors[i] = run.planes + b * run.planes_microbatch + vector * plan.vector_stride;
      tile.sums[i] = run.sums + b * layout.microbatch + (vector * place.count + place.within) * kLanes;
      tile.masks[i] = run.masks(vector);
      if (!plan.direct) continue;
      tile.dest[i] = direct_to(lattice, planned, run.work_item, b, place.row) + vector * planned.dest_vector_stride;
      const float* const residual = residual_at(lattice, planned, run.packed, run.work_item, b, place.row);
      tile.residual[i] = residual != nullptr
                             ? residual + vector * planned.residual_vector_stride
                             : reinterpret_cast<const float*>(
                                   reinterpret_cast<uintptr_t>(tile.dest[i]) + static_cast<uintptr_t>(residual_bytes));
    }
  }
  const LoopSlice own = {
      .group = run.work_item.group,
      .slice = slice,
      .values = run.values,
      .bias = run.packed.bias + place.row,
      .residue_floats = layout.residue,
      .row_floats = lattice.dest.stride[1],
      .residual_row_floats = plan.residual_channel};
  run_loop_slice(lattice, plan, *planned.kernels, own, run.tiles, tiles, [&] { run.prefetch(); });
}

void run_scatter(ItemRun& run, int64_t slice, const SlicePlace& place, const SliceResults& layout) {
  const Lattice& lattice = run.lattice;
  const ForwardPlan& plan = run.planned.plan;
  std::vector<ScatterTile> tiles(run.tiles.size());
  for (size_t t = 0; t < tiles.size(); ++t)
    for (int64_t i = 0; i < run.tiles[t].count; ++i) {
      const int64_t b = run.tiles[t].microbatch[i], vector = run.tiles[t].vector[i];
      tiles[t].vectors[i] = run.planes + b * run.planes_microbatch + vector * plan.vector_stride;
      tiles[t].sums[i] = run.sums + b * layout.microbatch + (vector * place.count + place.within) * kLanes;
      tiles[t].masks[i] = run.masks(vector);
    }
  std::memset(run.sums, 0, static_cast<size_t>(lattice.residues() * layout.residue) * sizeof(float));
  run_scatter_slice(
      *run.planned.kernels, run.work_item.group, slice, run.values, layout.residue, run.tiles, tiles,
      [&] { run.prefetch(); });
}

void run_forward_item(
    const Lattice& lattice, const PlannedForward& planned, const float* values, const PackedEpilogue& packed,
    const WorkItem& work_item, const WorkItem* next_item, int64_t first_slice, int64_t last_slice) {
  const ForwardPlan& plan = planned.plan;
  const ForwardKernels& kernels = *planned.kernels;
  const int64_t vectors = plan.vectors(work_item.size[0], work_item.size[1]), rows = lattice.dest_channels;
  constexpr int64_t kSlackVectors = kMostImages + 1;  // read, and not used
  const bool is_read = !planned.planes_image;
  float *own_planes, *sums;
  WorkspaceLayout own;
  own.add(
      &own_planes,
      is_read ? plan.front_floats + work_item.microbatches * plan.microbatch_floats + plan.back_floats : 0);
  const int64_t most_rows = plan.has_tiles() ? plan.slice_rows : kMostSliceRows * plan.write_slices;
  own.add(&sums, (lattice.residues() * work_item.microbatches * vectors + kSlackVectors) * most_rows * kLanes);
  own.allocate(worker_workspace);
  own_planes += plan.front_floats;
  if (is_read && plane_order(planned.source_vector_stride) == PlaneOrder::kPlanar)
    pack_source(lattice, plan, work_item, own_planes);
  if (is_read && plane_order(planned.source_vector_stride) == PlaneOrder::kInterleaved)
    gather_source(lattice, plan, work_item, planned.source_vector_stride, own_planes);
  const int64_t planes_microbatch = planned.planes_image.value_or(plan.microbatch_floats);
  const float* const planes =
      is_read ? own_planes
              : static_cast<const float*>(lattice.source.data) + work_item.first_microbatch * planes_microbatch +
                    (work_item.first[0] * plan.pitch + work_item.first[1]) * plan.images / kLanes * plan.vector_stride;
  ItemRun run = {
      .lattice = lattice,
      .planned = planned,
      .packed = packed,
      .work_item = work_item,
      .values = values,
      .planes = planes,
      .planes_microbatch = planes_microbatch,
      .sums = sums,
      .vectors = vectors,
      .last_masks = {},
      .tiles = {},
      .next_source = {},
      .next_results = {},
      .source_each = 0,
      .results_each = 0};
  if (!kernels.masks().empty())
    std::copy_n(kernels.masks().data() + (vectors - 1) * kMaskStride, kMaskStride, run.last_masks);
  const int64_t beyond = vectors * kLanes - ((work_item.size[0] - 1) * plan.pitch + work_item.size[1]) * plan.images;
  run.last_masks[kMostMasks] = static_cast<uint16_t>(0xffff >> beyond);
  if (plan.has_tiles()) run.tiles = loop_tiles(plan, kernels.loops(), work_item);
  // Meanwhile the next work item's source comes up, and the place of the results.
  if (next_item != nullptr && is_read && plane_order(planned.source_vector_stride) == PlaneOrder::kPlanar)
    run.next_source = prefetch_source(lattice, plan, *next_item);
  run.source_each = divide_up(run.next_source.lines(), run.turns() * (last_slice - first_slice));
  for (int64_t slice = first_slice; slice < last_slice; ++slice) {
    // Of the slices whose results are written together, the first row and where the rows of this one lie.
    const int64_t together = slice - (slice - first_slice) % plan.write_slices;
    const int64_t until = std::min(last_slice, together + plan.write_slices);
    const int64_t first = plan.first_row(together, rows), count = plan.first_row(until, rows) - first;
    const SlicePlace place = {
        .row = work_item.group * rows + first, .within = plan.first_row(slice, rows) - first, .count = count};
    const SliceResults layout = {
        .rows = count,
        .microbatch = vectors * count * kLanes,
        .residue = work_item.microbatches * vectors * count * kLanes};
    if (slice == together && plan.prefetches_dest && plane_order(planned.dest_vector_stride) == PlaneOrder::kPlanar)
      run.next_results = prefetch_dest(lattice, plan, work_item, place.row, count);
    run.results_each = divide_up(run.next_results.lines(), run.turns());
    if (plan.block_rows != 0) {
      run_loops(run, slice, place, layout);
    } else if (plan.scatter_channels != 0) {
      run_scatter(run, slice, place, layout);
    } else {
      run_code(run, slice, place, layout);
    }
    if (slice + 1 == until && !plan.direct) unpack_results(lattice, plan, work_item, place.row, layout, sums, packed);
  }
}

}  // namespace

void arrange_values(
    const std::vector<int32_t>& order, const void* from, DType dtype, const Threads& threads, float* narrow,
    float* values) {
  if (dtype == DType::kFloat32) return gather_elements(order, from, dtype, threads, values);
  uint16_t* const halves = reinterpret_cast<uint16_t*>(narrow);
  parallel_for_nonzeros(static_cast<int64_t>(order.size()), threads, [&](int64_t begin, int64_t end) {
    gather(order, from, begin, end, halves);
    cpu_kernels().widen(halves + begin, end - begin, dtype, values + begin);
  });
}

int64_t PlannedForward::items(const Lattice& lattice) const {
  return lattice.groups * plan.work_items() * plan.thread_shares;
}

void run_items(
    const Lattice& lattice, const PlannedForward& planned, const SparsePattern& pattern, const float* values,
    const PackedEpilogue& packed, int64_t begin, int64_t end) {
  const ForwardPlan& plan = planned.plan;
  const TrimWorkspace trim{worker_workspace};
  // All groups of a work item, then the next work item: groups may have more nonzeros or fewer, and threads take what
  // follows each other.
  const auto item_of = [&](int64_t i) {
    const int64_t group = i / plan.thread_shares % lattice.groups;
    return work_item_at(lattice, plan, plan.item_microbatches, group, i / plan.thread_shares / lattice.groups);
  };
  for (int64_t item = begin; item < end;) {
    // shares that follow each other read the same planes
    const int64_t share = item % plan.thread_shares, count = std::min(plan.thread_shares - share, end - item);
    const WorkItem work_item = item_of(item), next = item_of(std::min(item + count, end - 1));
    const WorkItem* const then = item + count < end ? &next : nullptr;
    const int64_t first = first_slice_of(plan, pattern, lattice.dest_channels, work_item.group, share);
    const int64_t last = first_slice_of(plan, pattern, lattice.dest_channels, work_item.group, share + count);
    if (first < last) run_forward_item(lattice, planned, values, packed, work_item, then, first, last);
    item += count;
  }
}

void forward(
    const Lattice& lattice, const PlannedForward& planned, const SparsePattern& pattern,
    const std::vector<int32_t>& order, const PackedEpilogue& packed, const Threads& threads) {
  const TrimWorkspace trim{call_workspace};
  float *values, *narrow;
  WorkspaceLayout shared;
  shared.add(&values, pattern.nonzeros + 2 * kValueBias);
  shared.add(&narrow, pattern.dtype == DType::kFloat32 ? 0 : divide_up(pattern.nonzeros, 2));
  shared.allocate(call_workspace);
  arrange_values(order, pattern.values, pattern.dtype, threads, narrow, values);
  const auto run = [&](int64_t begin, int64_t end) {
    run_items(lattice, planned, pattern, values, packed, begin, end);
  };
  const int64_t items = planned.items(lattice);
  if (planned.plan.threads == 1) return run(0, items);
  threads.run(items, run);
}

}  // namespace sparsekernels::jit
