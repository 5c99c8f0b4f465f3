// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Runs loops (loop_kernel.h) over the vectors of a work item, a tile of them at a time.
#pragma once

#include <functional>
#include <vector>

#include "sparse_conv2d/jit/forward_kernel.h"
#include "sparse_conv2d/jit/work_items.h"

namespace sparsekernels::jit {

// Vectors of a work item that reach the same taps.
struct LoopTileVectors {
  int64_t reach, count;
  int32_t microbatch[kMostTileVectors], vector[kMostTileVectors];
};

// All vectors of a work item, in tiles as even as can be.
std::vector<LoopTileVectors> loop_tiles(const ForwardPlan& plan, const LoopTables& tables, const WorkItem& work_item);

// What a slice's tiles are called with: `tiles` of the same order. Strides from row to row in floats.
struct LoopSlice {
  int64_t group, slice;
  const float* values;
  const float* bias;       // of the slice's first row
  int64_t residue_floats;  // of sums, from residue to residue
  int64_t row_floats, residual_row_floats;
};

// Calls `turn` after each kernel.
template <class Turn>
void run_loop_slice(
    const Lattice& lattice, const ForwardPlan& plan, const ForwardKernels& kernels, const LoopSlice& slice,
    const std::vector<LoopTileVectors>& vectors, std::vector<LoopTile>& tiles, const Turn& turn) {
  const LoopTables& tables = kernels.loops();
  const int64_t rows = lattice.dest_channels;
  const int64_t first = plan.first_row(slice.slice, rows), last = plan.first_row(slice.slice + 1, rows);
  const int64_t residues = lattice.residues();
  for (int64_t row = first; row < last; row += plan.block_rows) {
    const int64_t block_rows = std::min(plan.block_rows, last - row);
    const int64_t parts = tile_parts(block_rows, plan.tile_vectors);
    const LoopBlock& block = tables.block(slice.group, row / plan.block_rows);
    for (int64_t panel_residue = 0; panel_residue < tables.panel_residues; ++panel_residue) {
      const bool is_first = panel_residue < residues;
      const bool is_direct = plan.direct && panel_residue + residues >= tables.panel_residues;
      for (size_t t = 0; t < tiles.size(); ++t) {
        const LoopList& list = tables.list(slice.group, row / plan.block_rows, panel_residue, vectors[t].reach);
        if (!is_first && !is_direct && list.is_empty()) continue;
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t begin = block_rows * part / parts, end = block_rows * (part + 1) / parts;
          const int64_t within = row - first + begin;
          const LoopRows own = {
              .sums = (panel_residue % residues * slice.residue_floats + within * kLanes) * 4,
              .dest = within * slice.row_floats * 4,
              .residual = within * slice.residual_row_floats * 4,
              .bias = slice.bias + within};
          kernels.loop(end - begin, vectors[t].count, is_first, is_direct)(
              &tiles[t], tables.columns.data() + list.first, list.counts,
              slice.values + block.first_value + begin * block.columns, &own);
          turn();
        }
      }
    }
  }
}

}  // namespace sparsekernels::jit
