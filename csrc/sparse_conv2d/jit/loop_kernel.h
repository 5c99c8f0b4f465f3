// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Kernels for patterns whose rows are alike in groups, as those of blocks are: the pattern is data, and a kernel a loop
// over columns that all rows of a *block* have. A tile of sums, some rows by some vectors, stays in registers: of each
// column a vector is loaded once for all rows, a weight once for all vectors. docs/sparse_kernels.md has the
// derivation.
#pragma once

#include <cstdint>
#include <vector>

#include "base/jit/assembler.h"
#include "sparse_conv2d/jit/forward_plan.h"
#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels::jit {

// A column of a block: its vector, from that of a position, in bytes; its place among the block's columns, as kernels
// take them, in bytes of one value.
struct LoopColumn {
  int32_t vector, place;
};

// Where the values of a block begin, [part of the rows][column][row of the part], and how many columns it has.
struct LoopBlock {
  int32_t first_value, columns;
};

// Columns of a block in a panel and residue. Those that mask 0 (none), 1, 2 and so on is for follow each other.
struct LoopList {
  int64_t first;
  int32_t counts[kMostMasks + 1];

  bool is_empty() const;
};

// The vectors of a tile, and what is stored for them: of the first row of a slice.
struct LoopTile {
  const float* vectors[kMostTileVectors];
  float* sums[kMostTileVectors];
  const uint16_t* masks[kMostTileVectors];
  float* dest[kMostTileVectors];
  const float* residual[kMostTileVectors];
  const float* epilogue;  // the packed one's bias
};

// Rows of a tile: from the slice's first row to its first, in bytes; and its bias.
struct LoopRows {
  int64_t sums, dest, residual;
  const float* bias;
};

// As ForwardKernel (forward_kernel.h), for all rows and vectors of a tile.
using LoopKernel = void (*)(
    const LoopTile* tile, const LoopColumn* columns, const int32_t* counts, const float* values, const LoopRows* rows);

// Rows of a block that are computed together: in parts that are as even as can be.
inline int64_t tile_parts(int64_t rows, int64_t vectors) {
  return divide_up(rows, most_tile_rows(vectors));
}

struct LoopFinish {
  bool first_panel, direct;
  int64_t row_floats, residual_row_floats;  // of the tensor, and of the residual
  int epilogue_flags;
};

// The kernel of a tile of `rows` rows and `vectors` vectors, with masks 1 to `masks`.
void write_loop_kernel(int64_t rows, int64_t vectors, int64_t masks, const LoopFinish& finish, Assembler& code);

// What loops read of a pattern. A vector's *reach* is the taps by which it reads the image; each block has lists of its
// columns for each reach that occurs, so that no product with padding is computed.
struct LoopTables {
  int64_t blocks;  // of a group
  int64_t panel_residues, reaches;
  std::vector<LoopColumn> columns;
  std::vector<LoopBlock> of_blocks;  // of each group
  std::vector<LoopList> lists;
  std::vector<uint8_t> reach_of;  // of each vector of each strip
  int64_t strip_vectors;

  const LoopList& list(int64_t group, int64_t block, int64_t panel_residue, int64_t reach) const {
    return lists[static_cast<size_t>(((group * blocks + block) * panel_residues + panel_residue) * reaches + reach)];
  }
  const LoopBlock& block(int64_t group, int64_t block) const {
    return of_blocks[static_cast<size_t>(group * blocks + block)];
  }
  const uint8_t* reaches_of_strip(int64_t strip) const { return reach_of.data() + strip * strip_vectors; }
  size_t bytes() const {
    return columns.size() * sizeof columns[0] + of_blocks.size() * sizeof of_blocks[0] +
           lists.size() * sizeof lists[0] + reach_of.size();
  }
};

// The reaches that occur, as taps (bit t for tap t), or one with all bits where they are too many; and of each vector
// its own, in `tables`.
std::vector<uint64_t> find_reaches(const Lattice& lattice, const ForwardPlan& plan, LoopTables& tables);

// False where an index is out of its range. `order`: see ForwardKernels::order; of the pattern's size.
bool make_loop_tables(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, LoopTables& tables,
    std::vector<int32_t>& order);

}  // namespace sparsekernels::jit
