// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The kernels of the weight gradient of blocks in bfloat16: what they read and write. Known to each instruction set
// that has them, and to the driver.
//
// A *line* is one channel of the input at 32 positions that follow no order in the image, but are 32 translates of one
// place: a tap moves all of them alike, by whole lines. 16 channels make 16 neighboring lines, which is how they are
// packed. grad_output lies in *pairs*: of 16 channels at 32 positions, those of positions 2k and 2k + 1 side by side.
// So both operands of a product are 1 KB that follow each other, at any tap:
//
//     sums[tile][unit][channel][output] += sum over chunks, positions p:  line(channel, chunk)[p] *
//     pairs(chunk)[p][output]
#pragma once

#include <cstdint>

#include "base/lanes.h"

namespace sparsekernels::block {

constexpr int kPositions = 32;                          // of a line
constexpr int kLineElements = 32, kTileElements = 512;  // a line's; of 16 lines, or of the pairs of 16 outputs
constexpr int kUnit = 16;                               // outputs, or channels, of a tile
constexpr int kTileSums = kUnit * kUnit;

// The most tiles of channels in a product of 1 or 2 units of outputs.
constexpr int channel_tiles_of(int units) {
  return units == 1 ? 4 : 2;
}

struct GradientProductCall {
  int tiles;  // of 16 channels, at most channel_tiles_of(units)
  int units;  // of 16 outputs, 1 or 2
  bool gathered;
  bool begins;  // sums are not read
  int64_t chunks;
  const uint16_t* lines;
  const int32_t* places;     // [chunks], in lines
  const int32_t* rows;       // in lines from a chunk's place: [tiles] the first of 16 neighbors; gathered: [tiles][16]
  const uint16_t* pairs[2];  // of each unit: [chunks][16 pairs][16 outputs][2]
  float* sums;               // [tiles][units][16 channels][16 outputs]
};

// Channels at 32 positions, to lines.
struct PackLinesCall {
  const uint16_t* source;  // the first channel
  const int64_t* from;     // [kPositions], in elements; negative: zeros
  int64_t channels;        // neighboring elements; zeros up to a multiple of 16 behind them
  uint16_t* lines;         // of the first 16 channels
  int64_t pitch;           // to those of the next 16, in elements
};

// The same, to pairs.
struct PackPairsCall {
  const uint16_t* source;
  const int64_t* from;
  int64_t outputs;
  uint16_t* pairs;
  int64_t pitch;
};

// Channels of a block that a tile's sums are of.
struct Piece {
  int32_t row, channels;  // of the tile
  int64_t at;             // in the values, that of the tile's first output
  int64_t stride;         // from output to output
};

// A tile's sums, to values.
struct FinishCall {
  const float* sums;   // [16 channels][16 outputs]
  int first, outputs;  // of the 16
  const Piece* pieces;
  int count;
  uint16_t* values;  // rounded; or null
  float* partial;    // then these
};

struct GradientKernels {
  void (*product)(const GradientProductCall&);  // between begin(32, 16) and end() of Kernels
  void (*pack_lines)(const PackLinesCall&);
  void (*pack_pairs)(const PackPairsCall&);
  void (*finish)(const FinishCall&);
};

}  // namespace sparsekernels::block
