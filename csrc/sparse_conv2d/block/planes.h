// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How the pair planes of a work item lie in memory, and which positions its tiles are.
#pragma once

#include <cstdint>
#include <vector>

#include "sparse_conv2d/lattice.h"

namespace sparsekernels::block {

// Element ((phase * rows + row) * columns + column) * images + image of a micro-batch's planes is at that row and
// column of the phase, padding included. A tile is 16 positions that follow each other, of one row where that takes no
// more tiles, else from row to row.
struct PlaneLayout {
  int64_t images, microbatches;  // interleaved images; how many such micro-batches the batch makes
  int64_t strip, strips;         // rows of positions, at most
  int64_t rows, columns;         // of a phase, with halo
  int64_t phases;
  int64_t positions;  // of a micro-batch, a multiple of kLanes, with what the last tile reads behind
  bool by_rows;
  int64_t item_microbatches;         // of a work item
  std::vector<int64_t> tap_offsets;  // of each tap of the lattice

  int64_t items() const;
  int64_t tiles(const Lattice& lattice, int64_t strip_rows) const;  // of a micro-batch
  // From plane to plane, in elements. An odd number of lines, which fall on all sets of L1, as do those of one product.
  int64_t pitch() const;
  // From panel to panel, the same, with so many elements a position.
  int64_t panel_pitch(int64_t position) const;
};

// `pairs`: elements of a position. They take so much of L2, if they can. `panels`: positions are whole lines of them.
PlaneLayout lay_out_planes(const Lattice& lattice, int64_t pairs, bool panels, int64_t threads, int64_t percent_of_l2);

// A strip of some micro-batches.
struct PlaneItem {
  int64_t first_microbatch, microbatches;
  int64_t first_row, rows;  // of positions
};

PlaneItem plane_item(const Lattice& lattice, const PlaneLayout& layout, int64_t index);

// For each element of a work item's planes, a multiple of kLanes, where it comes from: an offset from the source's
// first channel of image 0, or -1.
void source_places(
    const Lattice& lattice, const PlaneLayout& layout, const PlaneItem& item, std::vector<int64_t>& from);

// For each tile of a work item, where it begins in the planes, and where its lanes go to at a residue: offsets from the
// destination's first channel of image 0, or -1.
void tile_places(const Lattice& lattice, const PlaneLayout& layout, const PlaneItem& item, std::vector<int64_t>& at);
void dest_places(
    const Lattice& lattice, const PlaneLayout& layout, const PlaneItem& item, int64_t residue,
    std::vector<int64_t>& to);

}  // namespace sparsekernels::block
