// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Keys and values in bfloat16 as AMX tiles multiply by them, and products of such tiles. For files that are compiled
// for AMX.
//
// A tile register holds 16 rows of 32 numbers, or 16 pairs of rows of 16. Weights, which are floats, are two bfloat16:
// their upper halves, and what these leave. So products with them are exact to 2^-16.
#pragma once

#include <immintrin.h>

#include <initializer_list>

#include "base/amx_tiles.h"
#include "masked_attention/cpu/forward.h"

namespace sparsekernels {
namespace {
namespace attention {

constexpr int64_t kTileWords = 256;  // of a tile register, pairs of numbers
constexpr int64_t kSide = 32;        // rows of queries, keys of a tile, columns of a step

inline void configure() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, kVectorBytes);
  config.load();
}

// 32 numbers of a row from a column on; zeros behind the last one.
inline __m512i row_of(const MaskedMatrix& m, int64_t row, int64_t col) {
  const BFloat16* const from = static_cast<const BFloat16*>(m.data) + row * m.row_stride + col * m.col_stride;
  const int count = at_most(m.cols - col, 32);
  if (m.col_stride == 1) return _mm512_maskz_loadu_epi16(count == 32 ? ~0u : (1u << count) - 1, from);
  alignas(64) BFloat16 numbers[32] = {};
  for (int i = 0; i < count; ++i) numbers[i] = from[i * m.col_stride];
  return _mm512_load_si512(numbers);
}

// Whether there is infinity or NaN.
inline bool is_special(__m512i numbers) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  return _mm512_cmpeq_epi16_mask(_mm512_and_si512(numbers, exponent), exponent) != 0;
}

// 32 rows of a matrix from `begin` on, as far as they are before `end`, zeros behind them, for products over columns:
// [columns / 32][half of the rows][pair of columns][row of 16]. Returns whether there is infinity or NaN.
inline bool pack_columns(const MaskedMatrix& m, int64_t begin, int64_t end, uint32_t* to) {
  bool special = false;
  for (int64_t col = 0; col < m.cols; col += kSide)
    for (int64_t half = 0; half < 2; ++half) {
      Vec<float> square[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        const int64_t at = begin + half * kLanes + r;
        const __m512i row = at < end ? row_of(m, at, col) : _mm512_setzero_si512();
        special = special || is_special(row);
        square[r].v = _mm512_castsi512_ps(row);
      }
      transpose(square);
      uint32_t* const place = to + (col / kSide * 2 + half) * kTileWords;
      for (int64_t r = 0; r < kLanes; ++r) _mm512_storeu_si512(place + r * 16, _mm512_castps_si512(square[r].v));
    }
  return special;
}

// The same for products over rows: [columns / 16][pair of rows, which lie 16 apart][column of 16].
inline bool pack_pairs(const MaskedMatrix& m, int64_t begin, int64_t end, uint32_t* to) {
  bool special = false;
  for (int64_t r = 0; r < kLanes; ++r)
    for (int64_t col = 0; col < m.cols; col += kSide) {
      const int64_t first = begin + r, second = first + kLanes;
      const __m512i one = first < end ? row_of(m, first, col) : _mm512_setzero_si512();
      const __m512i other = second < end ? row_of(m, second, col) : _mm512_setzero_si512();
      special = special || is_special(one) || is_special(other);
      for (int64_t half = 0; half < 2; ++half) {
        const auto widened = [&](__m512i row) {
          return _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(row) : _mm512_extracti64x4_epi64(row, 1));
        };
        const __m512i pairs = _mm512_or_si512(widened(one), _mm512_slli_epi32(widened(other), 16));
        _mm512_storeu_si512(to + (col / kLanes + half) * kTileWords + r * 16, pairs);
      }
    }
  return special;
}

// Squares of 16 x 16 words, turned.
inline void turn_squares(uint32_t* squares, int64_t count) {
  for (uint32_t* of = squares; of < squares + count * kTileWords; of += kTileWords) {
    Vec<float> square[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) square[r].v = _mm512_castsi512_ps(_mm512_loadu_si512(of + r * 16));
    transpose(square);
    for (int64_t r = 0; r < kLanes; ++r) _mm512_storeu_si512(of + r * 16, _mm512_castps_si512(square[r].v));
  }
}

// Matrices whose rows are keys as tiles, 32 keys at a time, each when it is first asked for.
class Tiles {
 public:
  // Of one of the two packings.
  static int64_t floats(const MaskedMatrix& of) {
    return divided(of.rows, kSide) * padded(of.cols, kSide) * (kSide / 2);
  }
  static int64_t state_floats(const MaskedMatrix& of) { return padded(divided(of.rows, kSide), kLanes); }

  Tiles(const MaskedMatrix& of, float* columns, float* rows, float* state)
      : of_(of),
        words_(padded(of.cols, kSide) * (kSide / 2)),
        columns_(reinterpret_cast<uint32_t*>(columns)),
        rows_(reinterpret_cast<uint32_t*>(rows)),
        state_(reinterpret_cast<int32_t*>(state)) {
    for (int64_t i = 0; i < divided(of.rows, kSide); ++i) state_[i] = 0;
  }
  // As `pack_columns` has them, and as `pack_pairs`.
  const uint32_t* columns_of(int64_t tile) {
    uint32_t* const to = columns_ + tile * words_;
    if ((state_[tile] & kHasColumns) == 0)
      state_[tile] |= kHasColumns | (pack_columns(of_, tile * kSide, of_.rows, to) ? kSpecial : 0);
    return to;
  }
  const uint32_t* rows_of(int64_t tile) {
    uint32_t* const to = rows_ + tile * words_;
    if ((state_[tile] & kHasRows) == 0)
      state_[tile] |= kHasRows | (pack_pairs(of_, tile * kSide, of_.rows, to) ? kSpecial : 0);
    return to;
  }
  bool is_finite_at(int64_t tile) const { return (state_[tile] & kSpecial) == 0; }

 private:
  static constexpr int32_t kHasColumns = 1, kHasRows = 2, kSpecial = 4;

  MaskedMatrix of_;
  int64_t words_;  // of a tile
  uint32_t *columns_, *rows_;
  int32_t* state_;
};

// A row of a matrix with zeros behind its columns; row -1: zeros.
inline void pack_row(const MaskedMatrix& m, int64_t row, BFloat16* to) {
  for (int64_t col = 0; col < padded(m.cols, kSide); col += kSide)
    _mm512_storeu_si512(to + col, row >= 0 ? row_of(m, row, col) : _mm512_setzero_si512());
}

// to[32][32] = rows of a, [32][depth], by a tile of columns; depth is a multiple of 32, strides are in numbers.
inline void multiply_side(const BFloat16* a, int64_t depth, const uint32_t* columns, float* to, int64_t to_stride) {
  const int64_t stride = depth * 2, lower = 16 * depth;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kSide) {
    load_tile<4>(a + k, stride);
    load_tile<6>(columns + k / kSide * 2 * kTileWords, kVectorBytes);
    load_tile<7>(columns + (k / kSide * 2 + 1) * kTileWords, kVectorBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    load_tile<5>(a + k + lower, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  const int64_t bytes = to_stride * static_cast<int64_t>(sizeof(float));
  store_tile<0>(to, bytes);
  store_tile<1>(to + kLanes, bytes);
  store_tile<2>(to + 16 * to_stride, bytes);
  store_tile<3>(to + 16 * to_stride + kLanes, bytes);
}

// to[32][stride] += weights by rows of tiles, 32 columns.
inline void add_side(
    const uint32_t* upper, const uint32_t* rest, const uint32_t* const* values, int64_t count, float* to,
    int64_t to_stride) {
  const int64_t bytes = to_stride * static_cast<int64_t>(sizeof(float));
  load_tile<0>(to, bytes);
  load_tile<1>(to + kLanes, bytes);
  load_tile<2>(to + 16 * to_stride, bytes);
  load_tile<3>(to + 16 * to_stride + kLanes, bytes);
  for (int64_t t = 0; t < count; ++t) {
    load_tile<6>(values[t], kVectorBytes);
    load_tile<7>(values[t] + kTileWords, kVectorBytes);
    for (const uint32_t* weights : {upper + t * 2 * kTileWords, rest + t * 2 * kTileWords}) {
      load_tile<4>(weights, kVectorBytes);
      load_tile<5>(weights + kTileWords, kVectorBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_tile<0>(to, bytes);
  store_tile<1>(to + kLanes, bytes);
  store_tile<2>(to + 16 * to_stride, bytes);
  store_tile<3>(to + 16 * to_stride + kLanes, bytes);
}

// Weights as pairs: of each row of 32 keys, those 16 apart beside each other; upper halves, and what these leave.
inline void store_weights(Vec<float> first, Vec<float> second, uint32_t* upper, uint32_t* rest) {
  const __m512i kept = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto paired = [&](__m512 a, __m512 b) {
    // (a >> 16) | (b & kept)
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(_mm512_castps_si512(a), 16), _mm512_castps_si512(b), kept, 0xf8);
  };
  const auto left = [&](__m512 a) {
    return _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), kept)));
  };
  _mm512_storeu_si512(upper, paired(first.v, second.v));
  _mm512_storeu_si512(rest, paired(left(first.v), left(second.v)));
}

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
