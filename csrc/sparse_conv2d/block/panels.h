// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Panels: between them and tensors of bfloat16 whose channels are neighbors, lines are copied. Weights are laid out as
// the other operand of a tile product reads them. Compiled once per instruction set; AVX-512 with AVX512-BF16.
#pragma once

#include <algorithm>

#include "base/vec16.h"
#include "sparse_conv2d/block/kernels.h"
#include "sparse_conv2d/block/pack.h"
#include "sparse_conv2d/block/weights.h"

namespace sparsekernels::block {
namespace {

inline void lay_panel_weights(const WeightsCall& t) {
  char* to = t.to;
  for (int first = 0; first < t.all_rows; first += kTileRows) {
    const int rows = std::min(kTileRows, std::max(0, t.rows - first));
    for (int k = 0; k < t.pairs; ++k, to += kVectorBytes)
      _mm512_storeu_si512(to, weight_column(WeightHalf(t, 0, k, first), WeightHalf(t, 1, k, first), rows));
  }
}

inline void lay_panel_rows(const RowsCall& t) {
  const __mmask32 some = first_elements(t.channels);
  char* to = t.to;
  for (int first = 0; first < t.all_rows; first += kTileRows) {
    Vec<float> square[kLanes];
#pragma GCC unroll 16
    for (int row = 0; row < kTileRows; ++row) {
      square[row].v = _mm512_setzero_ps();
      if (first + row < t.rows)
        square[row].v = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(some, t.from + (first + row) * t.row_stride));
    }
    transpose(square);
    for (int k = 0; k < t.pairs; ++k, to += kVectorBytes) _mm512_storeu_ps(to, square[k].v);
  }
}

// A line of a panel, or half of one.
template <bool kHalf>
inline void store_line(uint32_t* to, __m512i line) {
  if (kHalf)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(line));
  else
    _mm512_storeu_si512(to, line);
}

template <bool kHalf, bool kWhole>
inline void pack_panels_of(const PanelCall& t) {
  const int64_t width = kWhole ? (kHalf ? 16 : 32) : 2 * t.pairs, pitch = t.pitch, panels = t.panels;
  const int64_t positions = t.positions, all_whole = t.channels / width;
  const int32_t* const which = t.which;
  const int64_t whole = std::lower_bound(which, which + panels, all_whole) - which;
  const __mmask32 all = first_elements(width), rest = first_elements(t.channels - all_whole * width);
  const auto load = [&](const uint16_t* from) {
    if (kWhole && kHalf) return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return kWhole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(all, from);
  };
  const int64_t* const places = t.from;
  uint32_t* at = t.planes;
  for (int64_t position = 0; position < positions; ++position, at += kHalf ? kMostPairs / 2 : kMostPairs) {
    uint32_t* to = at;
    int64_t panel = 0;
    if (places[position] >= 0) {
      const uint16_t* from = t.source + places[position];
      for (; panel + 4 <= whole; panel += 4, to += 4 * pitch) {
        const int32_t* const four = which + panel;
        const __m512i lines[4] = {
            load(from + four[0] * width), load(from + four[1] * width), load(from + four[2] * width),
            load(from + four[3] * width)};
        store_line<kHalf>(to, lines[0]);
        store_line<kHalf>(to + pitch, lines[1]);
        store_line<kHalf>(to + 2 * pitch, lines[2]);
        store_line<kHalf>(to + 3 * pitch, lines[3]);
      }
      for (; panel < whole; ++panel, to += pitch) store_line<kHalf>(to, load(from + which[panel] * width));
      if (panel < panels && which[panel] == all_whole && rest != 0) {
        store_line<kHalf>(to, _mm512_maskz_loadu_epi16(rest, from + all_whole * width));
        ++panel;
        to += pitch;
      }
    }
    for (; panel < panels; ++panel, to += pitch) store_line<kHalf>(to, _mm512_setzero_si512());
  }
}

inline void pack_panels(const PanelCall& t) {
  if (t.pairs == kMostPairs) return pack_panels_of<false, true>(t);
  if (t.pairs == kMostPairs / 2) return pack_panels_of<true, true>(t);
  t.pairs > kMostPairs / 2 ? pack_panels_of<false, false>(t) : pack_panels_of<true, false>(t);
}

// 16 channels of a residual.
inline __m512 residual_of(__m256i channels) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(channels), 16));
}

template <bool kWide, bool kResidual>
inline void unpack_panels_of(const UnpackCall& t) {
  const Limits limits = {t.low, t.high, t.has_low, t.has_high};
  const __mmask32 some = first_elements(t.rows);
  const __mmask16 low_rows = static_cast<__mmask16>(some), high_rows = static_cast<__mmask16>(some >> kTileRows);
  const __m512 low_bias = _mm512_maskz_loadu_ps(low_rows, t.bias);
  const __m512 high_bias = kWide ? _mm512_maskz_loadu_ps(high_rows, t.bias + kTileRows) : _mm512_setzero_ps();
  for (int lane = 0; lane < t.tiles * kLanes; ++lane) {
    const int64_t to = t.to[lane];
    bring_up(t, lane);
    if (to < 0) continue;
    const float* const from = t.results + lane * kMostRows;
    Vec<float> low = {_mm512_add_ps(_mm512_load_ps(from), low_bias)}, high = {_mm512_setzero_ps()};
    if (kWide) high.v = _mm512_add_ps(_mm512_load_ps(from + kTileRows), high_bias);
    if (kResidual) {
      const __m512i both = _mm512_maskz_loadu_epi16(some, t.residual + to);
      low.v = _mm512_add_ps(low.v, residual_of(_mm512_castsi512_si256(both)));
      if (kWide) high.v = _mm512_add_ps(high.v, residual_of(_mm512_extracti64x4_epi64(both, 1)));
    }
    low = limited(limits, low);
    if (kWide) {
      high = limited(limits, high);
      _mm512_mask_storeu_epi16(t.dest + to, some, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)));
    } else {
      _mm256_mask_storeu_epi16(t.dest + to, low_rows, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low.v)));
    }
  }
}

inline void unpack_panels(const UnpackCall& t) {
  const bool wide = t.rows > kTileRows;
  if (t.residual != nullptr) return wide ? unpack_panels_of<true, true>(t) : unpack_panels_of<false, true>(t);
  wide ? unpack_panels_of<true, false>(t) : unpack_panels_of<false, false>(t);
}

}  // namespace
}  // namespace sparsekernels::block
