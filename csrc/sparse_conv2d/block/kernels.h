// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The kernels of block-sparse weights in bfloat16: what they read and write. Known to each instruction set that has
// them, and to the driver.
//
// Activations lie in *pair planes*: element p of the plane of channels 2k and 2k + 1 holds both at position p, 4 bytes.
// A *product* adds chunks to the sums of up to 32 rows at 16 positions (a tile of positions) each:
//
//     results[tile][row][lane] = sum over chunks, pairs k:  weights[chunk][row][k] . plane(chunk, k)[at[tile] + lane]
//
// with . the product of two pairs, summed up in float32.
//
// Kernels that multiply matrices by tiles read channels as neighbors as well: then activations lie in *panels*, one for
// each chunk, where element (p, k) holds pair k of the chunk's channels at position p. Nothing is transposed between
// these and tensors whose channels are neighbors. Results are [tile][lane][row] then.
#pragma once

#include <cstdint>

#include "base/lanes.h"
#include "sparse_conv2d/block/gradient_calls.h"

namespace sparsekernels::block {

constexpr int kMostRows = 32;   // of a product
constexpr int kTileRows = 16;   // of a tile register
constexpr int kMostPairs = 16;  // of a chunk
constexpr int kMostTiles = 4;   // of positions in one product

// Where a chunk finds its planes.
enum class Columns {
  kPanels,   // offsets[1]: the panel
  kPlanes,   // offsets[1]: the first of neighboring planes, `pitch` apart
  kPairs,    // offsets[16]: each plane
  kChannels  // offsets[32]: the planes whose low halves are those of the pairs, then those of the high halves
};

constexpr int offsets_of(Columns columns) {
  return columns == Columns::kPairs ? kMostPairs : columns == Columns::kChannels ? 2 * kMostPairs : 1;
}

// The most tiles of positions in a product of so many rows.
constexpr int tiles_of(int rows) {
  return rows > kTileRows ? 2 : kMostTiles;
}

// Bytes from one row of a chunk's weights to the next, and from one position of a panel.
constexpr int weight_stride(int pairs) {
  return pairs <= kMostPairs / 2 ? 32 : 64;
}

struct ProductCall {
  int rows;   // 1 to kMostRows
  int pairs;  // of every chunk: kMostPairs where they are gathered
  Columns columns;
  int tiles;  // 1 to tiles_of(rows)
  int64_t at[kMostTiles];
  const uint32_t* planes;
  int64_t pitch;  // from one plane to the next, in elements
  int64_t chunks;
  const char* weights;     // [chunk][row], weight_stride(pairs) bytes each; of panels [chunk][row / 16][pair][row % 16]
  const int32_t* offsets;  // [chunk][offsets_of(columns)], in elements from `planes`
  float* results;          // [tile][kMostRows][kLanes]; of panels [tile][kLanes][kMostRows], 16 or 32 of these rows
};

// Rows that are apart: a chunk's are multiplied by planes of its own, and added to their sums wherever these are.
//
//     sums[offsets[chunk][row] + tile * kMostRows * kLanes + lane] += weights[chunk][row] . planes of the chunk
constexpr int kScatterTiles = 2;                // of positions
constexpr int kScatterOffsets = kTileRows + 2;  // of a chunk: of each row, then the first of its planes, then its rows

struct ScatterCall {
  int pairs, tiles;
  int64_t at[kScatterTiles];
  const uint32_t* planes;
  int64_t pitch, chunks;
  const char* weights;     // [chunk][kTileRows], weight_stride(pairs) bytes each
  const int32_t* offsets;  // [chunk][kScatterOffsets]
  float* sums;
};

// A chunk's weights [rows][pairs] from columns of them. Rows up to `all_rows` are zeros.
struct WeightsCall {
  const uint16_t* const* halves[2];  // [pairs]: of the first row, in the pair's low and high half; null: zeros
  const int32_t* row_strides[2];     // [pairs], in elements
  int rows, all_rows, pairs;
  char* to;  // [all_rows], weight_stride(pairs) bytes each
};

// 16 positions of some channels, into planes.
struct PackCall {
  const uint16_t* source;  // its first channel
  const int64_t* from;     // [kLanes], in elements; negative: zeros
  int64_t channels;        // neighboring elements
  int64_t pairs;           // to fill, at least those of the channels; zeros behind them
  uint32_t* planes;        // at the first position
  int64_t pitch;
};

// Neighboring rows of weights that are pairs already, into those of a panel's chunk.
struct RowsCall {
  const uint16_t* from;  // `channels` of each row
  int64_t row_stride;    // in elements
  int64_t channels;      // at most 2 * pairs; zeros behind them
  int rows, all_rows, pairs;
  char* to;
};

// Some positions of all channels, into panels.
struct PanelCall {
  const uint16_t* source;  // its first channel
  const int64_t* from;     // [positions], in elements; negative: zeros
  int64_t positions;
  int64_t channels, panels;
  const int32_t* which;  // [panels], ascending, of all panels of the channels
  int pairs;             // of a panel
  uint32_t* planes;      // of the first panel, at the first position
  int64_t pitch;         // from panel to panel, in elements
};

// Results of a product, with the epilogue, to neighboring channels.
struct UnpackCall {
  const float* results;  // as the product leaves them
  int tiles, rows;
  uint16_t* dest;            // the channel of the first row
  const uint16_t* residual;  // the same of the residual, or null
  const int64_t* to;         // [tile][kLanes], in elements; negative: nowhere
  const int64_t* next;       // the same of what is stored soon after, and is brought up meanwhile; or null
  const float* bias;         // of the first row
  float low, high;
  bool has_low, has_high;
};

struct PanelKernels {
  void (*begin)(int rows, int pairs);
  void (*product)(const ProductCall&);
  void (*lay_weights)(const WeightsCall&);
  void (*lay_rows)(const RowsCall&);
  void (*pack)(const PanelCall&);
  void (*unpack)(const UnpackCall&);
};

struct Kernels {
  const char* name;
  // A thread calls products between `begin` and `end`, all of so many rows and pairs.
  void (*begin)(int rows, int pairs);
  void (*product)(const ProductCall&);
  void (*scatter)(const ScatterCall&);  // without `begin`; null where products of few rows are as fast
  void (*end)();
  void (*lay_weights)(const WeightsCall&);
  void (*pack)(const PackCall&);
  void (*unpack)(const UnpackCall&);
  GradientKernels gradient;
  const PanelKernels* panels;  // null: chunks whose planes are neighbors go by these
};

extern const Kernels kAmxKernels;  // tiles of AMX
extern const Kernels kDotKernels;  // AVX512-BF16
extern const Kernels kPortableKernels;

// The best that this machine has, found once.
const Kernels& kernels();

// Why these are not those for AMX, in words; null where they are.
const char* amx_reason();

}  // namespace sparsekernels::block
