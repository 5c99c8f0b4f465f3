// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Five rows and more with AVX2. What is expanded is stored to L1 and multiplied by all rows, four of them by three
// outputs in registers at a time, so that nothing is expanded twice and seven loads serve twelve multiply-adds. Twelve
// outputs share what is read of the input.
#pragma once

#include <algorithm>

#include "packed_linear/cpu/expand.h"

namespace sparsekernels {
namespace {

constexpr int64_t kFewestPanelRows = 5;
constexpr int kPanelWords = 2, kPanelColumns = kPanelWords * kWordColumns;  // a row has a whole number of such
constexpr int kTileRows = 4, kTileOutputs = 3, kPanelOutputs = 4 * kTileOutputs;

using PanelWeights = float[kPanelOutputs][kPanelColumns];
using PanelSums = __m256[kPanelOutputs][kMostPackedRows];

inline bool goes_by_panels(const PackedLinear& call) {
  return call.rows >= kFewestPanelRows;
}

// kRows rows of the input, at a panel, by three outputs.
template <int kRows>
inline void panel_tile(
    const float* input, const float (*weights)[kPanelColumns], int first, __m256 (*sums)[kMostPackedRows]) {
  __m256 own[kTileOutputs][kRows];
#pragma GCC unroll 3
  for (int o = 0; o < kTileOutputs; ++o)
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) own[o][row] = sums[o][first + row];
  for (int k = 0; k < kPanelColumns; k += kByteLanes) {
    __m256 w[kTileOutputs];
#pragma GCC unroll 3
    for (int o = 0; o < kTileOutputs; ++o) w[o] = _mm256_load_ps(weights[o] + k);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      const __m256 x = _mm256_loadu_ps(input + (first + row) * kPanelColumns + k);
#pragma GCC unroll 3
      for (int o = 0; o < kTileOutputs; ++o) own[o][row] = _mm256_fmadd_ps(w[o], x, own[o][row]);
    }
  }
#pragma GCC unroll 3
  for (int o = 0; o < kTileOutputs; ++o)
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) sums[o][first + row] = own[o][row];
}

template <int kRows>
inline void panel_tiles(const float* input, const PanelWeights& weights, int first, PanelSums& sums) {
  for (int o = 0; o < kPanelOutputs; o += kTileOutputs) panel_tile<kRows>(input, weights + o, first, sums + o);
}

// All rows at a panel.
inline void panel_product(const float* input, const PanelWeights& weights, int rows, PanelSums& sums) {
  int first = 0;
  for (; first + kTileRows <= rows; first += kTileRows) panel_tiles<kTileRows>(input, weights, first, sums);
  switch (rows - first) {
    case 3:
      return panel_tiles<3>(input, weights, first, sums);
    case 2:
      return panel_tiles<2>(input, weights, first, sums);
    case 1:
      return panel_tiles<1>(input, weights, first, sums);
    default:
      return;
  }
}

// Outputs [first, first + count).
template <class T>
void panel_outputs(const PackedLinear& call, const float* input, int64_t first, int count) {
  alignas(kLineBytes) PanelWeights weights;
  if (count < kPanelOutputs) std::memset(static_cast<void*>(weights), 0, sizeof weights);
  alignas(kLineBytes) PanelSums sums;
  for (auto& output : sums)
    for (__m256& one : output) one = _mm256_setzero_ps();
  const T* values[kPanelOutputs];
  for (int o = 0; o < count; ++o) values[o] = Values<T>(call, first + o).at;
  const T* const last = static_cast<const T*>(call.values) + call.count - kPackedSlack;
  const int64_t panels = call.row_words / kPanelWords;
  const int64_t next = std::min<int64_t>(first + kPanelOutputs, call.outputs);
  const int64_t after = std::min<int64_t>(next + kPanelOutputs, call.outputs);
  // the next outputs, whose words and values lie one after another as twelve streams do not
  const auto value_of = [&](int64_t output) { return static_cast<const T*>(call.values) + call.first_value(output); };
  Ahead ahead[2] = {
      {value_of(next), value_of(after), panels},
      {call.words + next * call.row_words, call.words + after * call.row_words, panels}};
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (Ahead& one : ahead) one.prefetch();
    for (int o = 0; o < count; ++o) {
      const T* at = values[o];
      const uint64_t* const words = call.words + (first + o) * call.row_words + panel * kPanelWords;
#pragma GCC unroll 2
      for (int i = 0; i < kPanelWords; ++i) {
        float* const to = weights[o] + i * kWordColumns;
        Expanded<T>::each(at, words[i], [&](int v, Vec<float> vector) { vector.store(to + v * kLanes); });
        at += __builtin_popcountll(words[i]);
        at = at < last ? at : last;
      }
      values[o] = at;
    }
    panel_product(input + panel * call.rows * kPanelColumns, weights, static_cast<int>(call.rows), sums);
  }
  const auto* const bias = static_cast<const T*>(call.bias);
  for (int o = 0; o < count; ++o) {
    const float own = bias == nullptr ? 0.0f : widen(bias[first + o]);
    for (int64_t row = 0; row < call.rows; ++row) {
      const Vec<float> lanes = {sums[o][row], _mm256_setzero_ps()};
      narrow(sum(lanes) + own, static_cast<T*>(call.output)[row * call.outputs + first + o]);
    }
  }
}

template <class T>
void panel_run(const PackedLinear& call, const float* arranged, int64_t begin, int64_t end) {
  for (int64_t output = begin; output < end; output += kPanelOutputs)
    panel_outputs<T>(call, arranged, output, static_cast<int>(std::min<int64_t>(end - output, kPanelOutputs)));
}

}  // namespace
}  // namespace sparsekernels
