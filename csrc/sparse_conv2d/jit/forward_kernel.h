// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A pattern as machine code: one kernel for the nonzeros that a slice of its rows has in a panel of channels. A slice
// is as many rows as fit the registers, and a kernel computes one vector of sums for each of them: it loads each vector
// of the planes that some row needs once, and multiplies and adds it to the sums of every such row. No loop, no branch,
// no index: where a vector lies is a displacement within its instruction. docs/sparse_kernels.md has the derivation.
#pragma once

#include <memory>
#include <vector>

#include "base/jit/executable.h"
#include "sparse_conv2d/jit/forward_plan.h"
#include "sparse_conv2d/jit/loop_kernel.h"
#include "sparse_conv2d/jit/scatter_kernel.h"

namespace sparsekernels::jit {

// sums[row of the slice] (16 floats each) = (panel 0 ? 0 : sums[row]) + the products of the vector with the panel's
// nonzeros. `values` are those of the kernel, plus kValueBias. `masks`: those of the vector, see Layout::masks.
// Where results are stored directly, the last panel's kernels add the rows' bias, do what else the epilogue says, and
// store to `dest`, row after row as the tensor's channels lie, the lanes that the last of the masks has. `bias`: of the
// slice's first row, see PackedEpilogue.
using ForwardKernel = void (*)(
    const float* vector, const float* values, float* sums, const uint16_t* masks, float* dest, const float* bias);

constexpr int64_t kValueBias = 128;  // so that more displacements fit a byte

struct KernelEntry {
  ForwardKernel kernel;  // null: it would change nothing
  int32_t values;        // where the kernel's begin
  int32_t bytes;         // of code
};

class ForwardKernels {
 public:
  // Throws std::invalid_argument where an index is out of its range.
  static std::shared_ptr<const ForwardKernels> make(
      const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, const Threads& threads);

  const KernelEntry& entry(int64_t group, int64_t slice, int64_t panel, int64_t residue) const {
    return entries_[static_cast<size_t>(((group * slices_ + slice) * panels_ + panel) * residues_ + residue)];
  }
  // Where the plan has blocks of rows, in place of these: the kernel of a tile of rows and vectors, and the pattern.
  LoopKernel loop(int64_t rows, int64_t vectors, bool first_panel, bool direct) const {
    return loop_kernels_[loop_index(rows, vectors, first_panel, direct)];
  }
  const LoopTables& loops() const { return loops_; }
  // Where it has channels that are alike; loops() has the reaches then.
  ScatterKernel scatter_kernel(int64_t channels, int64_t vectors, bool is_masked) const {
    return scatter_kernels_[scatter_index(channels, vectors, is_masked)];
  }
  const ScatterTables& scatter() const { return scatter_; }
  const KernelEntry* end() const { return entries_.data() + entries_.size(); }
  // Of each value, in the order in which kernels take them, its place in the pattern's values.
  const std::vector<int32_t>& order() const { return order_; }
  // kMaskStride for each vector of a strip, the last of which are all lanes; or none, if they are not used.
  const std::vector<uint16_t>& masks() const { return masks_; }
  size_t bytes() const {
    return code_->size() + order_.size() * sizeof order_[0] + entries_.size() * sizeof entries_[0] +
           masks_.size() * sizeof masks_[0] + loop_kernels_.size() * sizeof loop_kernels_[0] + loops_.bytes() +
           scatter_kernels_.size() * sizeof scatter_kernels_[0] + scatter_.bytes();
  }

 private:
  ForwardKernels() = default;
  static std::shared_ptr<const ForwardKernels> make_loops(
      const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern,
      const std::shared_ptr<ForwardKernels>& result);
  static std::shared_ptr<const ForwardKernels> make_scatter(
      const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern,
      const std::shared_ptr<ForwardKernels>& result);
  static size_t scatter_index(int64_t channels, int64_t vectors, bool is_masked) {
    return static_cast<size_t>(((channels - 1) * kMostScatterTileVectors + vectors - 1) * 2 + is_masked);
  }
  static size_t loop_index(int64_t rows, int64_t vectors, bool first_panel, bool direct) {
    return static_cast<size_t>(((rows - 1) * kMostTileVectors + vectors - 1) * 4 + (first_panel ? 2 : 0) + direct);
  }

  int64_t slices_ = 0, panels_ = 0, residues_ = 0;
  std::unique_ptr<Executable> code_;
  std::vector<KernelEntry> entries_;
  std::vector<int32_t> order_;
  std::vector<uint16_t> masks_;
  std::vector<LoopKernel> loop_kernels_;
  LoopTables loops_ = {};
  std::vector<ScatterKernel> scatter_kernels_;
  ScatterTables scatter_ = {};
};

}  // namespace sparsekernels::jit
