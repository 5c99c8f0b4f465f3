// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Reads the planes of a chunk wherever they lie, and lays them side by side. Compiled once per instruction set;
// AVX-512.
#pragma once

#include <immintrin.h>

#include "sparse_conv2d/block/kernels.h"

namespace sparsekernels::block {
namespace {

constexpr __mmask32 kHighHalves = 0xaaaaaaaa;

// Pair k of a chunk at 16 positions, from the planes at these.
template <Columns kColumns>
inline __m512i pair_of(const uint32_t* planes, const int32_t* offsets, int k) {
  const __m512i low = _mm512_loadu_si512(planes + offsets[k]);
  if (kColumns == Columns::kPairs) return low;
  return _mm512_mask_loadu_epi16(low, kHighHalves, planes + offsets[kMostPairs + k]);
}

// A chunk at tiles [kFirst, kEnd) of positions: rows [tile][kMostPairs][kLanes] of pairs.
template <Columns kColumns, int kFirst, int kEnd>
inline void gather(const uint32_t* const* planes, const int32_t* offsets, uint32_t* rows) {
#pragma GCC unroll 16
  for (int k = 0; k < kMostPairs; ++k)
#pragma GCC unroll 4
    for (int tile = kFirst; tile < kEnd; ++tile)
      _mm512_store_si512(rows + (tile * kMostPairs + k) * kLanes, pair_of<kColumns>(planes[tile], offsets, k));
}

}  // namespace
}  // namespace sparsekernels::block
