// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Products of blocks in bfloat16 on the tiles of AMX, compiled with the flags that CMakeLists.txt gives to this file.
//
// A tile register holds 16 rows of 64 bytes; TDPBF16PS adds the product of one of 16 x 32 weights and one of 32
// channels x 16 positions to 16 x 16 sums, in 16 cycles, while two tiles are loaded from L1 (8 cycles each) or one from
// L2 (some 20). More than 16 rows: 2 x 2 tiles of sums, so that four products share four loads. Up to 16: four tiles
// of positions share the weights.
//
// More than 400 lines: forms of one kernel, which differ by where a tile comes from.
#define SPARSEKERNELS_AVX512
#include "base/amx_tiles.h"
#include "sparse_conv2d/block/gather.h"
#include "sparse_conv2d/block/gradient_pack.h"
#include "sparse_conv2d/block/pack.h"
#include "sparse_conv2d/block/panels.h"
#include "sparse_conv2d/block/weights.h"

#include <type_traits>

namespace sparsekernels::block {
namespace {

// Sums in 0 to 3, then weights, then activations.
void begin(int rows, int pairs) {
  TileConfig config;
  const bool two = rows > kTileRows;
  const int first = two ? kTileRows : rows, second = two ? rows - kTileRows : rows;
  for (int tile = 0; tile < 4; ++tile) config.set(tile, tile < 2 ? first : second, kVectorBytes);
  config.set(4, first, pairs * 4);
  if (two) config.set(5, second, pairs * 4);
  for (int tile = two ? 6 : 5; tile < 8; ++tile) config.set(tile, pairs, kVectorBytes);
  config.load();
}

void end() {
  _tile_release();
}

constexpr int kTileWords = kMostPairs * kLanes;

// The registers of a product: sums of each tile of positions, set to zeros, added to by chunks and stored.

// Two tiles of rows.
template <int kTiles_>
struct Wide {
  static constexpr int kTiles = kTiles_;

  static void zero() {
    _tile_zero(0);
    _tile_zero(2);
    if (kTiles > 1) {
      _tile_zero(1);
      _tile_zero(3);
    }
  }
  static void load_weights(const char* weights, int64_t stride) {
    load_tile<4>(weights, stride);
    load_tile<5>(weights + kTileRows * stride, stride);
  }
  template <int kTile>
  static void add(const uint32_t* from, int64_t stride) {
    load_tile<6 + kTile>(from, stride);
    if (kTile == 0) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
    } else {
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  static void store(float* results) {
    store_tile<0>(results, kVectorBytes);
    store_tile<2>(results + kTileRows * kLanes, kVectorBytes);
    if (kTiles > 1) {
      store_tile<1>(results + kMostRows * kLanes, kVectorBytes);
      store_tile<3>(results + (kMostRows + kTileRows) * kLanes, kVectorBytes);
    }
  }
};

// One tile of rows.
template <int kTiles_>
struct Narrow {
  static constexpr int kTiles = kTiles_;

  static void zero() {
    _tile_zero(0);
    if (kTiles > 1) _tile_zero(1);
    if (kTiles > 2) _tile_zero(2);
    if (kTiles > 3) _tile_zero(3);
  }
  static void load_weights(const char* weights, int64_t stride) { load_tile<4>(weights, stride); }
  template <int kTile>
  static void add(const uint32_t* from, int64_t stride) {
    load_tile<5 + kTile % 3>(from, stride);
    if (kTile == 0) _tile_dpbf16ps(0, 4, 5);
    if (kTile == 1) _tile_dpbf16ps(1, 4, 6);
    if (kTile == 2) _tile_dpbf16ps(2, 4, 7);
    if (kTile == 3) _tile_dpbf16ps(3, 4, 5);
  }
  static void store(float* results) {
    store_tile<0>(results, kVectorBytes);
    if (kTiles > 1) store_tile<1>(results + kMostRows * kLanes, kVectorBytes);
    if (kTiles > 2) store_tile<2>(results + 2 * kMostRows * kLanes, kVectorBytes);
    if (kTiles > 3) store_tile<3>(results + 3 * kMostRows * kLanes, kVectorBytes);
  }
};

// Chunks whose planes are neighbors.
template <class Shape>
void direct_product(const ProductCall& t) {
  const int64_t stride = weight_stride(t.pairs), chunk = t.rows * stride, pitch = t.pitch * 4;
  const char* weights = t.weights;
  Shape::zero();
  for (int64_t k = 0; k < t.chunks; ++k, weights += chunk) {
    const uint32_t* const planes = t.planes + t.offsets[k];
    Shape::load_weights(weights, stride);
    Shape::template add<0>(planes + t.at[0], pitch);
    if constexpr (Shape::kTiles > 1) Shape::template add<1>(planes + t.at[1], pitch);
    if constexpr (Shape::kTiles > 2) Shape::template add<2>(planes + t.at[2], pitch);
    if constexpr (Shape::kTiles > 3) Shape::template add<3>(planes + t.at[3], pitch);
  }
  Shape::store(t.results);
}

// Tiles of positions are gathered some time before they are multiplied, for a tile load waits until what it reads has
// left the store buffer. It waits for stores to other pages at the same place of the page as well: so tiles lie in a
// ring of 4 KB, in which no such stores are under way (two chunks of 4 KB each took 1.4 times as long).
template <class Shape, Columns kColumns>
void gathered_product(const ProductCall& t) {
  constexpr int kTiles = Shape::kTiles, kHalf = kTiles / 2;
  alignas(4096) uint32_t ring[4 * kTileWords];
  const int64_t stride = weight_stride(t.pairs), chunk = t.rows * stride;
  const char* weights = t.weights;
  const int32_t* offsets = t.offsets;
  const uint32_t* planes[kTiles];
  for (int tile = 0; tile < kTiles; ++tile) planes[tile] = t.planes + t.at[tile];
  Shape::zero();
  if (t.chunks > 0) gather<kColumns, 0, kTiles <= 2 ? kTiles : kHalf>(planes, offsets, ring);
  for (int64_t k = 0; k < t.chunks; ++k, weights += chunk) {
    const int32_t* const next = offsets + offsets_of(kColumns);
    const bool has_next = k + 1 < t.chunks;
    if constexpr (kTiles <= 2) {
      const uint32_t* const from = ring + (k & 1) * 2 * kTileWords;
      if (has_next) gather<kColumns, 0, kTiles>(planes, next, ring + (~k & 1) * 2 * kTileWords);
      Shape::load_weights(weights, stride);
      Shape::template add<0>(from, kVectorBytes);
      if constexpr (kTiles > 1) Shape::template add<1>(from + kTileWords, kVectorBytes);
    } else {
      gather<kColumns, kHalf, kTiles>(planes, offsets, ring);
      Shape::load_weights(weights, stride);
      Shape::template add<0>(ring, kVectorBytes);
      if constexpr (kHalf > 1) Shape::template add<1>(ring + kTileWords, kVectorBytes);
      if (has_next) gather<kColumns, 0, kHalf>(planes, next, ring);
      if constexpr (kHalf == 1) Shape::template add<1>(ring + kTileWords, kVectorBytes);
      Shape::template add<2>(ring + 2 * kTileWords, kVectorBytes);
      if constexpr (kTiles > 3) Shape::template add<3>(ring + 3 * kTileWords, kVectorBytes);
    }
    offsets = next;
  }
  Shape::store(t.results);
}

template <class Shape>
void product_of(const ProductCall& t) {
  switch (t.columns) {
    case Columns::kPlanes:
      return direct_product<Shape>(t);
    case Columns::kPairs:
      return gathered_product<Shape, Columns::kPairs>(t);
    case Columns::kChannels:
      return gathered_product<Shape, Columns::kChannels>(t);
    case Columns::kPanels:
      break;
  }
}

void product(const ProductCall& t) {
  if (t.rows > kTileRows) return t.tiles == 1 ? product_of<Wide<1>>(t) : product_of<Wide<2>>(t);
  switch (t.tiles) {
    case 1:
      return product_of<Narrow<1>>(t);
    case 2:
      return product_of<Narrow<2>>(t);
    case 3:
      return product_of<Narrow<3>>(t);
    default:
      return product_of<Narrow<4>>(t);
  }
}

// Panels: positions are the rows of the first operand, weights the second one.

// Sums in 0 to 3, two tiles of weights in 4 and 5, or one in 4; then positions.
void begin_panels(int rows, int pairs) {
  TileConfig config;
  const bool two = rows > kTileRows;
  for (int tile = 0; tile < 8; ++tile) {
    const bool sums = tile < 4, weights = tile == 4 || (tile == 5 && two);
    config.set(tile, weights ? pairs : kTileRows, sums || weights ? kVectorBytes : pairs * 4);
  }
  config.load();
}

constexpr int64_t kResultBytes = kMostRows * sizeof(float);  // from position to position
constexpr int64_t kResultTile = kLanes * kMostRows;

template <int kTiles>
void wide_panels(const ProductCall& t) {
  const int64_t stride = weight_stride(t.pairs), chunk = 2 * t.pairs * kVectorBytes;
  const char* weights = t.weights;
  _tile_zero(0);
  _tile_zero(1);
  if (kTiles > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < t.chunks; ++k, weights += chunk) {
    const uint32_t* const panel = t.planes + t.offsets[k];
    load_tile<4>(weights, kVectorBytes);
    load_tile<6>(panel + t.at[0], stride);
    _tile_dpbf16ps(0, 6, 4);
    load_tile<5>(weights + chunk / 2, kVectorBytes);
    _tile_dpbf16ps(1, 6, 5);
    if (kTiles > 1) {
      load_tile<7>(panel + t.at[kTiles - 1], stride);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
  }
  store_tile<0>(t.results, kResultBytes);
  store_tile<1>(t.results + kLanes, kResultBytes);
  if (kTiles > 1) {
    store_tile<2>(t.results + kResultTile, kResultBytes);
    store_tile<3>(t.results + kResultTile + kLanes, kResultBytes);
  }
}

template <int kTiles>
void narrow_panels(const ProductCall& t) {
  const int64_t stride = weight_stride(t.pairs), chunk = t.pairs * kVectorBytes;
  const char* weights = t.weights;
  _tile_zero(0);
  if (kTiles > 1) _tile_zero(1);
  if (kTiles > 2) _tile_zero(2);
  if (kTiles > 3) _tile_zero(3);
  for (int64_t k = 0; k < t.chunks; ++k, weights += chunk) {
    const uint32_t* const panel = t.planes + t.offsets[k];
    load_tile<4>(weights, kVectorBytes);
    load_tile<5>(panel + t.at[0], stride);
    _tile_dpbf16ps(0, 5, 4);
    if (kTiles > 1) {
      load_tile<6>(panel + t.at[1], stride);
      _tile_dpbf16ps(1, 6, 4);
    }
    if (kTiles > 2) {
      load_tile<7>(panel + t.at[2], stride);
      _tile_dpbf16ps(2, 7, 4);
    }
    if (kTiles > 3) {
      load_tile<5>(panel + t.at[3], stride);
      _tile_dpbf16ps(3, 5, 4);
    }
  }
  store_tile<0>(t.results, kResultBytes);
  if (kTiles > 1) store_tile<1>(t.results + kResultTile, kResultBytes);
  if (kTiles > 2) store_tile<2>(t.results + 2 * kResultTile, kResultBytes);
  if (kTiles > 3) store_tile<3>(t.results + 3 * kResultTile, kResultBytes);
}

void panel_product(const ProductCall& t) {
  if (t.rows > kTileRows) return t.tiles == 1 ? wide_panels<1>(t) : wide_panels<2>(t);
  switch (t.tiles) {
    case 1:
      return narrow_panels<1>(t);
    case 2:
      return narrow_panels<2>(t);
    case 3:
      return narrow_panels<3>(t);
    default:
      return narrow_panels<4>(t);
  }
}

// Adds results [tile][kTileRows][kLanes] of a chunk to its rows.
template <int kTiles>
inline void add_rows(const float* results, const int32_t* offsets, float* sums) {
  const int rows = offsets[kTileRows + 1];
  for (int row = 0; row < rows; ++row) {
    float* const to = sums + offsets[row];
#pragma GCC unroll 2
    for (int tile = 0; tile < kTiles; ++tile) {
      float* const line = to + tile * kMostRows * kLanes;
      const __m512 result = _mm512_load_ps(results + tile * kTileWords + row * kLanes);
      _mm512_store_ps(line, _mm512_add_ps(_mm512_load_ps(line), result));
    }
  }
}

// Sums in 0 to 3, two for every second chunk; weights in 4 and 7; activations in 5 and 6.
void begin_scatter(int pairs) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool weights = tile == 4 || tile == 7, activations = tile == 5 || tile == 6;
    config.set(tile, activations ? pairs : kTileRows, weights ? pairs * 4 : kVectorBytes);
  }
  config.load();
}

template <int kSums, int kWeights, int kPlanes>
inline void begin_sums() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kSums));
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kWeights), "i"(kPlanes));
}

// Rows of one chunk are added while the next one is multiplied. What a chunk reads is loaded before the last one is
// stored: it would wait for stores at the same places of other pages.
template <int kTiles>
void scatter_of(const ScatterCall& t) {
  alignas(4096) float results[2][2 * kTileWords];
  const int64_t stride = weight_stride(t.pairs), chunk = kTileRows * stride;
  const auto offsets_at = [&](int64_t k) { return t.offsets + k * kScatterOffsets; };
  const auto load_planes = [&](int64_t k) {
    const uint32_t* const planes = t.planes + offsets_at(k)[kTileRows];
    load_tile<5>(planes + t.at[0], t.pitch * 4);
    if (kTiles > 1) load_tile<6>(planes + t.at[kTiles - 1], t.pitch * 4);
  };
  const auto step = [&](int64_t k, auto odd) {
    constexpr bool kOdd = decltype(odd)::value;
    begin_sums<kOdd ? 2 : 0, kOdd ? 7 : 4, 5>();
    if (kTiles > 1) begin_sums<kOdd ? 3 : 1, kOdd ? 7 : 4, 6>();
    if (k + 1 < t.chunks) {
      load_tile<kOdd ? 4 : 7>(t.weights + (k + 1) * chunk, stride);
      if (offsets_at(k + 1)[kTileRows] != offsets_at(k)[kTileRows]) load_planes(k + 1);
    }
    if (k > 0) add_rows<kTiles>(results[kOdd ? 0 : 1], offsets_at(k - 1), t.sums);
    store_tile<kOdd ? 2 : 0>(results[kOdd], kVectorBytes);
    if (kTiles > 1) store_tile<kOdd ? 3 : 1>(results[kOdd] + kTileWords, kVectorBytes);
  };
  if (t.chunks == 0) return;
  begin_scatter(t.pairs);
  load_tile<4>(t.weights, stride);
  load_planes(0);
  for (int64_t k = 0; k < t.chunks; ++k) {
    if (k % 2 == 0)
      step(k, std::false_type());
    else
      step(k, std::true_type());
  }
  add_rows<kTiles>(results[(t.chunks - 1) % 2], offsets_at(t.chunks - 1), t.sums);
}

void scatter(const ScatterCall& t) {
  return t.tiles == 1 ? scatter_of<1>(t) : scatter_of<2>(t);
}

template <int kTile>
inline void load_sums(const float* from, bool begins) {
  if (begins)
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  else
    load_tile<kTile>(from, kVectorBytes);
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
  store_tile<0>(t.sums, kVectorBytes);
  store_tile<1>(t.sums + kTileSums, kVectorBytes);
  if (kTiles > 1) {
    store_tile<2>(t.sums + 2 * kTileSums, kVectorBytes);
    store_tile<3>(t.sums + 3 * kTileSums, kVectorBytes);
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
  store_tile<0>(t.sums, kVectorBytes);
  if (kTiles > 1) store_tile<1>(t.sums + kTileSums, kVectorBytes);
  if (kTiles > 2) store_tile<2>(t.sums + 2 * kTileSums, kVectorBytes);
  if (kTiles > 3) store_tile<3>(t.sums + 3 * kTileSums, kVectorBytes);
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

const PanelKernels kPanels = {
    .begin = begin_panels,
    .product = panel_product,
    .lay_weights = lay_panel_weights,
    .lay_rows = lay_panel_rows,
    .pack = pack_panels,
    .unpack = unpack_panels};

}  // namespace

const Kernels kAmxKernels = {
    .name = "amx",
    .begin = begin,
    .product = product,
    .scatter = scatter,
    .end = end,
    .lay_weights = lay_weights,
    .pack = pack_positions,
    .unpack = unpack_results,
    .gradient = {gradient_product, pack_lines, pack_pairs, finish_sums},
    .panels = &kPanels};

}  // namespace sparsekernels::block
