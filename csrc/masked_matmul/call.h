// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What one masked product is: pointers, sizes and strides. Knows no torch.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace sparsekernels {

// Which elements of a matrix are kept: element j of a row is bit j % 64 of word j / 64 of that row; bits behind the
// last element are 0. words == nullptr: all are.
struct MaskBits {
  const uint64_t* words = nullptr;
  int64_t row_words = 0;  // from row to row
};

// Whether bits behind the last element of a row are set, which kernels would take for elements: memory that is not the
// matrix's.
inline bool has_bits_behind(const uint64_t* words, int64_t rows, int64_t row_words, int64_t cols) {
  uint64_t last = 0;
  for (int64_t row = 1; row <= rows && cols % 64 != 0; ++row) last |= words[row * row_words - 1];
  return last >> (cols % 64) != 0;
}

// Which tiles of 8 rows and 32 columns a mask keeps any of: bit j % 64 of word j / 64 of row i is tile (i, j). words ==
// nullptr: all of them.
struct TileMap {
  const uint64_t* words = nullptr;
  int64_t row_words = 0;
};

struct MaskedMatrix {
  const void* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0, col_stride = 0;  // in elements
  MaskBits mask;                           // what it leaves out is zero, and is not used
};

// dest[i, j] = sum over k of a[i, k] * b[k, j] where the mask of dest is, else 0, for matrices of one dtype, not
// float64; sums are of floats.
struct MaskedProduct {
  MaskedMatrix a, b;
  MaskedMatrix dest;   // written; row_stride or col_stride is 1
  TileMap dest_tiles;  // of its mask
  DType dtype = DType::kFloat32;
};

// A part of a product that one thread computes: of rows and columns of dest.
struct ProductPart {
  int64_t row_begin, row_end;  // row_begin is a multiple of kPartRows
  int64_t col_begin, col_end;  // col_begin is a multiple of 64
};

constexpr int64_t kPartRows = 32;
constexpr int64_t kMostPartRows = 1024, kMostPartCols = 1024;  // of tiles
constexpr int64_t kTileRows = 8;                               // of a register tile
constexpr int64_t kTileCols = 32;                              // a half of a word of bits
constexpr int64_t kRun = 32;  // rows of b of which it is known whether they are masked as a whole

inline int64_t padded(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// How a product is computed.
enum class Way {
  kTiles,  // register tiles; those are skipped that the mask of dest leaves out, and runs of k that the others do
  kDots,   // a dot product for each element that the mask of dest keeps
  kRows,   // for each row of dest the sum of those rows of b that the mask of a keeps
};

// Of a mask.
struct MaskCounts {
  int64_t elements = 0;  // that are kept
  int64_t tiles = 0;     // with any of them
};

struct MaskedKernels {
  // Floats of the workspace of one part with at most so many rows and columns. Not for tiles.
  int64_t (*workspace)(const MaskedProduct& product, Way way, int64_t rows, int64_t cols);
  void (*run)(const MaskedProduct& product, Way way, const ProductPart& part, float* workspace);
  // Tiles have two steps. Threads share the packing of columns [col_begin, col_end) of b, each some of its rows, to
  // packed[panel of 32 columns][row of b][32]; then each computes rows of these columns.
  void (*pack_tiles)(
      const MaskedProduct& product, int64_t col_begin, int64_t col_end, int64_t begin, int64_t end, float* packed);
  int64_t (*tiles_workspace)(int64_t cols);
  void (*run_tiles)(const MaskedProduct& product, const ProductPart& part, const float* packed, float* workspace);
  // Zero where the mask leaves out, in place, rows [begin, end) of contiguous rows.
  void (*select)(const MaskedMatrix& matrix, DType dtype, int64_t begin, int64_t end);
  // The bits of `count` bools, 64 to a word; the last word is filled with zeros.
  void (*pack)(const uint8_t* bools, int64_t count, uint64_t* words);
  // Sets the bits of the transposed mask in rows [begin, end) of it (columns of the mask); begin is a multiple of 64.
  void (*transpose)(MaskBits mask, int64_t rows, int64_t begin, int64_t end, uint64_t* words, int64_t row_words);
  // Of rows [begin, end) of a mask, in tiles of tile_rows x 32; begin is a multiple of tile_rows. map: nullptr, or the
  // words of the mask's TileMap, of which those of these rows are set.
  MaskCounts (*count)(
      MaskBits mask, int64_t begin, int64_t end, int64_t cols, int64_t tile_rows, uint64_t* map, int64_t map_row_words);
};

}  // namespace sparsekernels
