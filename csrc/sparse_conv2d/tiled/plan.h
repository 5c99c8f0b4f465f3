// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How a lattice is cut up: into work items that a thread takes, panels of channels that fit L1, and tiles that
// fit the registers. docs/sparse_kernels.md derives the choices.
#pragma once

#include "sparse_conv2d/lattice.h"
#include "sparse_conv2d/tiled/microkernel_calls.h"

namespace sparsekernels::tiled {

enum class TileKind { kForward, kWeightGradient };

struct Plan {
  TileKind kind;
  LaneGrid lanes;
  bool flat;
  int64_t tile_rows, tile_columns;                  // at most; a work item's rows and columns are cut evenly
  int64_t item_lane_sets, item_rows, item_columns;  // of lanes, and positions of a lane
  int64_t panel_channels, panels;
  int64_t slice_rows;                    // pattern rows whose vectors of a work item stay in L2
  int64_t plane_rows, plane_columns;     // vectors of one phase, its halo included
  int64_t phase_vectors, plane_vectors;  // of one lane set: of a phase, of all phases
  int64_t channel_vectors;               // from one channel's planes to the next

  int64_t items_of(int d) const;  // 0: lane sets, 1: rows, 2: columns
  int64_t work_items() const { return items_of(0) * items_of(1) * items_of(2); }
};

// `most_vectors`: of a tile of this kind. Does not depend on the number of threads.
Plan make_plan(const Lattice& lattice, int64_t nonzeros, TileKind kind, int64_t most_vectors);

// The vectors of a work item, side by side in memory, of one pattern row and residue.
inline int64_t item_vectors(const Plan& plan) {
  return plan.item_lane_sets * plan.item_rows * plan.item_columns;
}

}  // namespace sparsekernels::tiled
