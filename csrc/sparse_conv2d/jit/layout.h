// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How the planes and vectors of a micro-batch lie in memory, for kernels: which images are interleaved, what a strip
// is, which lanes of a tap leave the image.
#pragma once

#include "sparse_conv2d/lattice.h"

namespace sparsekernels::jit {

constexpr int kMostMasks = 7;  // k1 to k7

// A shift by columns that leaves the image at some position: a vector is loaded with the lanes masked that do.
struct MaskedShift {
  int64_t shift, columns;  // lane at column x is inside where 0 <= x + shift < columns

  bool operator==(const MaskedShift& other) const { return shift == other.shift && columns == other.columns; }
};

// Where a tap finds its columns.
struct TapColumns {
  int64_t plane;  // index into Layout::first_column
  int64_t shift;
  int mask;  // number, from 1 on; 0: none
};

struct Layout {
  int64_t images, microbatches;  // interleaved images, and how many such micro-batches the batch makes
  int64_t strip[2];              // positions of a strip, rows and columns, at most
  int64_t strips[2];

  int64_t pitch;                      // columns from one row of a plane to the next
  std::vector<int64_t> first_column;  // of each plane of columns: the tensor's, in column 0
  std::vector<TapColumns> taps;       // of each tap of the lattice
  std::vector<MaskedShift> masks;

  int64_t phases;                                            // of rows, times planes of columns
  int64_t phase_floats, behind_floats;                       // of a phase; behind the last one
  int64_t vector_stride, channel_floats, microbatch_floats;  // strides, see PackCall
  int64_t front_floats, back_floats;                         // around the planes, that lanes without a use may read

  int64_t vectors(int64_t rows, int64_t across) const {
    return divide_up(((rows - 1) * pitch + across) * images, kLanes);
  }
  // From a place in a plane, as if planes were contiguous, to where it is. Whole vectors where they are not.
  int64_t spread(int64_t floats) const {
    return plane_order(vector_stride) == PlaneOrder::kPlanar ? floats : floats / kLanes * vector_stride;
  }
};

// What reads lanes that are no positions of the lattice.
enum class Lanes {
  kAnything,  // their results go nowhere
  kZeros,     // they read zeros
  kNone       // there are none: planes are read float by float, and are planar, with zeros around each row
};

// The layout of micro-batches of `images` images whose strips are whole images. False where `lanes` cannot be had.
bool lay_out_microbatches(const Lattice& lattice, int64_t images, Lanes lanes, Layout& layout);

// Cuts dimension d into `strips` strips, each but the last a multiple of `multiple`. False as above.
bool cut_microbatches(const Lattice& lattice, int d, int64_t strips, int64_t multiple, Lanes lanes, Layout& layout);

// kMaskStride for each vector of a strip of `rows` rows; none where the layout has none.
constexpr int64_t kMaskStride = kMostMasks + 1;
std::vector<uint16_t> vector_masks(const Layout& layout, int64_t rows);

// Of each vector of a strip that begins at position first[d] and has size[d], the taps (bit t for tap t) by which some
// position of it reads the image, and not only padding. The lattice has at most kMostReachTaps.
constexpr int64_t kMostReachTaps = 64;
std::vector<uint64_t> vector_reaches(
    const Lattice& lattice, const Layout& layout, const int64_t (&first)[2], const int64_t (&size)[2]);

}  // namespace sparsekernels::jit
