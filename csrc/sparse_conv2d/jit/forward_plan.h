// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How a forward, or an input gradient, by kernels is cut up: into micro-batches and strips that a work item takes,
// panels of channels whose vectors and code fit L1, and slices of the pattern's rows whose sums fit the registers.
// docs/sparse_kernels.md derives the choices.
#pragma once

#include <optional>

#include "sparse_conv2d/jit/layout.h"
#include "sparse_conv2d/jit/pack_calls.h"
#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels::jit {

constexpr int64_t kMostSliceRows = 31;  // of 32 registers: one holds the vector
constexpr int64_t kMostWriteSlices = 4;

struct ForwardPlan : Layout {
  int64_t panel_channels, panels;
  int64_t item_microbatches;
  int64_t slices, slice_rows;  // of the rows of a group; slice_rows 0: even slices
  int64_t write_slices;        // whose results are written at a time
  int64_t thread_shares;       // of the slices, where work items are too few for the threads
  int64_t threads;             // that share the work: 1 where waking others takes longer than they save
  int epilogue_flags;          // what of it kernels do themselves; 0 unless direct
  int64_t residual_channel;    // of the residual, in floats from one channel to the next
  int64_t block_rows;          // whose columns are alike, and that loops serve; 0: the pattern is code
  int64_t scatter_channels;    // that are alike, and whose vectors stay in registers (scatter_kernel.h); 0: none
  int64_t tile_vectors;        // of loops and of these, at most
  bool prefetches_dest;        // while kernels run
  bool gapless;                // results are computed as they would lie in a tensor of as many interleaved images
  bool direct;                 // results go from registers to the tensor, not by way of vectors

  bool has_tiles() const { return block_rows != 0 || scatter_channels != 0; }
  int64_t work_items() const { return divide_up(microbatches, item_microbatches) * strips[0] * strips[1]; }
  int64_t first_row(int64_t slice, int64_t rows) const {
    if (slice_rows == 0) return rows * slice / slices;
    return slice * slice_rows < rows ? slice * slice_rows : rows;
  }
};

// Of L2, in floats: a micro-batch's planes stay there while all slices go by, or strips of it where it is too large.
int64_t planes_budget();

// The rows that a tile of loops has, at most, with so many vectors.
int64_t most_tile_rows(int64_t vectors);
constexpr int64_t kMostTileVectors = 7;
constexpr int64_t kMostScatterTileVectors = 3, kMostScatterChannels = 8;  // whose vectors fit the registers

// Work items, slices and shares depend on the number of threads; what an output is summed from does not. `epilogue`:
// the what one has, see epilogue.h. `images`: in a micro-batch, else those that cost least, of at most `most_images`.
// `dest_images`: that the destination interleaves.
ForwardPlan make_forward_plan(
    const Lattice& lattice, const PatternTraits& traits, int epilogue_flags, int64_t threads,
    std::optional<int64_t> images = {}, int64_t most_images = kMostImages, int64_t dest_images = 1);

}  // namespace sparsekernels::jit
