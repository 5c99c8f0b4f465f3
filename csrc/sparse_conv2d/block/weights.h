// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Lays out the weights of a chunk whose columns are apart, or whose rows are neighbors. Compiled once per instruction
// set; AVX-512.
#pragma once

#include <algorithm>

#include "base/vec16.h"
#include "sparse_conv2d/block/kernels.h"

namespace sparsekernels::block {
namespace {

// Half of a column of pairs, from its row `first` on.
struct WeightHalf {
  const uint16_t* at;
  int64_t row_stride;

  WeightHalf(const WeightsCall& t, int half, int k, int first)
      : at(t.halves[half][k]), row_stride(t.row_strides[half][k]) {
    if (at != nullptr) at += first * row_stride;
  }
};

// Up to 16 rows of a column of pairs.
inline __m512i weight_column(const WeightHalf& low, const WeightHalf& high, int rows) {
  const __mmask16 some = static_cast<__mmask16>((1u << rows) - 1);
  if (low.row_stride == 1 && high.row_stride == 1) {
    __m512i both = _mm512_setzero_si512();
    if (low.at != nullptr) both = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, low.at));
    if (high.at == nullptr) return both;
    const __m512i above = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, high.at));
    return _mm512_or_si512(both, _mm512_slli_epi32(above, 16));
  }
  if (low.row_stride == 2 && high.row_stride == 2 && low.at != nullptr && high.at == low.at + 1)
    return _mm512_maskz_loadu_epi32(some, low.at);
  alignas(64) uint32_t both[kLanes] = {};
  for (int row = 0; row < rows; ++row) {
    if (low.at != nullptr) both[row] = low.at[row * low.row_stride];
    if (high.at != nullptr) both[row] |= static_cast<uint32_t>(high.at[row * high.row_stride]) << 16;
  }
  return _mm512_load_si512(both);
}

inline void lay_weights(const WeightsCall& t) {
  const int stride = weight_stride(t.pairs);
  const __mmask16 stored = static_cast<__mmask16>(stride == kVectorBytes ? 0xffff : 0xff);
  for (int first = 0; first < t.all_rows; first += kTileRows) {
    const int rows = std::min(kTileRows, std::max(0, t.rows - first));
    Vec<float> square[kLanes];
    for (int k = 0; k < kLanes; ++k) {
      __m512i column = _mm512_setzero_si512();
      if (k < t.pairs) column = weight_column(WeightHalf(t, 0, k, first), WeightHalf(t, 1, k, first), rows);
      square[k].v = _mm512_castsi512_ps(column);
    }
    transpose(square);
    const int all_rows = std::min(kTileRows, t.all_rows - first);
    for (int row = 0; row < all_rows; ++row)
      _mm512_mask_storeu_ps(t.to + (first + row) * stride, stored, square[row].v);
  }
}

}  // namespace
}  // namespace sparsekernels::block
