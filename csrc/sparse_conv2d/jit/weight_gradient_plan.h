// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How a weight gradient by kernels is cut up: into work items of micro-batches and strips whose vectors fit L2, runs
// of vectors whose gradients fit L1, and slices of the pattern's rows. docs/sparse_kernels.md derives the
// choices.
#pragma once

#include <algorithm>

#include "sparse_conv2d/jit/layout.h"
#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels::jit {

struct WeightGradientPlan : Layout {
  // Gradients lie as the planes do, planar or interleaved.
  int64_t grad_vector_stride, grad_channel_floats, grad_microbatch_floats;
  bool microbatches_follow;    // vectors of a micro-batch's planes are followed by those of the next, gradients too
  int64_t slices, slice_rows;  // of the rows of a group
  int64_t run_vectors;         // at most
  // Of a slice, whose rows are alike, as lanes of vectors; 0: lanes are positions. See RowGradientRun.
  int64_t row_lanes;
  // Rows that are alike, with which register sets are tiles of rows and columns; 1: none are.
  int64_t rows_alike;
  int64_t item_microbatches;
  int64_t chunks;         // of work items: each has sums of its own
  int64_t thread_shares;  // of the slices, where chunks are too few for the threads
  // False where lanes that are no positions cannot be made to read zeros: taps with more than kMostMasks shifts leave
  // the image, as those of a padded 9x9 kernel do, however many images are interleaved. The plan then has nothing but
  // this.
  bool is_possible;

  int64_t work_items() const { return divide_up(microbatches, item_microbatches) * strips[0] * strips[1]; }
  int64_t floats() const { return microbatch_floats + grad_microbatch_floats; }
  int64_t first_row(int64_t slice, int64_t rows) const { return std::min(rows, slice * slice_rows); }
};

// Of L2, in floats: a work item's planes stay there while all slices go by, beside a slice's gradients and what comes
// up for the next ones.
int64_t planes_and_grads_budget();

// Shares depend on the number of threads; what a gradient is summed from does not.
WeightGradientPlan make_weight_gradient_plan(const Lattice& lattice, const PatternTraits& traits, int64_t threads);

}  // namespace sparsekernels::jit
