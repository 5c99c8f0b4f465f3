// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Products of tiles for attention: 8 rows of sums, or 8 columns of a transposed operand, by vectors; dot products and
// sums of single rows. Compiled once per instruction set.
#pragma once

#include "masked_matmul/cpu/parts.h"

namespace sparsekernels {
namespace {
namespace attention {

#if defined(SPARSEKERNELS_AVX512)
constexpr int kRows = 8;  // of sums in registers
#else
constexpr int kRows = 2;
#endif
constexpr int64_t kLongest = 256;  // products that are summed one after another

// to[r][...] += sum over k below depth of a(r, k) * b[k][...] for V vectors; a(r, k) = a[r * a_stride + k], or with
// kTurned a[k * a_stride + r].
template <bool kTurned, int V>
inline void add_tile(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* to, int64_t to_stride) {
  for (int64_t first = 0; first < kTileRows; first += kRows) {
    Vec<float> sums[kRows][V];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] = Vec<float>::zero();
    const float* const from = a + first * (kTurned ? 1 : a_stride);
    for (int64_t k = 0; k < depth; ++k) {
      Vec<float> row[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) row[v] = Vec<float>::load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec<float> factor = Vec<float>::broadcast(kTurned ? from[k * a_stride + r] : from[r * a_stride + k]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = fma(factor, row[v], sums[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        float* const place = to + (first + r) * to_stride + v * kLanes;
        (Vec<float>::load(place) + sums[r][v]).store(place);
      }
  }
}

// The same for all columns, a multiple of 16, of b and of the sums.
template <bool kTurned>
inline void add_product(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* to, int64_t cols) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= cols; c += 2 * kLanes)
    add_tile<kTurned, 2>(a, a_stride, b + c, b_stride, depth, to + c, cols);
  if (c < cols) add_tile<kTurned, 1>(a, a_stride, b + c, b_stride, depth, to + c, cols);
}

// to[8][32], written: rows of a by a tile of columns, [depth][32].
inline void multiply_tile(
    const float* a, int64_t a_stride, const float* columns, int64_t depth, float* to, int64_t to_stride) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    Vec<float>::zero().store(to + r * to_stride);
    Vec<float>::zero().store(to + r * to_stride + kLanes);
  }
  for (int64_t k = 0; k < depth; k += kLongest)
    add_tile<false, 2>(
        a + k, a_stride, columns + k * kKeys, kKeys, depth - k < kLongest ? depth - k : kLongest, to, to_stride);
}

// The dot products of a row with four others, to[0..3]; counts are multiples of 16.
inline void dot_four(const float* row, const float* const (&others)[4], int64_t count, float* to) {
  Vec<float> sums[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) sums[i] = Vec<float>::zero();
  for (int64_t k = 0; k < count; k += kLanes) {
    const Vec<float> one = Vec<float>::load(row + k);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] = fma(one, Vec<float>::load(others[i] + k), sums[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) to[i] = sum(sums[i]);
}

// to[i] = the dot product of a row with row keys[i] of others; both of `stride` floats, a multiple of 16.
inline void dots_of(
    const float* row, const float* others, int64_t stride, const int32_t* keys, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 4) {
    const int some = at_most(count - i, 4);
    const float* four[4];
    for (int j = 0; j < 4; ++j) four[j] = others + keys[i + (j < some ? j : some - 1)] * stride;
    float found[4];
    dot_four(row, four, stride, found);
    for (int j = 0; j < some; ++j) to[i + j] = found[j];
  }
}

template <int V>
inline void add_rows(
    const float* factors, const float* rows, int64_t stride, const int32_t* keys, int64_t count, float* to) {
  for (int64_t i = 0; i < count;) {
    const int64_t end = i + kLongest < count ? i + kLongest : count;
    Vec<float> sums[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[v] = Vec<float>::zero();
    for (; i < end; ++i) {
      const Vec<float> factor = Vec<float>::broadcast(factors[i]);
      const float* const from = rows + keys[i] * stride;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[v] = fma(factor, Vec<float>::load(from + v * kLanes), sums[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) (Vec<float>::load(to + v * kLanes) + sums[v]).store(to + v * kLanes);
  }
}

// to[...] += sum over i of factors[i] * rows[keys[i]][...], `stride` floats.
inline void add_rows_of(
    const float* factors, const float* rows, int64_t stride, const int32_t* keys, int64_t count, float* to) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= stride; c += 4 * kLanes) add_rows<4>(factors, rows + c, stride, keys, count, to + c);
  for (; c < stride; c += kLanes) add_rows<1>(factors, rows + c, stride, keys, count, to + c);
}

// to[...] += factor * row[...]
inline void add_row(float factor, const float* row, int64_t count, float* to) {
  const Vec<float> all = Vec<float>::broadcast(factor);
  for (int64_t i = 0; i < count; i += kLanes)
    fma(all, Vec<float>::load(row + i), Vec<float>::load(to + i)).store(to + i);
}

inline bool is_finite(const float* from, int64_t count) {
  Vec<float> sums = Vec<float>::zero();
  for (int64_t i = 0; i < count; i += kLanes) sums = fma(Vec<float>::load(from + i), Vec<float>::zero(), sums);
  return sum(sums) == 0.0f;  // infinity times zero is NaN
}

// Keys or values as floats, 32 at a time, each when it is first asked for.
template <class T>
class Rows {
 public:
  // Floats of the workspace, for rows and columns.
  static int64_t floats(const MaskedMatrix& of) {
    const int64_t tiles = divided(of.rows, kKeys);
    return tiles * kKeys * (padded(of.cols, kLanes) + of.cols) + 3 * padded(tiles, kLanes);
  }
  Rows(const MaskedMatrix& of, float* workspace)
      : of_(of), tiles_(divided(of.rows, kKeys)), stride_(padded(of.cols, kLanes)) {
    rows_ = workspace;
    columns_ = rows_ + tiles_ * kKeys * stride_;
    state_ = reinterpret_cast<int32_t*>(columns_ + tiles_ * kKeys * of.cols);
    for (int64_t i = 0; i < tiles_; ++i) state_[i] = 0;
  }
  int64_t stride() const { return stride_; }
  // All rows; those of tiles that were asked for are there.
  const float* rows() const { return rows_; }
  // [32][stride]
  const float* rows_of(int64_t tile) {
    float* const to = rows_ + tile * kKeys * stride_;
    if ((state_[tile] & kHasRows) != 0) return to;
    const int64_t begin = tile * kKeys, end = begin + at_most(of_.rows - begin, kKeys);
    fetch<T>(of_, begin, end, 0, of_.cols, to, stride_);
    for (int64_t i = (end - begin) * stride_; i < kKeys * stride_; i += kLanes) Vec<float>::zero().store(to + i);
    note(tile, kHasRows, is_finite(to, kKeys * stride_));
    return to;
  }
  // [cols][32]
  const float* columns_of(int64_t tile) {
    float* const to = columns_ + tile * kKeys * of_.cols;
    if ((state_[tile] & kHasColumns) != 0) return to;
    const int64_t begin = tile * kKeys, count = at_most(of_.rows - begin, kKeys);
    for (int64_t c = 0; c < of_.cols; ++c) Vec<float>::zero().store(to + c * kKeys + kLanes);
    fetch_transposed<T>(of_, begin, begin + count, 0, of_.cols, to, kKeys);
    note(tile, kHasColumns, is_finite(to, kKeys * of_.cols));
    return to;
  }
  // Of a tile that was asked for, whether it has neither infinity nor NaN.
  bool is_finite_at(int64_t tile) const { return (state_[tile] & kSpecial) == 0; }

 private:
  static constexpr int32_t kHasRows = 1, kHasColumns = 2, kSpecial = 4;

  void note(int64_t tile, int32_t there, bool finite) { state_[tile] |= there | (finite ? 0 : kSpecial); }

  MaskedMatrix of_;
  int64_t tiles_, stride_;
  float *rows_ = nullptr, *columns_ = nullptr;
  int32_t* state_ = nullptr;
};

// Whether any of these rows keeps a key of the 64 of a tile, an even one, and of the next.
inline bool is_word_empty(MaskBits mask, int64_t row, int count, int64_t tile) {
  uint64_t any = 0;
  for (int r = 0; r < count; ++r) any |= mask.words[(row + r) * mask.row_words + tile / 2];
  return any == 0;
}

// The bits of up to 8 rows of a mask in a tile of 32 keys; rows that are not there have none.
struct TileBits {
  uint32_t rows[kTileRows] = {};
  int64_t count = 0;  // of them all

  TileBits(MaskBits mask, int64_t row, int rows_there, int64_t tile) {
    for (int r = 0; r < rows_there; ++r) {
      rows[r] = half_word(mask, row + r, tile * kKeys);
      count += __builtin_popcount(rows[r]);
    }
  }
};

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
