// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What a call makes of its pattern before any tile is computed: the nonzeros in the order in which kernels take them,
// so that they are read as one stream, and their places in a plan's planes. Costs some nanosecond a nonzero on one
// thread.
#pragma once

#include <vector>

#include "base/workspace.h"
#include "sparse_conv2d/tiled/plan.h"

namespace sparsekernels::tiled {

// The pattern's rows of a group of the convolution, in slices of about as many nonzeros.
struct Slices {
  int64_t count;
  std::vector<int64_t> begin;  // [group][slice], and where the last one ends

  // At least `least`, and enough that with `items` of work each all threads are equally busy.
  Slices(const SparsePattern& pattern, int64_t groups, int64_t items, int64_t least, const Threads& threads);

  int64_t first(int64_t group, int64_t slice) const { return begin[static_cast<size_t>(group * (count + 1) + slice)]; }
  int64_t last(int64_t group, int64_t slice) const { return first(group, slice + 1); }
};

// The nonzeros of every group, slice, panel and residue lie side by side, run after run. The shortest runs come first:
// a processor predicts the end of a loop that is as long as the one before.
class PatternPacking {
 public:
  PatternPacking(
      const Lattice& lattice, const Plan& plan, const SparsePattern& pattern, const Slices& slices, bool wants_values);

  void reserve(WorkspaceLayout& layout);
  // Throws std::invalid_argument where an index is out of its range.
  void run(const Threads& threads);

  const int32_t* offsets() const { return offsets_; }  // of each nonzero from its panel's first vector, in floats
  const float* values() const { return values_; }
  // One for each row of the slice; rows count from the slice's first.
  const Run* runs(int64_t group, int64_t slice, int64_t panel, int64_t residue) const {
    const int64_t first = slices_.first(group, slice), last = slices_.last(group, slice);
    return runs_ + (group * rows_ + first) * panel_residues_ + (panel * residues_ + residue) * (last - first);
  }
  // Where the nonzeros of a run lie in the pattern, which has no residues.
  int64_t place(int64_t group, int64_t slice, int64_t panel, const Run& run) const {
    return begin_[panel * pattern_.rows + group * rows_ + slices_.first(group, slice) + run.row];
  }

 private:
  void fill_table();
  bool bound_panels(int64_t row);
  void place_panel_residues();
  bool copy_values(int64_t begin, int64_t end, int64_t to);
  void sort_runs(int64_t group, int64_t slice, int64_t panel_residue);
  bool fill_panel(int64_t group, int64_t slice, int64_t panel);
  template <class Body>
  bool in_parallel(const Threads& threads, int64_t count, Body body) const;

  const Lattice& lattice_;
  const Plan& plan_;
  const SparsePattern& pattern_;
  const Slices& slices_;
  const int64_t taps_, residues_, rows_, panel_residues_;  // rows of a group; panel_residues are panels times residues
  const bool wants_values_;
  int32_t* table_ = nullptr;  // offset of each column
  int32_t* residue_of_ = nullptr;
  int32_t* begin_ = nullptr;   // [panel][row], and where the last panel ends
  int32_t* counts_ = nullptr;  // [panel_residue][row], nonzeros; then where the next of them goes
  Run* runs_ = nullptr;
  int32_t* offsets_ = nullptr;
  float *values_ = nullptr, *wide_ = nullptr;
  const float* in_order_ = nullptr;
  std::vector<int64_t> starts_;  // [group][slice][panel_residue]
};

}  // namespace sparsekernels::tiled
