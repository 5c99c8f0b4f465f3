// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Kernels for patterns whose columns are alike in groups, as those of an input gradient are whose weight has blocks of
// one column: a row that has a column has those of the neighboring source channels, too. The vectors of some channels
// stay in registers, for some vectors of positions, while the rows that have them go by: their products are added to
// sums in memory. docs/sparse_kernels.md has the derivation.
#pragma once

#include <cstdint>
#include <vector>

#include "base/jit/assembler.h"
#include "sparse_conv2d/jit/forward_plan.h"

namespace sparsekernels::jit {

// A call of a kernel for each tile: some channels of a block of them at one tap, and the rows that have them.
struct ScatterRun {
  int32_t source;     // the first channel's vector, from that of a position, in bytes
  int32_t mask;       // of the tap, in bytes; negative: none
  int32_t rows;       // how many
  int32_t first_row;  // in ScatterTables::rows
  int32_t first_value, channels;
  int32_t tap, residue;
};

// The vectors of a tile.
struct ScatterTile {
  const float* vectors[kMostScatterTileVectors];
  float* sums[kMostScatterTileVectors];  // of the first row of a slice
  const uint16_t* masks[kMostScatterTileVectors];
};

// sums[row] += the products of the row's values with the vectors of the channels. `rows`: in bytes of sums. `values`:
// [row][channel]. `residue`: bytes from the tile's sums to those of the run's residue.
using ScatterKernel =
    void (*)(const ScatterTile* tile, const ScatterRun* run, const int32_t* rows, const float* values, int64_t residue);

// The kernel of so many channels, `channel_bytes` from each other, and vectors of positions.
void write_scatter_kernel(int64_t channels, int64_t vectors, bool is_masked, int64_t channel_bytes, Assembler& code);

struct ScatterTables {
  std::vector<ScatterRun> runs;
  std::vector<int32_t> rows;
  std::vector<int64_t> first_run;    // of each slice of each group, and the end
  std::vector<uint64_t> reach_taps;  // of each reach that occurs, see LoopTables
  int64_t slices;

  size_t bytes() const {
    return runs.size() * sizeof runs[0] + rows.size() * sizeof rows[0] + first_run.size() * sizeof first_run[0] +
           reach_taps.size() * sizeof reach_taps[0];
  }
  const ScatterRun* begin(int64_t group, int64_t slice) const {
    return runs.data() + first_run[static_cast<size_t>(group * slices + slice)];
  }
};

// How many channels of a block of `channels` are in registers together: parts as even as can be.
inline int64_t scatter_parts(int64_t channels) {
  return divide_up(channels, kMostScatterChannels);
}

// False where an index is out of its range, or channels are not alike. `order`: see ForwardKernels::order; of the
// pattern's size. A tap that reaches nothing but padding has no run.
bool make_scatter_tables(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, ScatterTables& tables,
    std::vector<int32_t>& order);

}  // namespace sparsekernels::jit
