// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What a weight gradient of blocks is cut into: positions into lanes, parts and strips, the weight into regions.
#pragma once

#include <cstdint>
#include <vector>

#include "sparse_conv2d/block/call.h"
#include "sparse_conv2d/block/gradient_calls.h"
#include "sparse_conv2d/lattice.h"

namespace sparsekernels::block {

// 32 translates of a place are a lane set. Lane v is region v % (regions of an image) of image v / (regions of one).
// Regions are of one size, so that no lane is read where another one's positions, or none, are: what lies there may be
// infinite, and has no share in a gradient.
struct GradientLanes {
  int64_t grid[2];
  int64_t size[2];  // positions of a lane
  int64_t lanes, sets;
};

GradientLanes choose_gradient_lanes(const Lattice& lattice);

// Consecutive positions of a lane set, or all positions of some lane sets.
struct GradientStrip {
  int64_t set, sets;
  int64_t row, rows;
  int64_t column, columns;

  int64_t chunks() const { return sets * rows * columns; }
};

// A work item: some block rows and block columns of a group, over a part of the positions.
struct GradientItem {
  int64_t group, part;
  int64_t first_row, rows;        // block rows of the pattern
  int64_t first_column, columns;  // block columns
};

struct GradientPlan {
  GradientLanes lanes;
  int64_t parts;  // of rows of positions of all lane sets: each has sums of its own, which are added up
  int64_t row_regions, column_regions;
  GradientStrip most;               // a strip at most
  int64_t chunks_at_once;           // of a strip, whose pairs stay in L1
  std::vector<int64_t> row_bounds;  // of each group's regions, in block rows: [groups][row_regions + 1]

  int64_t items(int64_t groups) const { return groups * parts * row_regions * column_regions; }
};

GradientPlan plan_gradient(const Lattice& lattice, const BlockPattern& pattern, int64_t threads);

GradientItem gradient_item(const GradientPlan& plan, const BlockPattern& pattern, int64_t index);

std::vector<GradientStrip> strips_of(const GradientPlan& plan, int64_t part);

// The tiles of channels of a work item's blocks, block row after block row.
struct GradientPanel {
  int64_t row;                    // block row
  int64_t first_unit, units;      // of 16 outputs, from the item's first output on
  int64_t first_output, outputs;  // of the item
  int64_t first_tile, tiles;
  int64_t sums;  // the first of its tiles': [pair of units][tile][unit of these]
  int64_t first_block, end_block;
};

struct GradientProgram {
  bool gathered;
  std::vector<GradientPanel> panels;
  std::vector<int32_t> rows;  // of each tile: as GradientProductCall has it
  int64_t sums;               // tiles of sums
};

// `lines`: between neighboring groups of 16 channels; `tap_offsets`: in lines.
GradientProgram gradient_program(
    const GradientItem& item, const BlockPattern& pattern, const Lattice& lattice, int64_t lines,
    const std::vector<int64_t>& tap_offsets);

// Calls visit(tile of the panel, first row of the tile, channels, first of them in the block, block) for the pieces of
// a panel's blocks that there are sums of, tile by tile.
template <class Visit>
void each_piece(
    const GradientPanel& panel, const BlockPattern& pattern, const Lattice& lattice, bool gathered,
    const Visit& visit) {
  int64_t slot = 0;
  for (int64_t b = panel.first_block; b < panel.end_block; ++b) {
    const int64_t column = pattern.col_indices[b] / pattern.taps;
    if (!lattice.taps[static_cast<size_t>(pattern.col_indices[b] % pattern.taps)].reaches) continue;
    const int64_t width = pattern.channels - column * pattern.block[1] < pattern.block[1]
                              ? pattern.channels - column * pattern.block[1]
                              : pattern.block[1];
    for (int64_t channel = 0; channel < width;) {
      const int64_t row = slot % kUnit, count = width - channel < kUnit - row ? width - channel : kUnit - row;
      visit(slot / kUnit, row, count, channel, b);
      channel += count;
      slot += count;
    }
    if (!gathered) slot = divide_up(slot, kUnit) * kUnit;
  }
}

}  // namespace sparsekernels::block
