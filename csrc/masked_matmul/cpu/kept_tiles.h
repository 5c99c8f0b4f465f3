// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which register tiles of a part the mask of dest keeps. Compiled once per instruction set.
#pragma once

#include "masked_matmul/cpu/parts.h"

namespace sparsekernels {
namespace {

// A panel is 32 columns, from those of the part on; at most 64 of them. Rows of tiles, 8 rows each, are those of dest.
class KeptTiles {
 public:
  KeptTiles(const MaskedProduct& product, int64_t col_begin, int64_t col_end)
      : map_(product.dest_tiles),
        rows_(divided(product.dest.rows, kTileRows)),
        first_(col_begin / kTileCols),
        panels_(static_cast<int>(divided(col_end - col_begin, kTileCols))) {}

  int panels() const { return panels_; }
  uint64_t all() const { return panels_ == 64 ? ~uint64_t{0} : (uint64_t{1} << panels_) - 1; }
  // A bit for each panel that a row of tiles keeps; none behind the last row.
  uint64_t of_row(int64_t row) const {
    if (row >= rows_) return 0;
    if (map_.words == nullptr) return all();
    const uint64_t* const at = map_.words + row * map_.row_words + first_ / 64;
    const int64_t shift = first_ % 64;
    const bool has_more = shift != 0 && first_ / 64 + 1 < map_.row_words;
    return (at[0] >> shift | (has_more ? at[1] << (64 - shift) : 0)) & all();
  }
  // The same of any of these rows.
  uint64_t of_rows(int64_t begin, int64_t end) const {
    uint64_t any = 0;
    for (int64_t row = begin; row < end; ++row) any |= of_row(row);
    return any;
  }
  uint64_t of_all() const { return of_rows(0, rows_); }

 private:
  TileMap map_;
  int64_t rows_, first_;
  int panels_;
};

inline int lowest(uint64_t bits) {
  return __builtin_ctzll(bits);
}

}  // namespace
}  // namespace sparsekernels
