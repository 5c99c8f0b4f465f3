// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Products of blocks in bfloat16 on the tiles of AMX, compiled with the flags that CMakeLists.txt gives to this file.
//
// A tile register holds 16 rows of 64 bytes; TDPBF16PS adds the product of one of 16 x 32 weights and one of 32
// channels x 16 positions to 16 x 16 sums, in 16 cycles, while two tiles are loaded from L1 (8 cycles each) or one from
// L2 (some 20). More than 16 rows: 2 x 2 tiles of sums, so that four products share four loads. Up to 16: four tiles
// of positions share the weights.
#define SPARSEKERNELS_AVX512
#include "sparse_conv2d/block/gather.h"
#include "sparse_conv2d/block/gradient_pack.h"
#include "sparse_conv2d/block/pack.h"

#include <cstring>

namespace sparsekernels::block {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as the processor reads it");

// Sums in 0 to 3, then weights, then activations.
void begin(int rows, int pairs) {
  TileConfig config;
  std::memset(&config, 0, sizeof config);
  config.palette = 1;
  const auto set = [&](int tile, int tile_rows, int bytes) {
    config.rows[tile] = static_cast<uint8_t>(tile_rows);
    config.row_bytes[tile] = static_cast<uint16_t>(bytes);
  };
  const bool two = rows > kTileRows;
  const int first = two ? kTileRows : rows, second = two ? rows - kTileRows : rows;
  for (int tile = 0; tile < 4; ++tile) set(tile, tile < 2 ? first : second, kVectorBytes);
  set(4, first, pairs * 4);
  if (two) set(5, second, pairs * 4);
  for (int tile = two ? 6 : 5; tile < 8; ++tile) set(tile, pairs, kVectorBytes);
  // GCC 12's _tile_loadconfig says that it reads 8 bytes, so that what sets the others may be left out.
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

void end() {
  _tile_release();
}

// The tile of positions of a chunk: in its planes, or gathered.
template <Columns kColumns>
struct Operand {
  const void* data;
  int64_t stride;  // in bytes

  Operand(const ProductCall& t, const int32_t* offsets, int64_t at, uint32_t* rows) {
    if (kColumns == Columns::kPlanes) {
      data = t.planes + offsets[0] + at;
      stride = t.pitch * 4;
    } else {
      gather<kColumns>(t.planes, offsets, t.pairs, at, rows);
      data = rows;
      stride = kVectorBytes;
    }
  }
};

constexpr int kTileWords = kMostPairs * kLanes;

// Instead of GCC 12's own, which do not say that they read memory.
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void store_tile(float* to) {
  __asm__ volatile(
      "tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(int64_t{kVectorBytes}), "i"(kTile) : "memory");
}

// Two tiles of rows.
template <Columns kColumns, int kTiles>
void wide_product(const ProductCall& t) {
  alignas(64) uint32_t gathered[2][kTiles][kTileWords];
  const int64_t stride = weight_stride(t.pairs), chunk = t.rows * stride;
  const char* weights = t.weights;
  const int32_t* offsets = t.offsets;
  _tile_zero(0);
  _tile_zero(2);
  if (kTiles > 1) {
    _tile_zero(1);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < t.chunks; ++k, weights += chunk, offsets += offsets_of(kColumns)) {
    const Operand<kColumns> left(t, offsets, t.at[0], gathered[k & 1][0]);
    load_tile<4>(weights, stride);
    load_tile<6>(left.data, left.stride);
    _tile_dpbf16ps(0, 4, 6);
    load_tile<5>(weights + kTileRows * stride, stride);
    _tile_dpbf16ps(2, 5, 6);
    if (kTiles > 1) {
      const Operand<kColumns> right(t, offsets, t.at[kTiles - 1], gathered[k & 1][kTiles - 1]);
      load_tile<7>(right.data, right.stride);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_tile<0>(t.results);
  store_tile<2>(t.results + kTileRows * kLanes);
  if (kTiles > 1) {
    store_tile<1>(t.results + kMostRows * kLanes);
    store_tile<3>(t.results + (kMostRows + kTileRows) * kLanes);
  }
}

// One tile of rows.
template <Columns kColumns, int kTiles>
void narrow_product(const ProductCall& t) {
  alignas(64) uint32_t gathered[2][kTiles][kTileWords];
  const int64_t stride = weight_stride(t.pairs), chunk = t.rows * stride;
  const char* weights = t.weights;
  const int32_t* offsets = t.offsets;
  _tile_zero(0);
  if (kTiles > 1) _tile_zero(1);
  if (kTiles > 2) _tile_zero(2);
  if (kTiles > 3) _tile_zero(3);
  for (int64_t k = 0; k < t.chunks; ++k, weights += chunk, offsets += offsets_of(kColumns)) {
    load_tile<4>(weights, stride);
    const Operand<kColumns> zeroth(t, offsets, t.at[0], gathered[k & 1][0]);
    load_tile<5>(zeroth.data, zeroth.stride);
    _tile_dpbf16ps(0, 4, 5);
    if (kTiles > 1) {
      const Operand<kColumns> first(t, offsets, t.at[1], gathered[k & 1][kTiles > 1 ? 1 : 0]);
      load_tile<6>(first.data, first.stride);
      _tile_dpbf16ps(1, 4, 6);
    }
    if (kTiles > 2) {
      const Operand<kColumns> second(t, offsets, t.at[2], gathered[k & 1][kTiles > 2 ? 2 : 0]);
      load_tile<7>(second.data, second.stride);
      _tile_dpbf16ps(2, 4, 7);
    }
    if (kTiles > 3) {
      const Operand<kColumns> third(t, offsets, t.at[3], gathered[k & 1][kTiles > 3 ? 3 : 0]);
      load_tile<5>(third.data, third.stride);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  store_tile<0>(t.results);
  if (kTiles > 1) store_tile<1>(t.results + kMostRows * kLanes);
  if (kTiles > 2) store_tile<2>(t.results + 2 * kMostRows * kLanes);
  if (kTiles > 3) store_tile<3>(t.results + 3 * kMostRows * kLanes);
}

template <Columns kColumns>
void product_of(const ProductCall& t) {
  if (t.rows > kTileRows) return t.tiles == 1 ? wide_product<kColumns, 1>(t) : wide_product<kColumns, 2>(t);
  switch (t.tiles) {
    case 1:
      return narrow_product<kColumns, 1>(t);
    case 2:
      return narrow_product<kColumns, 2>(t);
    case 3:
      return narrow_product<kColumns, 3>(t);
    default:
      return narrow_product<kColumns, 4>(t);
  }
}

void product(const ProductCall& t) {
  switch (t.columns) {
    case Columns::kPlanes:
      return product_of<Columns::kPlanes>(t);
    case Columns::kPairs:
      return product_of<Columns::kPairs>(t);
    case Columns::kChannels:
      return product_of<Columns::kChannels>(t);
  }
}

template <int kTile>
inline void load_sums(const float* from, bool begins) {
  if (begins) __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  else load_tile<kTile>(from, kVectorBytes);
}

// A tile of channels of the weight gradient: 16 lines that follow each other, or gathered.
template <bool kGathered>
inline const uint16_t* channels_at(const GradientProductCall& t, int64_t k, int tile, uint16_t* gathered) {
  if (!kGathered) return t.lines + (int64_t{t.places[k]} + t.rows[tile]) * kLineElements;
  gather_lines(t.lines, t.rows + tile * kUnit, t.places[k], gathered);
  return gathered;
}

// Up to two tiles of channels x two units.
template <bool kGathered, int kTiles>
void wide_gradient(const GradientProductCall& t) {
  alignas(64) uint16_t gathered[2][kTiles][kTileElements];
  load_sums<0>(t.sums, t.begins);
  load_sums<1>(t.sums + kTileSums, t.begins);
  if (kTiles > 1) {
    load_sums<2>(t.sums + 2 * kTileSums, t.begins);
    load_sums<3>(t.sums + 3 * kTileSums, t.begins);
  }
  for (int64_t k = 0; k < t.chunks; ++k) {
    load_tile<4>(channels_at<kGathered>(t, k, 0, gathered[k & 1][0]), kVectorBytes);
    load_tile<6>(t.pairs[0] + k * kTileElements, kVectorBytes);
    _tile_dpbf16ps(0, 4, 6);
    load_tile<7>(t.pairs[1] + k * kTileElements, kVectorBytes);
    _tile_dpbf16ps(1, 4, 7);
    if (kTiles > 1) {
      load_tile<5>(channels_at<kGathered>(t, k, kTiles - 1, gathered[k & 1][kTiles - 1]), kVectorBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_tile<0>(t.sums);
  store_tile<1>(t.sums + kTileSums);
  if (kTiles > 1) {
    store_tile<2>(t.sums + 2 * kTileSums);
    store_tile<3>(t.sums + 3 * kTileSums);
  }
}

// Up to four tiles of channels x one unit.
template <bool kGathered, int kTiles>
void narrow_gradient(const GradientProductCall& t) {
  alignas(64) uint16_t gathered[2][kTiles][kTileElements];
  load_sums<0>(t.sums, t.begins);
  if (kTiles > 1) load_sums<1>(t.sums + kTileSums, t.begins);
  if (kTiles > 2) load_sums<2>(t.sums + 2 * kTileSums, t.begins);
  if (kTiles > 3) load_sums<3>(t.sums + 3 * kTileSums, t.begins);
  for (int64_t k = 0; k < t.chunks; ++k) {
    const auto channels = [&](int tile) { return channels_at<kGathered>(t, k, tile, gathered[k & 1][tile]); };
    load_tile<6>(t.pairs[0] + k * kTileElements, kVectorBytes);
    load_tile<4>(channels(0), kVectorBytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kTiles > 1) {
      load_tile<5>(channels(kTiles > 1 ? 1 : 0), kVectorBytes);
      _tile_dpbf16ps(1, 5, 6);
    }
    if (kTiles > 2) {
      load_tile<7>(channels(kTiles > 2 ? 2 : 0), kVectorBytes);
      _tile_dpbf16ps(2, 7, 6);
    }
    if (kTiles > 3) {
      load_tile<4>(channels(kTiles > 3 ? 3 : 0), kVectorBytes);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  store_tile<0>(t.sums);
  if (kTiles > 1) store_tile<1>(t.sums + kTileSums);
  if (kTiles > 2) store_tile<2>(t.sums + 2 * kTileSums);
  if (kTiles > 3) store_tile<3>(t.sums + 3 * kTileSums);
}

template <bool kGathered>
void gradient_of(const GradientProductCall& t) {
  if (t.units == 2) return t.tiles == 1 ? wide_gradient<kGathered, 1>(t) : wide_gradient<kGathered, 2>(t);
  switch (t.tiles) {
    case 1:
      return narrow_gradient<kGathered, 1>(t);
    case 2:
      return narrow_gradient<kGathered, 2>(t);
    case 3:
      return narrow_gradient<kGathered, 3>(t);
    default:
      return narrow_gradient<kGathered, 4>(t);
  }
}

void gradient_product(const GradientProductCall& t) {
  t.gathered ? gradient_of<true>(t) : gradient_of<false>(t);
}

}  // namespace

const Kernels kAmxKernels = {
    .name = "amx",
    .begin = begin,
    .product = product,
    .end = end,
    .pack = pack_positions,
    .unpack = unpack_results,
    .gradient = {gradient_product, pack_lines, pack_pairs, finish_sums}};

}  // namespace sparsekernels::block
