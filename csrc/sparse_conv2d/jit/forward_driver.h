// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Runs a forward or an input gradient by kernels; to these, both are one operation on a lattice (lattice.h).
#pragma once

#include <memory>
#include <optional>

#include "sparse_conv2d/epilogue.h"
#include "sparse_conv2d/jit/forward_kernel.h"
#include "sparse_conv2d/jit/forward_plan.h"

namespace sparsekernels::jit {

// Everything but where tensors and values lie.
struct PlannedForward {
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

// `values` [nonzeros + 2 * kValueBias]: the elements of `from`, of `dtype`, in `order`, as floats. `narrow` has half as
// many floats as there are nonzeros, and is used where dtype is not float32.
void arrange_values(
    const std::vector<int32_t>& order, const void* from, DType dtype, const Threads& threads, float* narrow,
    float* values);

// Items [begin, end).
void run_items(
    const Lattice& lattice, const PlannedForward& planned, const SparsePattern& pattern, const float* values,
    const PackedEpilogue& packed, int64_t begin, int64_t end);

// dest = correlation of source with the pattern, and the epilogue. `order`: of each value, in the order in which
// kernels take them, its place in pattern.values.
void forward(
    const Lattice& lattice, const PlannedForward& planned, const SparsePattern& pattern,
    const std::vector<int32_t>& order, const PackedEpilogue& packed, const Threads& threads);

}  // namespace sparsekernels::jit
