// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The two microkernels of the fine-grained sparse operations. Compiled once per instruction set, as vec.h is.
#pragma once

#include "base/vec16.h"
#include "sparse_conv2d/tiled/microkernel_calls.h"

namespace sparsekernels::tiled {
namespace {

#if defined(SPARSEKERNELS_AVX512)
constexpr int kForwardVectors = 28, kWeightGradientVectors = 24;
#elif defined(SPARSEKERNELS_AVX2)
constexpr int kForwardVectors = 6, kWeightGradientVectors = 4;  // a vector is two of 16 registers
#else
constexpr int kForwardVectors = 4, kWeightGradientVectors = 4;
#endif

template <int R, int W>
inline __attribute__((always_inline)) void multiply_add(
    const float* const (&planes)[R], int64_t offset, float value, Vec<float> (&sum)[R][W]) {
  const Vec<float> factor = Vec<float>::broadcast(value);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 28
    for (int w = 0; w < W; ++w) sum[r][w] = fma(factor, Vec<float>::load(planes[r] + offset + w * kLanes), sum[r][w]);
  }
}

template <int R, int W>
void forward_tile(const ForwardTile& call) {
  constexpr int kPrefetchedVectors = R == 1 && W > 4 ? 4 : W,
                kPrefetches = R == 1 ? (W + kPrefetchedVectors - 1) / kPrefetchedVectors : R;
  const float* planes[R];
  for (int r = 0; r < R; ++r) planes[r] = call.planes + call.plane_rows[r];
  const int32_t* offsets = call.offsets;
  const float* values = call.values;
  const int64_t row = call.sums_row;
  const bool first = call.first;
  for (const Run *run = call.runs, *last = run + call.count; run < last; ++run) {
    int64_t k = run->begin;
    const int64_t end = run->end;
    float* const sums = call.sums + run->row * call.sums_pattern_row;
    Vec<float> sum[R][W];
    if (k < end) {
      const Vec<float> value = Vec<float>::broadcast(values[k]);
      const int64_t offset = offsets[k];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 28
        for (int w = 0; w < W; ++w) sum[r][w] = value * Vec<float>::load(planes[r] + offset + w * kLanes);
      }
    } else if (first) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 28
        for (int w = 0; w < W; ++w) sum[r][w] = Vec<float>::zero();
      }
    } else {
      continue;
    }
    // Meanwhile the next run's sums come up from L2, a few vectors for each nonzero.
    const float* next = call.sums + run[run + 1 < last].row * call.sums_pattern_row;
    const int64_t prefetched = k + 1 + kPrefetches < end ? k + 1 + kPrefetches : end;
    for (++k; k < prefetched; ++k) {
#pragma GCC unroll 28
      for (int w = 0; w < kPrefetchedVectors; ++w) __builtin_prefetch(next + w * kLanes);
      next += R == 1 ? kPrefetchedVectors * kLanes : row;
      multiply_add<R, W>(planes, offsets[k], values[k], sum);
    }
    for (; k < end; ++k) multiply_add<R, W>(planes, offsets[k], values[k], sum);
    if (!first) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 28
        for (int w = 0; w < W; ++w) sum[r][w] = sum[r][w] + Vec<float>::load(sums + r * row + w * kLanes);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 28
      for (int w = 0; w < W; ++w) sum[r][w].store(sums + r * row + w * kLanes);
    }
  }
}

template <int R, int W>
void weight_gradient_tile(const WeightGradientTile& call) {
  constexpr int kChains = R * W < 3 ? R * W : 3;
  constexpr int kPrefetchedVectors = R == 1 && W > 4 ? 4 : W,
                kPrefetches = R == 1 ? (W + kPrefetchedVectors - 1) / kPrefetchedVectors : R;
  alignas(64) float vectors[kLanes][kLanes];
  const float* planes[R];
  for (int r = 0; r < R; ++r) planes[r] = call.planes + call.plane_rows[r];
  const int32_t* offsets = call.offsets;
  float* sums = call.sums;
  int held = 0;
  for (const Run *run = call.runs, *last = run + call.count; run < last; ++run) {
    if (run->begin == run->end) continue;
    const float* const grads = call.grads + run->row * call.grads_pattern_row;
    Vec<float> grad[R][W];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 28
      for (int w = 0; w < W; ++w) grad[r][w] = Vec<float>::load(grads + r * call.grads_row + w * kLanes);
    }
    const float* next = call.grads + run[run + 1 < last].row * call.grads_pattern_row;
    const int64_t prefetched = run->begin + kPrefetches < run->end ? run->begin + kPrefetches : run->end;
    for (int64_t k = run->begin; k < run->end; ++k) {
      if (k < prefetched) {
#pragma GCC unroll 28
        for (int w = 0; w < kPrefetchedVectors; ++w) __builtin_prefetch(next + w * kLanes);
        next += R == 1 ? kPrefetchedVectors * kLanes : call.grads_row;
      }
      const int64_t offset = offsets[k];
      Vec<float> chain[kChains];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 28
        for (int w = 0; w < W; ++w) {
          const Vec<float> vector = Vec<float>::load(planes[r] + offset + w * kLanes);
          const int p = r * W + w;
          chain[p % kChains] = p < kChains ? grad[r][w] * vector : fma(grad[r][w], vector, chain[p % kChains]);
        }
      }
      for (int i = 1; i < kChains; ++i) chain[0] = chain[0] + chain[i];
      chain[0].store(vectors[held]);
      if (++held == kLanes) {
        (Vec<float>::load(sums) + sum_lanes(vectors)).store(sums);
        sums += kLanes;
        held = 0;
      }
    }
  }
  if (held == 0) return;
  // The same order of additions as above, so that bits do not depend on where a call ends.
  for (int n = held; n < kLanes; ++n) Vec<float>::zero().store(vectors[n]);
  float rest[kLanes];
  sum_lanes(vectors).store(rest);
  for (int n = 0; n < held; ++n) sums[n] += rest[n];
}

void multiply_add_vectors(const float* vectors, int64_t rounds, float* sums) {
  constexpr int kSums = kForwardVectors < kRateVectors ? kForwardVectors : kRateVectors;
  const Vec<float> factor = Vec<float>::broadcast(1e-3f);
  Vec<float> sum[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i] = Vec<float>::zero();
  for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kRateVectors; ++i)
      sum[i % kSums] = fma(factor, Vec<float>::load(vectors + i * kLanes), sum[i % kSums]);
#if defined(__GNUC__)
    asm volatile("" : : "r"(vectors) : "memory");  // the vectors may have changed: load them again
#endif
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i].store(sums + i * kLanes);
}

template <int R, int W>
constexpr void fill_tile(TileKernels& table) {
  if constexpr (R * W <= kForwardVectors) table.forward[R][W] = forward_tile<R, W>;
  if constexpr (R * W <= kWeightGradientVectors) table.weight_gradient[R][W] = weight_gradient_tile<R, W>;
}

template <int R, int W>
constexpr void fill_tiles(TileKernels& table) {
  fill_tile<R, W>(table);
  if constexpr (R * (W + 1) <= kForwardVectors) {
    fill_tiles<R, W + 1>(table);
  } else if constexpr (R < kMostTileRows && R + 1 <= kForwardVectors) {
    fill_tiles<R + 1, 1>(table);
  }
}

// A constant, made by the compiler: nothing of an instruction set may run while the library loads.
constexpr TileKernels tile_kernels() {
  TileKernels table = {};
  table.most_forward_vectors = kForwardVectors;
  table.most_weight_gradient_vectors = kWeightGradientVectors;
  table.multiply_add_vectors = multiply_add_vectors;
  fill_tiles<1, 1>(table);
  return table;
}

}  // namespace
}  // namespace sparsekernels::tiled
