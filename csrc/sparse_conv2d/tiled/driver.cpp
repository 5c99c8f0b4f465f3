// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Forward, input gradient and weight gradient by tiles, on any instruction set: packs the pattern for a plan, packs the
// vectors of each work item panel by panel, calls the microkernels, writes results back.
#include "sparse_conv2d/tiled/driver.h"

#include <algorithm>
#include <cstring>

#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/tiled/pack_pattern.h"
#include "sparse_conv2d/tiled/work_items.h"

namespace sparsekernels::tiled {
namespace {

thread_local Workspace call_workspace;    // what all threads of a call read
thread_local Workspace worker_workspace;  // a thread's own vectors

// A panel's channels, and a plane of zeros where a tap needs one.
int64_t planes_size(const Lattice& lattice, const Plan& plan) {
  return (plan.panel_channels + (lattice.some_reach_nothing ? 1 : 0)) * plan.channel_vectors * kLanes;
}
void clear_zeros(const Lattice& lattice, const Plan& plan, float* planes) {
  const int64_t channel = plan.channel_vectors * kLanes;
  if (lattice.some_reach_nothing)
    std::memset(planes + plan.panel_channels * channel, 0, static_cast<size_t>(channel) * sizeof(float));
}

}  // namespace

void forward(
    const Lattice& lattice, const SparsePattern& pattern, const PackedEpilogue& packed, const Threads& threads) {
  const TileKernels& tiles = cpu_kernels().tiles;
  const Plan plan = make_plan(lattice, pattern.nonzeros, TileKind::kForward, tiles.most_forward_vectors);
  const int64_t residues = lattice.residues(), rows = lattice.dest_channels;
  const int64_t items = lattice.groups * plan.work_items();
  const Slices slices(pattern, lattice.groups, items, divide_up(rows, plan.slice_rows), threads);
  PatternPacking packed_pattern(lattice, plan, pattern, slices, true);
  WorkspaceLayout shared;
  packed_pattern.reserve(shared);
  const TrimWorkspace trim{call_workspace};
  shared.allocate(call_workspace);
  packed_pattern.run(threads);

  const Side source = source_side(lattice), dest = dest_side(lattice);
  const auto run = [&](int64_t item) {
    const int64_t slice = item % slices.count, group = item / slices.count % lattice.groups;
    const int64_t first = slices.first(group, slice), last = slices.last(group, slice);
    if (first == last) return;
    const WorkItem work_item = work_item_at(plan, group, item / slices.count / lattice.groups);
    float *source_vectors, *sums;
    WorkspaceLayout own;
    own.add(&source_vectors, planes_size(lattice, plan));
    own.add(&sums, (last - first) * residues * item_vectors(plan) * kLanes);
    own.allocate(worker_workspace);
    clear_zeros(lattice, plan, source_vectors);
    const Planes planes = source_planes(plan, work_item, source_vectors),
                 results = result_planes(work_item, residues, sums);
    const TileRows tile_rows(plan, work_item, planes);

    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      const int64_t channel = panel * plan.panel_channels;
      const int64_t channels = std::min(plan.panel_channels, lattice.source_channels - channel);
      pack_or_unpack(pack_kernels(lattice.source.dtype).pack, plan, source, work_item, channel, channels, planes, {});
      for_each_tile(plan, tile_rows, [&](int64_t row, int64_t height, int64_t column, int64_t width) {
        ForwardTile call = {};
        call.planes = planes.vectors + column * kLanes;
        call.plane_rows = tile_rows.planes.data() + row;
        call.offsets = packed_pattern.offsets();
        call.values = packed_pattern.values();
        call.count = last - first;
        call.sums_pattern_row = results.channel;
        call.sums_row = results.row;
        call.first = panel == 0;
        for (int64_t residue = 0; residue < residues; ++residue) {
          call.runs = packed_pattern.runs(group, slice, panel, residue);
          call.sums = sums + residue * results.phase + row * results.row + column * kLanes;
          tiles.forward[height][width](call);
        }
      });
    }
    PackedEpilogue slice_epilogue = packed;
    slice_epilogue.bias += group * rows + first;
    pack_or_unpack(
        pack_kernels(lattice.dest.dtype).unpack, plan, dest, work_item, first, last - first, results, slice_epilogue);
  };
  const auto body = [&](int64_t begin, int64_t end) {
    const TrimWorkspace trim{worker_workspace};
    for (int64_t item = begin; item < end; ++item) run(item);
  };
  threads.run(items * slices.count, body);
}

void weight_gradient(const Lattice& lattice, const SparsePattern& pattern, void* grad_values, const Threads& threads) {
  const TileKernels& tiles = cpu_kernels().tiles;
  const Plan plan = make_plan(lattice, pattern.nonzeros, TileKind::kWeightGradient, tiles.most_weight_gradient_vectors);
  // Chunks of work items have sums of their own, so that threads share the work; how many does not depend on the
  // threads.
  const int64_t chunks = std::max<int64_t>(
      1, std::min({cost::tiled::kMostChunks, plan.work_items(), cost::tiled::kMostPartialFloats / pattern.nonzeros}));
  const int64_t rows = lattice.dest_channels, items = lattice.groups * chunks;
  const Slices slices(pattern, lattice.groups, items, divide_up(rows, plan.slice_rows), threads);
  PatternPacking packed_pattern(lattice, plan, pattern, slices, false);
  WorkspaceLayout shared;
  packed_pattern.reserve(shared);
  float* partial;  // [chunk][nonzero], in the order in which they are packed
  shared.add(&partial, chunks * pattern.nonzeros);
  const TrimWorkspace trim{call_workspace};
  shared.allocate(call_workspace);
  packed_pattern.run(threads);

  const Side source = source_side(lattice), dest = dest_side(lattice);
  const auto run = [&](int64_t item) {
    const int64_t slice = item % slices.count, group = item / slices.count % lattice.groups;
    const int64_t chunk = item / slices.count / lattice.groups;
    const int64_t first = slices.first(group, slice), last = slices.last(group, slice);
    if (first == last) return;
    float* const sums = partial + chunk * pattern.nonzeros;
    const int64_t begin = pattern.crow_indices[group * rows + first], end = pattern.crow_indices[group * rows + last];
    std::memset(sums + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
    float *source_vectors, *grads;
    WorkspaceLayout own;
    own.add(&source_vectors, planes_size(lattice, plan));
    own.add(&grads, (last - first) * item_vectors(plan) * kLanes);
    own.allocate(worker_workspace);
    clear_zeros(lattice, plan, source_vectors);
    for (int64_t u = plan.work_items() * chunk / chunks; u < plan.work_items() * (chunk + 1) / chunks; ++u) {
      const WorkItem work_item = work_item_at(plan, group, u);
      const Planes planes = source_planes(plan, work_item, source_vectors),
                   results = result_planes(work_item, 1, grads);
      const TileRows tile_rows(plan, work_item, planes);
      pack_or_unpack(pack_kernels(lattice.dest.dtype).pack, plan, dest, work_item, first, last - first, results, {});
      for (int64_t panel = 0; panel < plan.panels; ++panel) {
        const int64_t channel = panel * plan.panel_channels;
        const int64_t channels = std::min(plan.panel_channels, lattice.source_channels - channel);
        pack_or_unpack(pack_kernels(lattice.source.dtype).pack, plan, source, work_item, channel, channels, planes, {});
        for_each_tile(plan, tile_rows, [&](int64_t row, int64_t height, int64_t column, int64_t width) {
          WeightGradientTile call = {};
          call.planes = planes.vectors + column * kLanes;
          call.plane_rows = tile_rows.planes.data() + row;
          call.offsets = packed_pattern.offsets();
          call.runs = packed_pattern.runs(group, slice, panel, 0);
          call.count = last - first;
          call.grads = grads + row * results.row + column * kLanes;
          call.grads_pattern_row = results.channel;
          call.grads_row = results.row;
          call.sums = sums + call.runs->begin;
          tiles.weight_gradient[height][width](call);
        });
      }
    }
  };
  threads.run(items * slices.count, [&](int64_t begin, int64_t end) {
    const TrimWorkspace trim{worker_workspace};
    for (int64_t item = begin; item < end; ++item) run(item);
  });

  // Back into the pattern's order, the chunks added up.
  const int64_t per_group = slices.count * plan.panels;
  threads.run(lattice.groups * per_group, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / per_group, slice = item / plan.panels % slices.count, panel = item % plan.panels;
      const Run* const runs = packed_pattern.runs(group, slice, panel, 0);
      for (const Run* run = runs; run < runs + slices.last(group, slice) - slices.first(group, slice); ++run) {
        float* const sums = partial + run->begin;
        const int64_t count = run->end - run->begin;
        for (int64_t chunk = 1; chunk < chunks; ++chunk)
          for (int64_t i = 0; i < count; ++i) sums[i] += sums[chunk * pattern.nonzeros + i];
        cpu_kernels().narrow(
            sums, count, lattice.source.dtype, grad_values, packed_pattern.place(group, slice, panel, *run));
      }
    }
  });
}

}  // namespace sparsekernels::tiled
