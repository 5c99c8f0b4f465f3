// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// From tensors of bfloat16 whose channels are neighbors to lines and pairs, and from sums to values. Compiled once per
// instruction set, as vec.h is; AVX-512.
#pragma once

#include "base/vec16.h"
#include "sparse_conv2d/block/gradient_calls.h"

namespace sparsekernels::block {
namespace {

constexpr int64_t kChannelsAtOnce = 32;
constexpr int kPrefetchedElements = 64;  // ahead of what is packed, to L1

// For permutex2var: the even or odd elements of both operands; or the elements of both in turn, from one of 16 onwards.
struct Selections {
  alignas(64) uint16_t even[32], odd[32], first[32], second[32];
};

constexpr Selections make_selections() {
  Selections s = {};
  for (int i = 0; i < 32; ++i) {
    s.even[i] = static_cast<uint16_t>(i < 16 ? 2 * i : 32 + 2 * (i - 16));
    s.odd[i] = static_cast<uint16_t>(s.even[i] + 1);
    s.first[i] = static_cast<uint16_t>(i % 2 * 32 + i / 2);
    s.second[i] = static_cast<uint16_t>(s.first[i] + 16);
  }
  return s;
}

constexpr Selections kSelections = make_selections();

inline __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? ~0u : (1u << count) - 1;
}

inline __m512i load_position(const uint16_t* source, int64_t from, __mmask32 some) {
  if (from < 0) return _mm512_setzero_si512();
  __builtin_prefetch(source + from + kPrefetchedElements, 0, 3);
  return _mm512_maskz_loadu_epi16(some, source + from);
}

inline void pack_lines(const PackLinesCall& t) {
  const __m512i even = _mm512_load_si512(kSelections.even), odd = _mm512_load_si512(kSelections.odd);
  for (int64_t channel = 0; channel < t.channels; channel += kChannelsAtOnce) {
    const __mmask32 some = first_of_32(t.channels - channel);
    const uint16_t* const source = t.source + channel;
    alignas(64) float first_half[kLanes][kLanes];
    Vec<float> square[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i].v = _mm512_castsi512_ps(load_position(source, t.from[i], some));
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i].store(first_half[i]);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i].v = _mm512_castsi512_ps(load_position(source, t.from[kLanes + i], some));
    transpose(square);
    uint16_t* const to = t.lines + channel / kUnit * t.pitch;
    const auto store = [&](int pair, uint16_t* line) {
      const __m512i low = _mm512_load_si512(first_half[pair]), high = _mm512_castps_si512(square[pair].v);
      _mm512_store_si512(line, _mm512_permutex2var_epi16(low, even, high));
      _mm512_store_si512(line + kLineElements, _mm512_permutex2var_epi16(low, odd, high));
    };
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) store(i, to + 2 * i * kLineElements);
    if (t.channels - channel <= kUnit) break;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) store(8 + i, to + t.pitch + 2 * i * kLineElements);
  }
}

inline void pack_pairs(const PackPairsCall& t) {
  const __m512i first = _mm512_load_si512(kSelections.first), second = _mm512_load_si512(kSelections.second);
  for (int64_t output = 0; output < t.outputs; output += kChannelsAtOnce) {
    const __mmask32 some = first_of_32(t.outputs - output);
    const bool both = t.outputs - output > kUnit;
    const uint16_t* const source = t.source + output;
    uint16_t* const to = t.pairs + output / kUnit * t.pitch;
    for (int i = 0; i < kPositions / 2; ++i) {
      const __m512i low = load_position(source, t.from[2 * i], some);
      const __m512i high = load_position(source, t.from[2 * i + 1], some);
      _mm512_store_si512(to + i * kLineElements, _mm512_permutex2var_epi16(low, first, high));
      if (both) _mm512_store_si512(to + t.pitch + i * kLineElements, _mm512_permutex2var_epi16(low, second, high));
    }
  }
}

// 16 lines of any channels, side by side.
inline void gather_lines(const uint16_t* lines, const int32_t* rows, int64_t place, uint16_t* to) {
  const uint16_t* const at = lines + place * kLineElements;
#pragma GCC unroll 16
  for (int i = 0; i < kUnit; ++i)
    _mm512_store_si512(to + i * kLineElements, _mm512_loadu_si512(at + int64_t{rows[i]} * kLineElements));
}

inline void finish_sums(const FinishCall& t) {
  Vec<float> square[kLanes];
  const auto some = [](int count) { return count >= 16 ? 0xffffu : (1u << count) - 1; };
  const auto store = [&](const float* from, int64_t to, int count) {
    const Vec<float> sums = Vec<float>::load(from);
    if (t.values != nullptr) {
      Vec16<BFloat16>::store(sums, reinterpret_cast<BFloat16*>(t.values + to), some(count));
    } else {
      Vec16<float>::store(sums, t.partial + to, some(count));
    }
  };
  // What is loaded from a place in the last row runs beyond it.
  alignas(64) float rows[kUnit + 1][kLanes];
  bool transposes = false;
  for (int i = 0; i < t.count; ++i) transposes = transposes || t.pieces[i].stride != 1;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) square[i] = Vec<float>::load(t.sums + i * kLanes);
  if (transposes) transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) square[i].store(rows[i]);
  Vec<float>::zero().store(rows[kUnit]);
  for (int i = 0; i < t.count; ++i) {
    const Piece& piece = t.pieces[i];
    if (!transposes) {
      store(rows[piece.row] + t.first, piece.at, t.outputs);
    } else {
      for (int output = 0; output < t.outputs; ++output)
        store(rows[t.first + output] + piece.row, piece.at + output * piece.stride, piece.channels);
    }
  }
}

}  // namespace
}  // namespace sparsekernels::block
