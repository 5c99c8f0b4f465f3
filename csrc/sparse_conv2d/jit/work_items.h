// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The parts that a layout of micro-batches cuts a lattice into, and how they are read.
#pragma once

#include "base/prefetch.h"
#include "sparse_conv2d/jit/layout.h"
#include "sparse_conv2d/jit/pack_calls.h"

namespace sparsekernels::jit {

// A strip of some micro-batches.
struct WorkItem {
  int64_t group;  // of the convolution
  int64_t first_microbatch, microbatches;
  int64_t first[2], size[2];  // positions
};

// Work item `index` of a group of the convolution, of at most `item_microbatches` micro-batches each.
WorkItem work_item_at(
    const Lattice& lattice, const Layout& layout, int64_t item_microbatches, int64_t group, int64_t index);

// The slice that a thread's share of a group's slices begins with, so that shares have about as many nonzeros. Plan is
// ForwardPlan or WeightGradientPlan, whose last share ends at its last slice.
template <class Plan>
int64_t first_slice_of(const Plan& plan, const SparsePattern& pattern, int64_t rows, int64_t group, int64_t share) {
  if (share == plan.thread_shares) return plan.slices;
  const int32_t* const crow = pattern.crow_indices + group * rows;
  const int64_t wanted = 2 * (crow[0] + (int64_t{crow[rows]} - crow[0]) * share / plan.thread_shares);
  int64_t slice = 0;
  while (slice < plan.slices &&
         int64_t{crow[plan.first_row(slice, rows)]} + crow[plan.first_row(slice + 1, rows)] <= wanted)
    ++slice;
  return share == 0 ? 0 : slice;
}

VectorOrder pack_order_of(const Activation& tensor, int64_t channels);

// Pointers to the images of a micro-batch, at a channel. Call is PackCall or UnpackCall.
template <class Call>
void set_images(Call& call, const Activation& tensor, const Layout& layout, int64_t microbatch, int64_t channel) {
  call.images = layout.images;
  for (int64_t i = 0; i < layout.images; ++i) {
    const int64_t image = microbatch * layout.images + i;
    char* const data = static_cast<char*>(tensor.data);
    call.image[i] = image >= tensor.size[0]
                        ? nullptr
                        : data + (image * tensor.stride[0] + channel * tensor.stride[1]) * element_size(tensor.dtype);
  }
}

template <class Call>
void set_strides(Call& call, const Activation& tensor) {
  call.channel_stride = tensor.stride[1];
  call.row_stride = tensor.stride[2];
  call.column_stride = tensor.stride[3];
  call.size[0] = tensor.size[2];
  call.size[1] = tensor.size[3];
}

// What a work item reads of the source, and channels of what it reads or writes of the destination, to bring them up
// from memory beforehand. Nothing, where that is not worth it.
PrefetchCursor prefetch_source(const Lattice& lattice, const Layout& layout, const WorkItem& work_item);
PrefetchCursor prefetch_dest(
    const Lattice& lattice, const Layout& layout, const WorkItem& work_item, int64_t channel, int64_t channels);

// As below, from a source whose vectors lie `vector_stride` floats apart; no tap reaches nothing.
void gather_source(
    const Lattice& lattice, const Layout& layout, const WorkItem& work_item, int64_t vector_stride, float* planes);

// The planes of a work item, micro-batch after micro-batch; with some_reach_nothing, zeros behind the channels of each.
void pack_source(const Lattice& lattice, const Layout& layout, const WorkItem& work_item, float* planes);

}  // namespace sparsekernels::jit
