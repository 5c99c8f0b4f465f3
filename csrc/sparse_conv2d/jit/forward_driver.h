// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Forward and input gradient by kernels: planned, then run. To both, they are one operation on a lattice (lattice.h).
#pragma once

#include <memory>
#include <optional>

#include "sparse_conv2d/engine.h"
#include "sparse_conv2d/epilogue.h"
#include "sparse_conv2d/jit/forward_kernel.h"

namespace sparsekernels::jit {

// Everything but where tensors and values lie.
struct PlannedForward {
  Engine engine = Engine::kTiled;  // then the rest is not used
  ForwardPlan plan = {};
  // Of a chain of layers (layer_chain/layout.h), where the source is no tensor but the planes of its images: from one
  // to the next.
  std::optional<int64_t> planes_image;
  int64_t source_vector_stride = kLanes;  // from a vector of the source to the next, if they are not planes
  // From a vector of results to the next, where they are stored directly; and strides of the residual then.
  int64_t dest_vector_stride = kLanes;
  int64_t residual_image = 0, residual_channel = 0, residual_vector_stride = kLanes;
  std::shared_ptr<const ForwardKernels> kernels;

  int64_t items(const Lattice& lattice) const;
};

// `epilogue_flags`: what one has. `images`: in a micro-batch, else as the plan's cost says. `residual_channel`: floats
// from one channel of the residual to the next, else as in the destination.
PlannedForward plan_forward(
    const Lattice& lattice, const SparsePattern& pattern, int epilogue_flags, const Threads& threads,
    std::optional<int64_t> images = {}, std::optional<int64_t> residual_channel = {}, int64_t dest_images = 1);

// Calls body(begin, end) on disjoint ranges that cover [0, count) nonzeros, on all threads where that is worth it.
void for_pieces(int64_t count, const Threads& threads, const ParallelBody& body);

// to[i] = from[order[i]], of a dtype other than float64.
void gather_elements(
    const std::vector<int32_t>& order, const void* from, DType dtype, const Threads& threads, void* to);

// `values` [nonzeros + 2 * kValueBias]: the elements of `from`, of `dtype`, in `order`, as floats. `narrow` has half as
// many floats as there are nonzeros, and is used where dtype is not float32.
void arrange_values(
    const std::vector<int32_t>& order, const void* from, DType dtype, const Threads& threads, float* narrow,
    float* values);

// Items [begin, end) of what has kernels.
void run_items(
    const Lattice& lattice, const PlannedForward& planned, const SparsePattern& pattern, const float* values,
    const PackedEpilogue& packed, int64_t begin, int64_t end);

// dest = correlation of source with the pattern, and the epilogue, of what has kernels. `order`: of each value, in the
// order in which kernels take them, its place in pattern.values.
void forward(
    const Lattice& lattice, const PlannedForward& planned, const SparsePattern& pattern,
    const std::vector<int32_t>& order, const PackedEpilogue& packed, const Threads& threads);

}  // namespace sparsekernels::jit
