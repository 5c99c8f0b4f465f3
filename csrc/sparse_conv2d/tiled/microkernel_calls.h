// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the two microkernels are given, and the table that holds them. docs/sparse_kernels.md derives their design.
//
// A vector is 16 floats, 64 bytes: the same place of 16 translates of the image. A tile is R rows of W vectors. In the
// packed planes the vectors of a row lie side by side; where each row begins is the caller's business.
#pragma once

#include <cstdint>

#include "base/lanes.h"

namespace sparsekernels::tiled {

constexpr int kRateVectors = 24;
constexpr int kMostTileRows = 8;
constexpr int kMostTileVectors = 28;  // of 32 registers: a broadcast weight, and room for the compiler

// The nonzeros [begin, end) that one row of the pattern has in one panel of channels.
struct Run {
  int32_t row, begin, end;
};

// For each run, and each vector p of the tile
//   sums[row][p] = (first ? 0 : sums[row][p]) + sum over its nonzeros k of values[k] * planes[p + offsets[k]]
// The products of a run are added up by themselves, so that rounding errors do not grow with the length of a whole row.
struct ForwardTile {
  const float* planes;        // the tile's first vector, under offset 0
  const int64_t* plane_rows;  // R offsets, in floats
  const int32_t* offsets;     // of each nonzero, in floats
  const float* values;
  const Run* runs;
  int64_t count;
  float* sums;
  int64_t sums_pattern_row;  // strides, in floats
  int64_t sums_row;
  bool first;
};

// For the n-th nonzero k of the runs, in order:
//   sums[n] += sum over vectors p and lanes of grads[row][p] * planes[p + offsets[k]]
struct WeightGradientTile {
  const float* planes;
  const int64_t* plane_rows;
  const int32_t* offsets;
  const Run* runs;
  int64_t count;
  const float* grads;
  int64_t grads_pattern_row;
  int64_t grads_row;
  float* sums;
};

using ForwardTileFunction = void (*)(const ForwardTile&);
using WeightGradientTileFunction = void (*)(const WeightGradientTile&);

// [R][W]; null where R * W is too large for the instruction set's registers.
struct TileKernels {
  int most_forward_vectors;
  int most_weight_gradient_vectors;
  // `rounds` times kRateVectors multiply-adds with a vector of `vectors` [kRateVectors] as one operand; for measuring.
  void (*multiply_add_vectors)(const float* vectors, int64_t rounds, float* sums);
  ForwardTileFunction forward[kMostTileRows + 1][kMostTileVectors + 1];
  WeightGradientTileFunction weight_gradient[kMostTileRows + 1][kMostTileVectors + 1];
};

}  // namespace sparsekernels::tiled
