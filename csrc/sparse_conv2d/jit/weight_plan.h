// How a weight gradient by programs is cut up: into units of bundles and strips whose lines fit the second cache, runs
// of lines whose gradients fit the first one, and slices of the pattern's rows. docs/sparse_kernels.md derives the
// choices.
#pragma once

#include <algorithm>

#include "sparse_conv2d/jit/layout.h"

namespace sparsekernels {

struct WeightPlan : BundleLayout {
  // Gradients lie as the planes do: line by line between each other, or planes that follow each other.
  int64_t grad_line_floats, grad_channel_floats, grad_bundle_floats;
  bool bundles_follow;         // lines of a bundle's planes are followed by those of the next, gradients too
  int64_t slices, slice_rows;  // of the rows of a group
  int64_t run_lines;           // at most
  int64_t unit_bundles;
  int64_t chunks;  // of units: each has sums of its own
  int64_t parts;   // of the slices, for threads to share
  bool is_worth_it;

  int64_t units() const { return divide_up(bundles, unit_bundles) * strips[0] * strips[1]; }
  int64_t first_row(int64_t slice, int64_t rows) const { return std::min(rows, slice * slice_rows); }
};

// Parts depend on the number of threads; what a gradient is summed from does not.
WeightPlan make_weight_plan(const Lattice& lattice, int64_t nonzeros, int64_t threads);

}  // namespace sparsekernels
