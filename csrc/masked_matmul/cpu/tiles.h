// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked products by register tiles of 8 rows x 32 columns. Compiled once per instruction set;
// docs/masked_products.md derives them.
//
// b is packed in panels of 32 columns, those that any row needs, and shared by the threads. 32 rows of a are multiplied
// by 256 rows of each panel that they need, tile by tile. What comes next, of panels and of a, and the zeros of the
// result are read and written a few lines at a time between multiply-adds.
#pragma once

#include "masked_matmul/cpu/beside.h"

namespace sparsekernels {
namespace {

#if defined(SPARSEKERNELS_AVX512)
constexpr int kRegisterRows = 8;
#else
constexpr int kRegisterRows = 2;
#endif
constexpr int64_t kChunk = 256;  // products that are summed one after another
constexpr int64_t kBlockTiles = kPartRows / kTileRows;
constexpr int64_t kBlockStride = kChunk + kLanes;  // of copied rows of a: a power of two would share a set of L1
constexpr int64_t kPanelSums = kPartRows * kTileCols;

// sums[r][0..31] (+)= sum over k < size of a[r][k] * b[k][0..31]
template <int R, bool kWithBeside>
inline void multiply_tile(
    const float* a, int64_t stride, int64_t size, const float* b, float* sums, bool is_first, Beside& beside) {
  Vec<float> left[R], right[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) left[r] = right[r] = Vec<float>::zero();
  // pointers the compiler knows nothing of: else it keeps sums of strides and steps, more than there are registers, or
  // moves all of them as one vector
  const float* rows[R];
  const auto advance = [&](int64_t steps) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      rows[r] += steps;
      __asm__("" : "+r"(rows[r]));
    }
    b += steps * kTileCols;
  };
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) rows[r] = a + r * stride;
  advance(0);
  const auto multiply = [&](int64_t j) {
    const Vec<float> b0 = Vec<float>::load(b + j * kTileCols), b1 = Vec<float>::load(b + j * kTileCols + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<float> factor = Vec<float>::broadcast(rows[r][j]);
      left[r] = fma(factor, b0, left[r]);
      right[r] = fma(factor, b1, right[r]);
    }
  };
  int64_t k = 0;
  for (; k + kStep <= size; k += kStep) {
#pragma GCC unroll 16
    for (int j = 0; j < kStep; ++j) multiply(j);
    advance(kStep);
    if constexpr (kWithBeside) beside.step();
  }
  for (; k < size; ++k) {
    multiply(0);
    advance(1);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    float* const to = sums + r * kTileCols;
    (is_first ? left[r] : Vec<float>::load(to) + left[r]).store(to);
    (is_first ? right[r] : Vec<float>::load(to + kLanes) + right[r]).store(to + kLanes);
  }
}

// The tile as often as the registers of this instruction set ask for.
__attribute__((noinline)) void multiply_rows(
    const float* a, int64_t stride, int64_t size, const float* b, float* sums, bool is_first, Beside& beside) {
  multiply_tile<kRegisterRows, true>(a, stride, size, b, sums, is_first, beside);
  for (int64_t r = kRegisterRows; r < kTileRows; r += kRegisterRows)
    multiply_tile<kRegisterRows, false>(a + r * stride, stride, size, b, sums + r * kTileCols, is_first, beside);
}

// Of run_tiles, for parts of at most so many columns: 32 rows of a in chunks, and the sums of 32 rows.
int64_t tiles_workspace(int64_t cols) {
  return kPartRows * kBlockStride + divided(cols, kTileCols) * kPanelSums;
}

// Rows [begin, end) of b as they lie, in these panels, all of 32 columns, so that the processor sees what is read next.
inline void pack_lying(
    const MaskedMatrix& b, int64_t col_begin, uint64_t panels, int64_t begin, int64_t end, float* packed) {
  constexpr int64_t kRowsAhead = 2;
  for (int64_t k = begin; k < end; ++k) {
    const float* const row = static_cast<const float*>(b.data) + col_begin + k * b.row_stride;
    const int64_t ahead = k + kRowsAhead < end ? kRowsAhead * b.row_stride : 0;
    for (uint64_t left = panels; left != 0; left &= left - 1) {
      const int64_t panel = lowest(left);
      const float* const from = row + panel * kTileCols;
      float* const to = packed + (panel * b.rows + k) * kTileCols;
      __builtin_prefetch(from + ahead);
      Vec<float>::load(from).store(to);
      Vec<float>::load(from + kLanes).store(to + kLanes);
    }
  }
}

// Rows [begin, end) of b to packed[panel][row][32], in the panels that any row of dest keeps.
template <class T>
void pack_tiles(
    const MaskedProduct& product, int64_t col_begin, int64_t col_end, int64_t begin, int64_t end, float* packed) {
  constexpr int64_t kRows = 16;  // at a time: so many streams of lines
  const MaskedMatrix& b = product.b;
  uint64_t panels = KeptTiles(product, col_begin, col_end).of_all();
  if (is_plain<T>(b)) {
    const int64_t whole = (col_end - col_begin) / kTileCols;
    const uint64_t cut_off = whole == 64 ? 0 : panels >> whole << whole;
    pack_lying(b, col_begin, panels & ~cut_off, begin, end, packed);
    panels = cut_off;
  }
  for (int64_t k = begin; k < end && panels != 0; k += kRows) {
    const int64_t last = k + kRows < end ? k + kRows : end;
    for (uint64_t left = panels; left != 0; left &= left - 1) {
      const int64_t panel = lowest(left), col = col_begin + panel * kTileCols;
      const int cols = at_most(col_end - col, static_cast<int>(kTileCols));
      float* const to = packed + (panel * b.rows + k) * kTileCols;
      if (last < end) prefetch_rows(b, sizeof(T), last, last + kRows < end ? last + kRows : end, col, cols);
      fetch<T>(b, k, last, col, col + cols, to, kTileCols);
      for (int64_t i = 0; i < last - k && cols <= kLanes; ++i) Vec<float>::zero().store(to + i * kTileCols + kLanes);
    }
  }
}

// Runs of k, from `begin` on, in which these rows of a mask keep any of a; or columns of one of b. A bit for each.
inline uint32_t runs_of_rows(MaskBits mask, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  uint32_t runs = 0;
  for (int64_t k = begin; k < end; k += kRun)
    runs |= static_cast<uint32_t>(is_active(mask, row_begin, row_end, k)) << ((k - begin) / kRun);
  return runs;
}
inline uint32_t runs_of_columns(MaskBits mask, int64_t col, int64_t begin, int64_t end) {
  uint32_t runs = 0;
  for (int64_t k = begin; k < end; k += kRun)
    runs |= static_cast<uint32_t>(is_active(mask, k, k + kRun < end ? k + kRun : end, col)) << ((k - begin) / kRun);
  return runs;
}

template <class T>
class TileRunner {
 public:
  TileRunner(const MaskedProduct& product, const ProductPart& part, const float* packed, float* memory)
      : product_(product),
        part_(part),
        packed_(packed),
        kept_(product, part.col_begin, part.col_end),
        rows_(memory),
        sums_(memory + kPartRows * kBlockStride) {}

  void run() {
    for (int64_t row = part_.row_begin; row < part_.row_end; row += kPartRows) run_block(row);
  }

 private:
  static constexpr int64_t kElement = static_cast<int64_t>(sizeof(T));

  int64_t end_of(int64_t row) const { return row + kPartRows < part_.row_end ? row + kPartRows : part_.row_end; }
  uint64_t panels_of(int64_t row) const { return kept_.of_rows(row / kTileRows, divided(end_of(row), kTileRows)); }

  // 32 rows of dest.
  void run_block(int64_t row) {
    const MaskedMatrix& a = product_.a;
    const int64_t k_end = a.cols;
    uint64_t panels = 0;
    int64_t tiles = 0;
    for (int64_t i = 0; i < kBlockTiles; ++i) {
      tiles_[i] = row + i * kTileRows < part_.row_end ? kept_.of_row(row / kTileRows + i) : 0;
      panels |= tiles_[i];
      tiles += __builtin_popcountll(tiles_[i]);
    }
    start(row, tiles * divided(k_end, kStep));
    for (int64_t k = 0; panels != 0 && (k == 0 || k < k_end); k += kChunk)
      run_chunk(row, panels, k, k + kChunk < k_end ? k + kChunk : k_end);
    beside_.zeros.finish();
  }

  // What is done beside `steps` steps: zeros of these rows, and the next rows of a that are needed are fetched.
  void start(int64_t row, int64_t steps) {
    const MaskedMatrix &a = product_.a, &dest = product_.dest;
    const int64_t rows = end_of(row) - row;
    beside_ = {};
    int64_t lines = 0;
    if (dest.col_stride == 1) {
      Zeros& zeros = beside_.zeros;
      zeros.start(dest, row, part_.col_begin, part_.col_end, rows, kElement);
      for (int64_t i = 0; i < kBlockTiles; ++i) {
        zeros.empty[i] = kept_.all() & ~tiles_[i];
        lines += __builtin_popcountll(zeros.empty[i]) * kTileRows * zeros.panel_bytes / kLineBytes;
      }
      zeros.rate = rate_of(lines, steps);
    } else {
      put_all_zeros(row, rows);
    }
    next_row_ = end_of(row);
    while (next_row_ < part_.row_end && panels_of(next_row_) == 0) next_row_ = end_of(next_row_);
    if (a.col_stride != 1 || next_row_ >= part_.row_end) return;
    beside_.a.start(a, next_row_, end_of(next_row_) - next_row_, a.cols, kElement, steps);
  }

  void put_all_zeros(int64_t row, int64_t rows) const {
    for (int64_t i = 0; i * kTileRows < rows; ++i)
      for (uint64_t left = kept_.all() & ~tiles_[i]; left != 0; left &= left - 1) {
        const int64_t col = part_.col_begin + lowest(left) * kTileCols;
        put_zeros<T>(
            product_.dest, row + i * kTileRows, col, at_most(rows - i * kTileRows, static_cast<int>(kTileRows)),
            at_most(part_.col_end - col, static_cast<int>(kTileCols)));
      }
  }

  // The products of 32 rows with rows [begin, end) of b.
  void run_chunk(int64_t row, uint64_t panels, int64_t begin, int64_t end) {
    const MaskedMatrix &a = product_.a, &b = product_.b, &dest = product_.dest;
    const bool is_first = begin == 0, is_last = end == a.cols;
    const bool is_masked = a.mask.words != nullptr || b.mask.words != nullptr;
    const float* from = rows_;
    int64_t stride = kBlockStride;
    if (is_plain<T>(a) && row + kPartRows <= part_.row_end) {
      from = static_cast<const float*>(a.data) + row * a.row_stride + begin;
      stride = a.row_stride;
    } else {
      fetch<T>(a, row, end_of(row), begin, end, rows_, kBlockStride);
    }
    uint32_t a_runs[kBlockTiles] = {};
    for (int64_t i = 0; i < kBlockTiles && a.mask.words != nullptr; ++i) {
      const int64_t first = row + i * kTileRows, last = first + kTileRows;
      if (first < part_.row_end)
        a_runs[i] = runs_of_rows(a.mask, first, last < part_.row_end ? last : part_.row_end, begin, end);
    }
    float* sums = sums_;
    for (uint64_t left = panels; left != 0; left &= left - 1, sums += kPanelSums) {
      const int panel = lowest(left);
      const int64_t col = part_.col_begin + panel * kTileCols;
      const float* const of_b = packed_ + (panel * b.rows + begin) * kTileCols;
      fetch_next(left, panels, panel, begin, end);
      const uint32_t b_runs = b.mask.words == nullptr ? 0 : runs_of_columns(b.mask, col, begin, end);
      for (int64_t i = 0; i < kBlockTiles; ++i) {
        if ((tiles_[i] >> panel & 1u) == 0) continue;
        float* const of_tile = sums + i * kTileRows * kTileCols;
        const float* const of_a = from + i * kTileRows * stride;
        if (is_masked || begin == end) {
          for (int64_t s = 0; s < kTileRows * kTileCols && is_first; s += kLanes) Vec<float>::zero().store(of_tile + s);
          const uint32_t runs = (a.mask.words == nullptr ? ~0u : a_runs[i]) & (b.mask.words == nullptr ? ~0u : b_runs);
          multiply_runs(runs, of_a, stride, end - begin, of_b, of_tile);
        } else {
          multiply_rows(of_a, stride, end - begin, of_b, of_tile, is_first, beside_);
        }
        if (is_last)
          put<T>(
              dest, row + i * kTileRows, col, at_most(part_.row_end - row - i * kTileRows, static_cast<int>(kTileRows)),
              at_most(part_.col_end - col, static_cast<int>(kTileCols)), of_tile, kTileCols);
      }
    }
  }

  // Those runs of k whose bit is set, neighbors at once.
  void multiply_runs(uint32_t runs, const float* a, int64_t stride, int64_t size, const float* b, float* sums) {
    for (int64_t k = 0; k < size;) {
      const int64_t from = k;
      while (k < size && (runs >> (k / kRun) & 1u) != 0) k += kRun;
      const int64_t to = k < size ? k : size;
      if (to > from) multiply_rows(a + from, stride, to - from, b + from * kTileCols, sums, false, beside_);
      if (k == from) k += kRun;
    }
  }

  // Sets out to fetch what of b comes after this panel: the next one, the next rows of the first, or other rows' first.
  void fetch_next(uint64_t left, uint64_t panels, int panel, int64_t begin, int64_t end) {
    Lines& ahead = beside_.b;
    const uint64_t others = left & (left - 1);
    int64_t k = begin, tiles = 0;
    int next = 0;
    if (others != 0) {
      next = lowest(others);
    } else if (end < product_.b.rows) {
      next = lowest(panels), k = end;
    } else if (next_row_ < part_.row_end) {
      next = lowest(panels_of(next_row_)), k = 0;
    } else {
      ahead = {};
      return;
    }
    const int64_t some = k + kChunk < product_.b.rows ? kChunk : product_.b.rows - k;
    ahead.at = reinterpret_cast<const char*>(packed_ + (next * product_.b.rows + k) * kTileCols);
    ahead.left = some * kTileCols * static_cast<int64_t>(sizeof(float)) / kLineBytes;
    for (int64_t i = 0; i < kBlockTiles; ++i) tiles += static_cast<int64_t>(tiles_[i] >> panel & 1u);
    ahead.rate = rate_of(ahead.left, tiles * divided(end - begin, kStep));
  }

  const MaskedProduct& product_;
  const ProductPart part_;
  const float* packed_;
  const KeptTiles kept_;
  float *rows_, *sums_;               // [32][kBlockStride]: a; [panel][32][32] of those that are kept
  uint64_t tiles_[kBlockTiles] = {};  // panels that each row of tiles keeps
  int64_t next_row_ = 0;
  Beside beside_;
};

// Rows and columns of a part, at most kMostPartCols, whose panels were packed from its first column on.
template <class T>
void run_tiles(const MaskedProduct& product, const ProductPart& part, const float* packed, float* memory) {
  TileRunner<T>(product, part, packed, memory).run();
}

}  // namespace
}  // namespace sparsekernels
