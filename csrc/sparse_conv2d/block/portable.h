// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Products of blocks in bfloat16, packing and unpacking without vectors: what runs where nothing faster does, and what
// the others are compared with. Included by portable.cpp of isa/.
#pragma once

#include "base/vec.h"
#include "sparse_conv2d/block/kernels.h"

namespace sparsekernels::block {
namespace {

inline float half_of(uint32_t pair, int half) {
  return bits_to_float(half == 0 ? pair << 16 : pair & 0xffff0000u);
}

// The pair of a chunk at a position.
inline uint32_t pair_at(const ProductCall& t, const int32_t* offsets, int pair, int64_t at) {
  switch (t.columns) {
    case Columns::kPlanes:
      return t.planes[offsets[0] + pair * t.pitch + at];
    case Columns::kPairs:
      return t.planes[offsets[pair] + at];
    default:
      break;
  }
  return (t.planes[offsets[pair] + at] & 0xffffu) | (t.planes[offsets[kMostPairs + pair] + at] & 0xffff0000u);
}

inline void portable_lay_weights(const WeightsCall& t) {
  const int stride = weight_stride(t.pairs);
  std::memset(t.to, 0, static_cast<size_t>(t.all_rows * stride));
  for (int pair = 0; pair < t.pairs; ++pair)
    for (int half = 0; half < 2; ++half) {
      const uint16_t* const from = t.halves[half][pair];
      for (int row = 0; row < t.rows && from != nullptr; ++row)
        std::memcpy(
            t.to + row * stride + pair * 4 + half * 2, from + row * int64_t{t.row_strides[half][pair]}, sizeof *from);
    }
}

inline void portable_product(const ProductCall& t) {
  const int64_t stride = weight_stride(t.pairs), chunk = t.rows * stride;
  for (int tile = 0; tile < t.tiles; ++tile) {
    float* const sums = t.results + tile * kMostRows * kLanes;
    for (int i = 0; i < t.rows * kLanes; ++i) sums[i] = 0;
    for (int64_t k = 0; k < t.chunks; ++k) {
      const char* const weights = t.weights + k * chunk;
      const int32_t* const offsets = t.offsets + k * offsets_of(t.columns);
      for (int pair = 0; pair < t.pairs; ++pair) {
        uint32_t positions[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) positions[lane] = pair_at(t, offsets, pair, t.at[tile] + lane);
        for (int row = 0; row < t.rows; ++row) {
          uint32_t weight;
          std::memcpy(&weight, weights + row * stride + pair * 4, sizeof weight);
          for (int half = 0; half < 2; ++half)
            for (int lane = 0; lane < kLanes; ++lane)
              sums[row * kLanes + lane] += half_of(weight, half) * half_of(positions[lane], half);
        }
      }
    }
  }
}

inline void portable_pack(const PackCall& t) {
  for (int64_t pair = 0; pair < t.pairs; ++pair)
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t both = 0;
      for (int half = 0; half < 2 && t.from[lane] >= 0; ++half) {
        const int64_t channel = 2 * pair + half;
        if (channel < t.channels) both |= static_cast<uint32_t>(t.source[t.from[lane] + channel]) << (16 * half);
      }
      t.planes[pair * t.pitch + lane] = both;
    }
}

inline void portable_unpack(const UnpackCall& t) {
  for (int tile = 0; tile < t.tiles; ++tile)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t to = t.to[tile * kLanes + lane];
      for (int row = 0; row < t.rows && to >= 0; ++row) {
        float value = t.results[(tile * kMostRows + row) * kLanes + lane] + t.bias[row];
        if (t.residual != nullptr) value += widen(BFloat16{t.residual[to + row]});
        if (t.has_low) value = value < t.low ? t.low : value;
        if (t.has_high) value = value > t.high ? t.high : value;
        BFloat16 rounded;
        narrow(value, rounded);
        t.dest[to + row] = rounded.bits;
      }
    }
}

inline void portable_gradient_product(const GradientProductCall& t) {
  for (int tile = 0; tile < t.tiles; ++tile)
    for (int unit = 0; unit < t.units; ++unit) {
      float* const sums = t.sums + (tile * t.units + unit) * kTileSums;
      for (int i = 0; i < kTileSums && t.begins; ++i) sums[i] = 0;
      for (int64_t k = 0; k < t.chunks; ++k)
        for (int channel = 0; channel < kUnit; ++channel) {
          const int64_t row = t.gathered ? t.rows[tile * kUnit + channel] : t.rows[tile] + channel;
          const uint16_t* const line = t.lines + (t.places[k] + row) * kLineElements;
          for (int p = 0; p < kPositions; ++p) {
            const uint16_t* const outputs = t.pairs[unit] + k * kTileElements + p / 2 * kLineElements + p % 2;
            const float value = widen(BFloat16{line[p]});
            for (int output = 0; output < kUnit; ++output)
              sums[channel * kUnit + output] += value * widen(BFloat16{outputs[2 * output]});
          }
        }
    }
}

inline void portable_pack_lines(const PackLinesCall& t) {
  for (int64_t channel = 0; channel < (t.channels + kUnit - 1) / kUnit * kUnit; ++channel) {
    uint16_t* const line = t.lines + channel / kUnit * t.pitch + channel % kUnit * kLineElements;
    for (int p = 0; p < kPositions; ++p)
      line[p] = t.from[p] >= 0 && channel < t.channels ? t.source[t.from[p] + channel] : uint16_t{0};
  }
}

inline void portable_pack_pairs(const PackPairsCall& t) {
  for (int64_t output = 0; output < (t.outputs + kUnit - 1) / kUnit * kUnit; ++output) {
    uint16_t* const to = t.pairs + output / kUnit * t.pitch + output % kUnit * 2;
    for (int p = 0; p < kPositions; ++p)
      to[p / 2 * kLineElements + p % 2] =
          t.from[p] >= 0 && output < t.outputs ? t.source[t.from[p] + output] : uint16_t{0};
  }
}

inline void portable_finish(const FinishCall& t) {
  for (int i = 0; i < t.count; ++i) {
    const Piece& piece = t.pieces[i];
    for (int output = 0; output < t.outputs; ++output)
      for (int channel = 0; channel < piece.channels; ++channel) {
        const float sum = t.sums[(piece.row + channel) * kUnit + t.first + output];
        const int64_t at = piece.at + output * piece.stride + channel;
        if (t.values == nullptr) {
          t.partial[at] = sum;
          continue;
        }
        BFloat16 rounded;
        narrow(sum, rounded);
        t.values[at] = rounded.bits;
      }
  }
}

}  // namespace
}  // namespace sparsekernels::block
