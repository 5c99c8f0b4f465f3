// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Lays the planes of a chunk side by side, 16 positions of each. Compiled once per instruction set; AVX-512.
#pragma once

#include <immintrin.h>

#include "sparse_conv2d/block/kernels.h"

namespace sparsekernels::block {
namespace {

// Which 16-bit elements of two planes make a plane of pairs: halves[2 * high + low], with the half that each is in.
struct Halves {
  alignas(64) uint16_t at[4][2 * kLanes];
};

constexpr Halves make_halves() {
  Halves halves = {};
  for (int both = 0; both < 4; ++both)
    for (int lane = 0; lane < kLanes; ++lane) {
      halves.at[both][2 * lane] = static_cast<uint16_t>(2 * lane + (both & 1));
      halves.at[both][2 * lane + 1] = static_cast<uint16_t>(2 * kLanes + 2 * lane + (both >> 1));
    }
  return halves;
}

constexpr Halves kHalves = make_halves();

// rows [kMostPairs][kLanes] of pairs.
template <Columns kColumns>
inline void gather(const uint32_t* planes, const int32_t* offsets, int pairs, int64_t at, uint32_t* rows) {
  for (int k = 0; k < pairs; ++k) {
    const __m512i low = _mm512_loadu_si512(planes + offsets[k] + at);
    if (kColumns == Columns::kPairs) {
      _mm512_store_si512(rows + k * kLanes, low);
    } else {
      const __m512i high = _mm512_loadu_si512(planes + offsets[kMostPairs + k] + at);
      const __m512i halves = _mm512_load_si512(kHalves.at[offsets[2 * kMostPairs + k]]);
      _mm512_store_si512(rows + k * kLanes, _mm512_permutex2var_epi16(low, halves, high));
    }
  }
}

}  // namespace
}  // namespace sparsekernels::block
