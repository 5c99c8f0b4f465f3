// How a correlation by programs is cut up: into bundles and strips that a unit takes, blocks of channels whose lines
// and code fit the first caches, and slices of the pattern's rows whose sums fit the registers.
// docs/sparse_kernels.md derives the choices.
#pragma once

#include "lattice.h"

namespace sparsekernels {

constexpr int64_t kMostSliceRows = 31;  // of 32 registers: one holds the line
constexpr int64_t kMostWriteSlices = 4;
constexpr int kMostMasks = 7;  // k1 to k7

// A shift by columns that leaves the image at some position: a line is loaded with the lanes masked that do.
struct MaskedShift {
  int64_t shift, columns;  // lane at column x is inside where 0 <= x + shift < columns

  bool operator==(const MaskedShift& other) const { return shift == other.shift && columns == other.columns; }
};

// Where a tap finds its columns.
struct TapColumns {
  int64_t plane;  // index into BundlePlan::first_column
  int64_t shift;
  int mask;  // number, from 1 on; 0: none
};

struct BundlePlan {
  int64_t images, bundles;  // interleaved images, and how many such bundles the batch makes
  int64_t strip[2];         // positions of a strip, rows and columns, at most
  int64_t strips[2];

  int64_t pitch;                      // columns from one row of a plane to the next
  std::vector<int64_t> first_column;  // of each plane of columns: the tensor's, in column 0
  std::vector<TapColumns> taps;       // of each tap of the lattice
  std::vector<MaskedShift> masks;

  int64_t phases;                                      // of rows, times planes of columns
  int64_t phase_floats, behind_floats;                 // of a phase; behind the last one
  int64_t line_floats, channel_floats, bundle_floats;  // strides, see BundleRead
  int64_t front_floats, back_floats;                   // around the planes, that lanes without a use may read

  int64_t block_channels, blocks;
  int64_t unit_bundles;
  int64_t slices, slice_rows;  // of the rows of a group; slice_rows 0: even slices
  int64_t write_slices;        // results of so many are written at a time
  int64_t parts;               // of the slices, for threads to share
  bool is_worth_it;            // tiles do better where planes do not fit, or a program has next to nothing to do

  int64_t units() const { return divide_up(bundles, unit_bundles) * strips[0] * strips[1]; }
  int64_t lines(int64_t rows, int64_t across) const { return divide_up(((rows - 1) * pitch + across) * images, 16); }
  int64_t first_row(int64_t slice, int64_t rows) const {
    if (slice_rows == 0) return rows * slice / slices;
    return slice * slice_rows < rows ? slice * slice_rows : rows;
  }
  // From a place in a plane, as if planes were contiguous, to where it is. Whole lines where they are not.
  int64_t spread(int64_t floats) const { return line_floats == 16 ? floats : floats / 16 * line_floats; }
};

// Units, slices and parts depend on the number of threads; what an output is summed from does not.
BundlePlan make_bundle_plan(const Lattice& lattice, int64_t nonzeros, int64_t threads);

}  // namespace sparsekernels
