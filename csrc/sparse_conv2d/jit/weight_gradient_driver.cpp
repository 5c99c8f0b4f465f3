// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/weight_gradient_driver.h"

#include <algorithm>
#include <cstring>

#include "base/workspace.h"
#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/jit/work_items.h"

namespace sparsekernels::jit {
namespace {

thread_local Workspace call_workspace;    // the sums, for all threads of a call
thread_local Workspace worker_workspace;  // a thread's planes and gradients

// The gradients of rows [first, last) of a work item's group, as vectors that are zero where they are no positions.
void pack_grads(
    const Lattice& lattice, const WeightGradientPlan& plan, const WorkItem& work_item, int64_t first, int64_t last,
    float* grads) {
  PackCall call = {};
  set_strides(call, lattice.dest);
  call.channels = last - first;
  call.order = pack_order_of(lattice.dest, call.channels);
  call.channel_floats = plan.grad_channel_floats;
  call.vector_stride = plan.grad_vector_stride;
  call.rows = work_item.size[0];
  call.pitch = plan.pitch;
  call.phase_floats = call.rows * call.pitch * plan.images;
  if (plane_order(call.vector_stride) == PlaneOrder::kPlanar)
    call.behind_floats = plan.vectors(work_item.size[0], plan.pitch) * kLanes - call.phase_floats;
  for (int d = 0; d < 2; ++d) {
    call.step[d] = 1;
    call.phases[d] = 1;
    call.first[d] = &work_item.first[d];
  }
  for (int64_t b = 0; b < work_item.microbatches; ++b) {
    set_images(
        call, lattice.dest, plan, work_item.first_microbatch + b, work_item.group * lattice.dest_channels + first);
    call.planes = grads + b * plan.grad_microbatch_floats;
    cpu_kernels().jit_pack[static_cast<int>(lattice.dest.dtype)].pack(call);
  }
}

// Adds what a work item gives to the sums of some slices.
void run_weight_gradient_item(
    const Lattice& lattice, const WeightGradientPlan& plan, const WeightGradientKernels& kernels,
    const WorkItem& work_item, const WorkItem* next_item, int64_t first_slice, int64_t last_slice, float* sums) {
  const int64_t rows = lattice.dest_channels;
  float *planes, *grads;
  WorkspaceLayout own;
  own.add(&planes, plan.front_floats + work_item.microbatches * plan.microbatch_floats + plan.back_floats);
  own.add(&grads, work_item.microbatches * plan.grad_microbatch_floats);
  own.allocate(worker_workspace);
  planes += plan.front_floats;
  pack_source(lattice, plan, work_item, planes);
  const std::vector<uint16_t>& masks = kernels.masks(work_item.size[0] == plan.strip[0]);
  const int64_t each = plan.vectors(work_item.size[0], work_item.size[1]);
  const int64_t series = plan.microbatches_follow ? 1 : work_item.microbatches;
  const int64_t vectors = plan.microbatches_follow ? work_item.microbatches * each : each;
  const int64_t runs = divide_up(vectors, plan.run_vectors);
  WeightGradientPrefetch prefetch = {};
  if (next_item != nullptr) prefetch.source = prefetch_source(lattice, plan, *next_item);
  prefetch.source_lines = divide_up(
      prefetch.source.lines(),
      std::max<int64_t>(1, series * runs * kernels.sets(work_item.group, first_slice, last_slice)));
  for (int64_t slice = first_slice; slice < last_slice; ++slice) {
    const int64_t row = plan.first_row(slice, rows), last_row = plan.first_row(slice + 1, rows);
    const WeightGradientKernel kernel = kernels.kernel(work_item.group, slice);
    if (kernel == nullptr) continue;
    pack_grads(lattice, plan, work_item, row, last_row, grads);
    const bool is_last = slice + 1 == last_slice;
    const WorkItem* const then = is_last ? next_item : &work_item;
    prefetch.grads = PrefetchCursor();
    if (then != nullptr) {
      const int64_t next = is_last ? first_slice : slice + 1;
      const int64_t first = plan.first_row(next, rows), count = plan.first_row(next + 1, rows) - first;
      prefetch.grads = prefetch_dest(lattice, plan, *then, then->group * rows + first, count);
    }
    const int64_t turns = series * runs * kernels.sets(work_item.group, slice, slice + 1);
    prefetch.grad_lines = divide_up(prefetch.grads.lines(), turns);
    WeightGradientPrefetch* const prefetch_if_any =
        prefetch.source_lines + prefetch.grad_lines > 0 ? &prefetch : nullptr;
    float* const own_sums = sums + kernels.slots_before(work_item.group, slice);
    for (int64_t s = 0; s < series; ++s) {
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t vector = vectors * run / runs, count = vectors * (run + 1) / runs - vector;
        kernel(
            planes + s * plan.microbatch_floats + vector * plan.vector_stride,
            grads + s * plan.grad_microbatch_floats + vector * plan.grad_vector_stride, own_sums,
            masks.empty() ? nullptr : &masks[static_cast<size_t>(vector * kMaskStride)], count, prefetch_if_any);
      }
    }
  }
}

}  // namespace

void weight_gradient(
    const Lattice& lattice, const PlannedWeightGradient& planned, const SparsePattern& pattern, void* grad_values,
    const Threads& threads) {
  const WeightGradientPlan& plan = planned.plan;
  const std::shared_ptr<const WeightGradientKernels>& kernels = planned.kernels;
  const int64_t slots = kernels->slots();
  float* sums;  // [chunk][slot]
  WorkspaceLayout shared;
  shared.add(&sums, plan.chunks * slots);
  const TrimWorkspace trim{call_workspace};
  shared.allocate(call_workspace);
  threads.run(lattice.groups * plan.chunks * plan.thread_shares, [&](int64_t begin, int64_t end) {
    const TrimWorkspace trim{worker_workspace};
    for (int64_t item = begin; item < end;) {
      // shares that follow each other read the same planes
      const int64_t share = item % plan.thread_shares, count = std::min(plan.thread_shares - share, end - item);
      const int64_t group = item / plan.thread_shares % lattice.groups,
                    chunk = item / plan.thread_shares / lattice.groups;
      const int64_t first = first_slice_of(plan, pattern, lattice.dest_channels, group, share);
      const int64_t last = first_slice_of(plan, pattern, lattice.dest_channels, group, share + count);
      float* const own = sums + chunk * slots;
      const int64_t first_slot = kernels->slots_before(group, first), last_slot = kernels->slots_before(group, last);
      std::memset(own + first_slot, 0, static_cast<size_t>(last_slot - first_slot) * sizeof(float));
      const int64_t until = plan.work_items() * (chunk + 1) / plan.chunks;
      const auto item_of = [&](int64_t u) { return work_item_at(lattice, plan, plan.item_microbatches, group, u); };
      for (int64_t u = plan.work_items() * chunk / plan.chunks; u < until && first < last; ++u) {
        const WorkItem work_item = item_of(u), next = item_of(std::min(u + 1, until - 1));
        run_weight_gradient_item(lattice, plan, *kernels, work_item, u + 1 < until ? &next : nullptr, first, last, own);
      }
      item += count;
    }
  });
  // Back into the pattern's order, the chunks added up.
  constexpr int64_t kGrain = cost::threads::kCollectedGrain;
  const int32_t* const slot_of = kernels->slot_of().data();
  const auto collect = [&](int64_t begin, int64_t end) {
    float values[kGrain];
    for (int64_t range = begin; range < end; ++range) {
      const int64_t first = range * kGrain, count = std::min(kGrain, pattern.nonzeros - first);
      for (int64_t i = 0; i < count; ++i) {
        const float* const sum = sums + slot_of[first + i];
        values[i] = sum[0];
        for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) values[i] += sum[chunk * slots];
      }
      cpu_kernels().narrow(values, count, lattice.source.dtype, grad_values, first);
    }
  };
  const int64_t ranges = divide_up(pattern.nonzeros, kGrain);
  if (ranges < cost::threads::kFewestCollectedRanges) {
    collect(0, ranges);
  } else {
    threads.run(ranges, collect);
  }
}

}  // namespace sparsekernels::jit
