// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Between tensors of bfloat16 whose channels are neighbors and pair planes. Compiled once per instruction set, as vec.h
// is; AVX-512 with AVX512-BF16.
#pragma once

#include "base/vec16.h"
#include "sparse_conv2d/block/kernels.h"

namespace sparsekernels::block {
namespace {

inline uint32_t first_elements(int64_t count) {
  return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
}

// From a load to what is brought up to L1 meanwhile.
constexpr int kPrefetchedChannels = 96;

// Padding: all of it zeros, and much of it where 16 images are interleaved.
inline bool are_zeros(const int64_t* from) {
  const __m512i both = _mm512_and_si512(_mm512_loadu_si512(from), _mm512_loadu_si512(from + kLanes / 2));
  return _mm512_movepi64_mask(both) == 0xff;
}

inline void pack_positions(const PackCall& t) {
  if (are_zeros(t.from)) {
    for (int64_t i = 0; i < t.pairs; ++i) _mm512_storeu_si512(t.planes + i * t.pitch, _mm512_setzero_si512());
    return;
  }
  for (int64_t pair = 0; pair < t.pairs; pair += kMostPairs) {
    const __mmask32 some = first_elements(t.channels - 2 * pair);
    Vec<float> square[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      __m512i both = _mm512_setzero_si512();
      if (t.from[i] >= 0) {
        const uint16_t* const from = t.source + t.from[i] + 2 * pair;
        __builtin_prefetch(from + kPrefetchedChannels, 0, 3);
        both = _mm512_maskz_loadu_epi16(some, from);
      }
      square[i].v = _mm512_castsi512_ps(both);
    }
    transpose(square);
    uint32_t* const to = t.planes + pair * t.pitch;
    if (t.pairs - pair >= kMostPairs) {
#pragma GCC unroll 16
      for (int i = 0; i < kMostPairs; ++i) square[i].store(reinterpret_cast<float*>(to + i * t.pitch));
    } else {
      for (int64_t i = 0; i < t.pairs - pair; ++i) square[i].store(reinterpret_cast<float*>(to + i * t.pitch));
    }
  }
}

// Of two rows, as pairs of bfloat16.
inline __m512 joined(const UnpackCall& t, const float* row, int index, bool has_second, __m512i residual) {
  const Limits limits = {t.low, t.high, t.has_low, t.has_high};
  Vec<float> first = Vec<float>::load(row) + Vec<float>::broadcast(t.bias[index]);
  Vec<float> second = Vec<float>::zero();
  if (has_second) second = Vec<float>::load(row + kLanes) + Vec<float>::broadcast(t.bias[index + 1]);
  if (t.residual != nullptr) {
    first.v = _mm512_add_ps(first.v, _mm512_castsi512_ps(_mm512_slli_epi32(residual, 16)));
    second.v = _mm512_add_ps(
        second.v, _mm512_castsi512_ps(_mm512_and_si512(residual, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))));
  }
  first = limited(limits, first);
  second = limited(limits, second);
  const __m512i rows = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v));
  const __m512i by_lanes = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16,
      0);
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(by_lanes, rows));
}

// Lines that are written, or added to, some products later come up to L1 meanwhile: stores to lines further away would
// hold up those behind them.
inline void bring_up(const UnpackCall& t, int lane) {
  if (t.next == nullptr || t.next[lane] < 0) return;
  __builtin_prefetch(t.dest + t.next[lane], 1);
  if (t.residual != nullptr && t.residual != t.dest) __builtin_prefetch(t.residual + t.next[lane]);
}

// Up to 32 rows of one tile, or up to 16 rows of two tiles side by side.
inline void unpack_results(const UnpackCall& t) {
  const bool wide = t.rows > kTileRows;
  const int pairs_of_tile = wide ? 16 : 8, tiles_at_once = wide ? 1 : 2;
  const __mmask32 some = first_elements(t.rows);
  for (int lane = 0; lane < t.tiles * kLanes; ++lane) bring_up(t, lane);
  for (int tile = 0; tile < t.tiles; tile += tiles_at_once) {
    const bool two = !wide && tile + 1 < t.tiles;
    const int64_t* const to = t.to + tile * kLanes;
    Vec<float> residual[kLanes];
    if (t.residual != nullptr) {
      for (int lane = 0; lane < kLanes; ++lane) {
        __m512i both = _mm512_setzero_si512();
        if (to[lane] >= 0) both = _mm512_maskz_loadu_epi16(some, t.residual + to[lane]);
        if (two && to[kLanes + lane] >= 0)
          both = _mm512_inserti64x4(
              both, _mm256_maskz_loadu_epi16(static_cast<__mmask16>(some), t.residual + to[kLanes + lane]), 1);
        residual[lane].v = _mm512_castsi512_ps(both);
      }
      transpose(residual);
    }
    Vec<float> square[kLanes];
#pragma GCC unroll 16
    for (int pair = 0; pair < kLanes; ++pair) {
      const int row = 2 * (pair % pairs_of_tile);
      const float* const from = t.results + ((tile + pair / pairs_of_tile) * kMostRows + row) * kLanes;
      square[pair].v = _mm512_setzero_ps();
      if (row < t.rows && (wide || pair < 8 || two))
        square[pair].v = joined(
            t, from, row, row + 1 < t.rows,
            t.residual != nullptr ? _mm512_castps_si512(residual[pair].v) : _mm512_setzero_si512());
    }
    transpose(square);
    if (wide) {
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane)
        if (to[lane] >= 0) _mm512_mask_storeu_epi16(t.dest + to[lane], some, _mm512_castps_si512(square[lane].v));
    } else {
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) {
        const __m512i both = _mm512_castps_si512(square[lane].v);
        if (to[lane] >= 0)
          _mm256_mask_storeu_epi16(t.dest + to[lane], static_cast<__mmask16>(some), _mm512_castsi512_si256(both));
        if (two && to[kLanes + lane] >= 0)
          _mm256_mask_storeu_epi16(
              t.dest + to[kLanes + lane], static_cast<__mmask16>(some), _mm512_extracti64x4_epi64(both, 1));
      }
    }
  }
}

}  // namespace
}  // namespace sparsekernels::block
