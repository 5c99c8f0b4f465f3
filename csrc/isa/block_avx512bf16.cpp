// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Products of blocks in bfloat16 by VDPBF16PS, for processors that have no tiles; compiled with the flags that
// CMakeLists.txt gives to this file.
#define SPARSEKERNELS_AVX512
#include "sparse_conv2d/block/gather.h"
#include "sparse_conv2d/block/gradient_pack.h"
#include "sparse_conv2d/block/pack.h"
#include "sparse_conv2d/block/weights.h"

namespace sparsekernels::block {
namespace {

// kRows rows of weights at kTiles tiles of positions, whose sums are in registers. A pair of weights is broadcast once
// for all tiles.
template <Columns kColumns, int kRows, int kTiles>
void rows_product(const ProductCall& t, int first_row, int first_tile) {
  const int64_t stride = weight_stride(t.pairs), chunk = t.rows * stride;
  const char* weights = t.weights + first_row * stride;
  const int32_t* offsets = t.offsets;
  __m512 sums[kTiles][kRows];
  for (auto& tile : sums)
    for (__m512& sum : tile) sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < t.chunks; ++k, weights += chunk, offsets += offsets_of(kColumns)) {
    const uint32_t* planes[kTiles];
    for (int tile = 0; tile < kTiles; ++tile)
      planes[tile] = t.planes + t.at[first_tile + tile] + (kColumns == Columns::kPlanes ? offsets[0] : 0);
    for (int pair = 0; pair < t.pairs; ++pair) {
      __m512bh positions[kTiles];
#pragma GCC unroll 4
      for (int tile = 0; tile < kTiles; ++tile)
        positions[tile] = reinterpret_cast<__m512bh>(
            kColumns == Columns::kPlanes ? _mm512_loadu_si512(planes[tile] + pair * t.pitch)
                                         : pair_of<kColumns>(planes[tile], offsets, pair));
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        int32_t both;
        __builtin_memcpy(&both, weights + row * stride + pair * 4, sizeof both);
        const __m512bh weight = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
        for (int tile = 0; tile < kTiles; ++tile)
          sums[tile][row] = _mm512_dpbf16_ps(sums[tile][row], weight, positions[tile]);
      }
    }
  }
  for (int tile = 0; tile < kTiles; ++tile)
    for (int row = 0; row < kRows; ++row)
      _mm512_storeu_ps(t.results + ((first_tile + tile) * kMostRows + first_row + row) * kLanes, sums[tile][row]);
}

template <Columns kColumns, int kTiles>
void tiles_product(const ProductCall& t, int first_tile) {
  int row = 0;
  for (; row + 8 <= t.rows; row += 8) rows_product<kColumns, 8, kTiles>(t, row, first_tile);
  for (; row + 4 <= t.rows; row += 4) rows_product<kColumns, 4, kTiles>(t, row, first_tile);
  for (; row < t.rows; ++row) rows_product<kColumns, 1, kTiles>(t, row, first_tile);
}

template <Columns kColumns>
void product_of(const ProductCall& t) {
  int tile = 0;
  for (; tile + 2 <= t.tiles; tile += 2) tiles_product<kColumns, 2>(t, tile);
  if (tile < t.tiles) tiles_product<kColumns, 1>(t, tile);
}

void product(const ProductCall& t) {
  switch (t.columns) {
    case Columns::kPlanes:
      return product_of<Columns::kPlanes>(t);
    case Columns::kPairs:
      return product_of<Columns::kPairs>(t);
    case Columns::kChannels:
      return product_of<Columns::kChannels>(t);
    case Columns::kPanels:
      break;
  }
}

// 16 channels x 16 outputs, whose sums are in registers. 16 pairs of positions are broadcast for one load of outputs.
void gradient_tile(const GradientProductCall& t, int tile, int unit) {
  float* const to = t.sums + (tile * t.units + unit) * kTileSums;
  __m512 sums[kUnit];
#pragma GCC unroll 16
  for (int i = 0; i < kUnit; ++i) sums[i] = t.begins ? _mm512_setzero_ps() : _mm512_loadu_ps(to + i * kLanes);
  alignas(64) uint16_t gathered[kTileElements];
  for (int64_t k = 0; k < t.chunks; ++k) {
    const uint16_t* lines = gathered;
    if (t.gathered)
      gather_lines(t.lines, t.rows + tile * kUnit, t.places[k], gathered);
    else
      lines = t.lines + (int64_t{t.places[k]} + t.rows[tile]) * kLineElements;
    const uint16_t* const pairs = t.pairs[unit] + k * kTileElements;
    for (int pair = 0; pair < kPositions / 2; ++pair) {
      const __m512bh outputs = reinterpret_cast<__m512bh>(_mm512_loadu_si512(pairs + pair * kLineElements));
#pragma GCC unroll 16
      for (int i = 0; i < kUnit; ++i) {
        int32_t both;
        __builtin_memcpy(&both, lines + i * kLineElements + pair * 2, sizeof both);
        sums[i] = _mm512_dpbf16_ps(sums[i], reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)), outputs);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kUnit; ++i) _mm512_storeu_ps(to + i * kLanes, sums[i]);
}

void gradient_product(const GradientProductCall& t) {
  for (int tile = 0; tile < t.tiles; ++tile)
    for (int unit = 0; unit < t.units; ++unit) gradient_tile(t, tile, unit);
}

void begin(int, int) {}
void end() {}

}  // namespace

const Kernels kDotKernels = {
    .name = "avx512_bf16",
    .begin = begin,
    .product = product,
    .scatter = nullptr,
    .end = end,
    .lay_weights = lay_weights,
    .pack = pack_positions,
    .unpack = unpack_results,
    .gradient = {gradient_product, pack_lines, pack_pairs, finish_sums},
    .panels = nullptr};

}  // namespace sparsekernels::block
