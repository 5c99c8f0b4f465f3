// How the planes and lines of an image block lie in memory, for kernels: which images are interleaved, what a strip is,
// which lanes of a tap leave the image.
#pragma once

#include "sparse_conv2d/lattice.h"

namespace sparsekernels {

constexpr int kMostMasks = 7;  // k1 to k7

// A shift by columns that leaves the image at some position: a line is loaded with the lanes masked that do.
struct MaskedShift {
  int64_t shift, columns;  // lane at column x is inside where 0 <= x + shift < columns

  bool operator==(const MaskedShift& other) const { return shift == other.shift && columns == other.columns; }
};

// Where a tap finds its columns.
struct TapColumns {
  int64_t plane;  // index into JitLayout::first_column
  int64_t shift;
  int mask;  // number, from 1 on; 0: none
};

struct JitLayout {
  int64_t images, image_blocks;  // interleaved images, and how many such image blocks the batch makes
  int64_t strip[2];              // positions of a strip, rows and columns, at most
  int64_t strips[2];

  int64_t pitch;                      // columns from one row of a plane to the next
  std::vector<int64_t> first_column;  // of each plane of columns: the tensor's, in column 0
  std::vector<TapColumns> taps;       // of each tap of the lattice
  std::vector<MaskedShift> masks;

  int64_t phases;                                           // of rows, times planes of columns
  int64_t phase_floats, behind_floats;                      // of a phase; behind the last one
  int64_t line_floats, channel_floats, image_block_floats;  // strides, see PackCall
  int64_t front_floats, back_floats;                        // around the planes, that lanes without a use may read

  int64_t lines(int64_t rows, int64_t across) const { return divide_up(((rows - 1) * pitch + across) * images, 16); }
  // From a place in a plane, as if planes were contiguous, to where it is. Whole lines where they are not.
  int64_t spread(int64_t floats) const { return line_floats == 16 ? floats : floats / 16 * line_floats; }
};

// Who reads lanes that are no positions of the lattice.
enum class Lanes {
  kAnything,  // their results go nowhere
  kZeros      // they read zeros
};

// The layout of image blocks of so many images whose strips are whole images. False where `lanes` cannot be had.
bool lay_out_image_blocks(const Lattice& lattice, int64_t images, Lanes lanes, JitLayout& layout);

// Cuts dimension d into so many strips, each but the last a multiple of `multiple`. False as above.
bool cut_image_blocks(const Lattice& lattice, int d, int64_t strips, int64_t multiple, Lanes lanes, JitLayout& layout);

// kMaskStride for each line of a strip with so many rows; none where the layout has none.
constexpr int64_t kMaskStride = kMostMasks + 1;
std::vector<uint16_t> line_masks(const JitLayout& layout, int64_t rows);

}  // namespace sparsekernels
