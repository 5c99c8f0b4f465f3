// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A block-sparse weight as products read it: which chunks the rows of each product have, and their weights.
#pragma once

#include <cstdint>
#include <vector>

#include "sparse_conv2d/block/call.h"
#include "sparse_conv2d/block/kernels.h"
#include "sparse_conv2d/block/planes.h"
#include "sparse_conv2d/lattice.h"

namespace sparsekernels::block {

// A block of the weight as the lattice has it: of destination channels x source channels.
struct Entry {
  int32_t column;  // of blocks of source channels
  int32_t tap;     // of the lattice
  int32_t value;   // its first in `values`
  int32_t width;   // elements of a row of `values`
};

// Up to kMostRows rows of one block row, at the taps of one residue.
struct ProductRows {
  int64_t group, first_row, rows;  // rows within the group
  int64_t residue;
  int64_t first_entry, entries;  // of the residue alone
  int64_t value_offset;          // rows of the block before these
  int64_t first_chunk, chunks;
};

// A row of a chunk whose rows are scattered: of the product, and where its weights are.
struct ScatteredRow {
  int32_t row;
  int32_t value, stride;  // its first in `values`, and from source channel to source channel
};

// Chunks of one part of a block of source channels at one tap.
struct Scatter {
  int32_t column, tap, part;
  int64_t first_row, rows;  // among the program's scattered rows
};

struct Program {
  int64_t rows, pairs;  // of a product at most; of a chunk
  Columns columns;
  int64_t channels_of_block;
  bool transposed;  // rows of the lattice's destination are columns of the blocks in `values`
  bool in_place;    // `values` are the weights of all chunks already
  std::vector<Entry> entries;
  std::vector<ProductRows> products;
  int64_t chunks;
  // Panels that a block reads, in order, and where each panel of the source is among them.
  std::vector<int32_t> panels, places_of_panels;
  // Blocks of few rows: products of up to cost::block::kScatterRows rows, whose entries are `scatters`.
  bool is_scattered;
  std::vector<Scatter> scatters;
  std::vector<ScatteredRow> scattered_rows;

  // Whether the channels of a chunk are neighbors.
  bool has_neighbors() const { return columns == Columns::kPanels || columns == Columns::kPlanes; }
  int64_t chunk_bytes() const {
    if (columns == Columns::kPanels) return divide_up(rows, kTileRows) * pairs * kVectorBytes;
    return rows * weight_stride(static_cast<int>(pairs));
  }
  // From one position to the next, in elements.
  int64_t position() const { return columns == Columns::kPanels ? weight_stride(static_cast<int>(pairs)) / 4 : 1; }
  int64_t offsets_of_chunk() const { return is_scattered ? kScatterOffsets : offsets_of(columns); }
};

// `transposed`: the lattice's destination channels are the weight's channels, not its rows.
Program make_program(const BlockPattern& pattern, const Lattice& lattice, bool transposed, const Kernels& kernels);

// The same of blocks of few rows, given the blocks by rows (scatter.cpp).
struct BlockRow {
  int64_t group, first_row, rows;
  int64_t first_entry, last_entry;
};

void scatter_rows(
    const BlockPattern& pattern, const Lattice& lattice, const std::vector<BlockRow>& block_rows,
    const std::vector<Entry>& entries, Program& program);
void fill_scatters(
    const Program& program, const Lattice& lattice, const BlockPattern& pattern,
    const std::vector<int64_t>& tap_offsets, int64_t pitch, int64_t begin, int64_t end, char* weights,
    int32_t* offsets);

// Of a block of source channels, those that there are.
int64_t channels_of(const Program& program, const Lattice& lattice, int64_t column);

// Where each block begins in `values`, or in the dense weight.
std::vector<int64_t> first_values(const BlockPattern& pattern);

// Planes, one of zeros among them, or panels.
int64_t planes_of(const Program& program, const Lattice& lattice);

// Fills weights [chunks][rows], unless they are in place, and offsets [chunks] of products [begin, end). `tap_offsets`:
// of each tap, in positions; `pitch`: from plane to plane or panel to panel; `zeros`: a plane of zeros.
void fill_program(
    const Program& program, const Lattice& lattice, const BlockPattern& pattern, const Kernels& kernels,
    const std::vector<int64_t>& tap_offsets, int64_t pitch, int64_t zeros, int64_t begin, int64_t end, char* weights,
    int32_t* offsets);

}  // namespace sparsekernels::block
