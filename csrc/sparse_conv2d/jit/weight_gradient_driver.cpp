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

// The gradients of rows [first, last) as lanes, [micro-batch][row][column][image][lanes]; lanes beyond the last row are
// zeros, and so are images that are none.
void pack_grads_as_lanes(
    const Lattice& lattice, const WeightGradientPlan& plan, const WorkItem& work_item, int64_t first, int64_t last,
    float* grads) {
  const Activation& dest = lattice.dest;
  const int64_t zero = 0, element = element_size(dest.dtype);
  PackCall call = {};
  call.images = 1;
  call.column_stride = dest.stride[1];  // "columns" are the rows of the pattern, "channels" the positions
  call.size[0] = 1;
  call.size[1] = last - first;
  call.channel_floats = plan.row_lanes;
  call.phase_floats = plan.row_lanes;
  call.vector_stride = kLanes;
  call.rows = 1;
  call.pitch = plan.row_lanes;
  for (int d = 0; d < 2; ++d) {
    call.step[d] = 1;
    call.phases[d] = 1;
    call.first[d] = &zero;
  }
  const char* const data = static_cast<const char*>(dest.data);
  const bool copies = dest.dtype == DType::kFloat32 && dest.stride[1] == 1;  // what follows each other already
  const size_t row_bytes = static_cast<size_t>(last - first) * sizeof(float);
  const auto pack = [&](int64_t image, int64_t y, int64_t x, int64_t positions, int64_t stride, float* to) {
    const int64_t channel = work_item.group * lattice.dest_channels + first;
    call.image[0] =
        data + (image * dest.stride[0] + channel * dest.stride[1] + y * dest.stride[2] + x * dest.stride[3]) * element;
    if (copies) {
      constexpr int64_t kAhead = 16;  // positions: each is often in a page of its own
      const float* from = static_cast<const float*>(call.image[0]);
      for (int64_t position = 0; position < positions; ++position, from += stride, to += plan.row_lanes) {
        if (row_bytes == kVectorBytes && plan.row_lanes == kLanes) {
          __builtin_prefetch(from + kAhead * stride);
          std::memcpy(to, from, kVectorBytes);
          continue;
        }
        if (row_bytes == 2 * kVectorBytes && plan.row_lanes == 2 * kLanes) {
          __builtin_prefetch(from + kAhead * stride);
          __builtin_prefetch(from + kAhead * stride + kLanes);
          std::memcpy(to, from, 2 * kVectorBytes);
          continue;
        }
        std::memcpy(to, from, row_bytes);
        std::memset(to + (last - first), 0, static_cast<size_t>(plan.row_lanes) * sizeof(float) - row_bytes);
      }
      return;
    }
    call.channels = positions;
    call.channel_stride = stride;
    call.order = stride == 1 && dest.stride[1] != 1 ? VectorOrder::kChannels : VectorOrder::kColumns;
    call.planes = to;
    cpu_kernels().jit_pack[static_cast<int>(dest.dtype)].pack(call);
  };
  const bool rows_follow = work_item.size[0] == 1 || dest.stride[2] == work_item.size[1] * dest.stride[3];
  for (int64_t b = 0; b < work_item.microbatches; ++b) {
    const int64_t image = (work_item.first_microbatch + b) * plan.images;
    float* const to = grads + b * work_item.size[0] * work_item.size[1] * plan.images * plan.row_lanes;
    const int64_t *const at = work_item.first, *const size = work_item.size;
    if (plan.images > 1) {  // of one pixel
      const int64_t images = std::min(plan.images, dest.size[0] - image);
      pack(image, at[0], at[1], images, dest.stride[0], to);
      std::memset(
          to + images * plan.row_lanes, 0,
          static_cast<size_t>((plan.images - images) * plan.row_lanes) * sizeof(float));
    } else if (rows_follow) {
      pack(image, at[0], at[1], size[0] * size[1], dest.stride[3], to);
    } else {
      for (int64_t y = 0; y < size[0]; ++y)
        pack(image, at[0] + y, at[1], size[1], dest.stride[3], to + y * size[1] * plan.row_lanes);
    }
  }
}

// Adds what a work item gives to the sums of some slices, whose rows are lanes.
void run_row_gradient_item(
    const Lattice& lattice, const WeightGradientPlan& plan, const WeightGradientKernels& kernels,
    const WorkItem& work_item, int64_t first_slice, int64_t last_slice, float* sums) {
  using cost::weight_gradient::kMostRowRun;
  float *planes, *grads;
  WorkspaceLayout own;
  own.add(&planes, plan.front_floats + work_item.microbatches * plan.microbatch_floats + plan.back_floats);
  own.add(&grads, work_item.microbatches * plan.grad_microbatch_floats);
  own.allocate(worker_workspace);
  planes += plan.front_floats;
  pack_source(lattice, plan, work_item, planes);
  const int64_t columns = work_item.size[1] * plan.images, row_floats = plan.pitch * plan.images;
  // Whole micro-batches, as many as are not too many positions; or rows of one; or a part of a row.
  const int64_t run_columns = evened(columns, kMostRowRun);
  const int64_t run_rows =
      run_columns < columns ? 1 : std::max<int64_t>(1, std::min(work_item.size[0], kMostRowRun / columns));
  const int64_t run_microbatches = run_columns < columns || run_rows < work_item.size[0]
                                       ? 1
                                       : std::max<int64_t>(1, kMostRowRun / (columns * run_rows));
  for (int64_t slice = first_slice; slice < last_slice; ++slice) {
    const RowGradientKernel kernel = kernels.row_kernel(work_item.group, slice);
    if (kernel == nullptr) continue;
    const int64_t rows = lattice.dest_channels;
    pack_grads_as_lanes(lattice, plan, work_item, plan.first_row(slice, rows), plan.first_row(slice + 1, rows), grads);
    float* const own_sums = sums + kernels.slots_before(work_item.group, slice);
    for (int64_t b = 0; b < work_item.microbatches; b += run_microbatches)
      for (int64_t row = 0; row < work_item.size[0]; row += run_rows)
        for (int64_t column = 0; column < columns; column += run_columns) {
          const int64_t count = std::min(run_rows, work_item.size[0] - row);
          const int64_t across = std::min(run_columns, columns - column);
          const RowGradientRun run = {
              .columns = across,
              .rows = count,
              .microbatches = std::min(run_microbatches, work_item.microbatches - b),
              .row_step = (row_floats - across) * 4,
              .microbatch_step = (plan.microbatch_floats - count * row_floats) * 4};
          kernel(
              planes + b * plan.microbatch_floats + row * row_floats + column,
              grads + ((b * work_item.size[0] + row) * columns + column) * plan.row_lanes, own_sums, &run);
        }
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
    const Lattice& lattice, const PlannedWeightGradient& planned, const SparsePattern& pattern,
    const std::vector<int32_t>& slot_of, void* grad_values, const Threads& threads) {
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
        if (plan.row_lanes != 0) {
          run_row_gradient_item(lattice, plan, *kernels, work_item, first, last, own);
          continue;
        }
        run_weight_gradient_item(lattice, plan, *kernels, work_item, u + 1 < until ? &next : nullptr, first, last, own);
      }
      item += count;
    }
  });
  // Back into the pattern's order, the chunks added up.
  constexpr int64_t kGrain = cost::threads::kCollectedGrain;
  const auto collect = [&](int64_t begin, int64_t end) {
    float values[kGrain];
    for (int64_t range = begin; range < end; ++range) {
      const int64_t first = range * kGrain, count = std::min(kGrain, pattern.nonzeros - first);
      for (int64_t i = 0; i < count; ++i) {
        const float* const sum = sums + slot_of[static_cast<size_t>(first + i)];
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
