// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A pattern as machine code for its weight gradient: the nonzeros of a slice of rows, sorted by columns, in register
// sets of as many as there are registers for their sums. Of a run of vectors, a set loads each of its columns' vectors
// once and multiplies it with gradients in L1; at the end of the run each sum's lanes are added up.
// docs/sparse_kernels.md has the derivation.
#pragma once

#include <memory>
#include <vector>

#include "base/jit/executable.h"
#include "base/prefetch.h"
#include "sparse_conv2d/jit/weight_gradient_plan.h"

namespace sparsekernels::jit {

// What is prefetched meanwhile: `source_lines` and `grad_lines` at the end of each register set.
struct WeightGradientPrefetch {
  PrefetchCursor source, grads;
  int64_t source_lines, grad_lines;
};

// sums[slot] += the products of `vectors` vectors with their gradients, for each slot of a slice. `vectors` is at
// least 1. `masks`: those of the first vector, see vector_masks. `prefetch`: or null.
using WeightGradientKernel = void (*)(
    const float* planes, const float* grads, float* sums, const uint16_t* masks, int64_t vectors,
    WeightGradientPrefetch* prefetch);

// Where lanes are the rows of a slice (WeightGradientPlan::row_lanes): a run of positions, in three loops. Gradients of
// all of them follow each other, [position][lanes]. The steps of planes are bytes from the end of an inner loop.
struct RowGradientRun {
  int64_t columns, rows, microbatches;
  int64_t row_step, microbatch_step;
};

// sums[slot] += the products of a run's positions, for each slot of a slice: [column][lanes].
using RowGradientKernel = void (*)(const float* planes, const float* grads, float* sums, const RowGradientRun* run);

constexpr int64_t kSetSlots = 2 * kLanes;  // of a register set of 31 nonzeros

class WeightGradientKernels {
 public:
  // Throws std::invalid_argument where an index is out of its range.
  static std::shared_ptr<const WeightGradientKernels> make(
      const Lattice& lattice, const WeightGradientPlan& plan, const SparsePattern& pattern, const Threads& threads);

  // Null: the slice has no nonzeros.
  WeightGradientKernel kernel(int64_t group, int64_t slice) const {
    return kernels_[static_cast<size_t>(group * slices_ + slice)];
  }
  // The same, where lanes are rows.
  RowGradientKernel row_kernel(int64_t group, int64_t slice) const {
    return row_kernels_[static_cast<size_t>(group * slices_ + slice)];
  }
  // Where the slots of a slice begin; those of a group's slices follow each other.
  int64_t slots_before(int64_t group, int64_t slice) const {
    return slots_[static_cast<size_t>(group * slices_ + slice)];
  }
  int64_t slots() const { return slots_.back(); }
  // Register sets that end in a run through slices [first, last).
  int64_t sets(int64_t group, int64_t first, int64_t last) const {
    return (slots_before(group, last) - slots_before(group, first)) / kSetSlots;
  }
  // Of each nonzero, in the pattern's order.
  const std::vector<int32_t>& slot_of() const { return slot_of_; }
  // Of full strips, or of the last one.
  const std::vector<uint16_t>& masks(bool full_strip) const { return masks_[full_strip ? 0 : 1]; }
  size_t bytes() const {
    return code_->size() + slot_of_.size() * sizeof slot_of_[0] +
           slots_.size() * (sizeof kernels_[0] + sizeof row_kernels_[0] + sizeof slots_[0]) +
           (masks_[0].size() + masks_[1].size()) * sizeof masks_[0][0];
  }

 private:
  WeightGradientKernels() = default;

  int64_t slices_ = 0;
  std::unique_ptr<Executable> code_;
  std::vector<WeightGradientKernel> kernels_;
  std::vector<RowGradientKernel> row_kernels_;
  std::vector<int64_t> slots_;  // before each slice, and all of them
  std::vector<int32_t> slot_of_;
  std::vector<uint16_t> masks_[2];
};

}  // namespace sparsekernels::jit
