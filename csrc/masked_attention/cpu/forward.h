// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Attention forward, 8 rows of queries at a time, over keys that lie in tiles of 32. Compiled once per instruction set;
// docs/masked_products.md derives it.
//
// Tiles of which the mask keeps nothing are passed over. Those of which it keeps a lot are products of tiles; of the
// others, and of those that hold infinity or NaN, single elements are computed. The keys are taken in runs, so that
// their scores fit the cache; between runs sums are scaled to the new maximum. All this depends on the mask and on the
// numbers alone, never on threads.
#pragma once

#include "base/exp.h"
#include "masked_attention/call.h"
#include "masked_attention/cpu/products.h"

namespace sparsekernels {
namespace {
namespace attention {

constexpr int64_t kRunTiles = 32;   // of a run, computed as tiles
constexpr int64_t kRunKeys = 1024;  // of a run and a row, computed one by one
// From row to row of the scores of a run: not a page, whose lines would share a set of the cache.
constexpr int64_t kScoreStride = kRunTiles * kKeys + kLanes;
constexpr int64_t kTilesTogether = 8;  // whose products are summed one after another

inline float infinity() {
  return bits_to_float(0x7f800000u);
}

inline float largest(Vec<float> a) {
#if defined(SPARSEKERNELS_AVX512)
  return _mm512_reduce_max_ps(a.v);
#else
  float lanes[kLanes];
  a.store(lanes);
  float result = lanes[0];
  for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
#endif
}

// The larger of two; the second where the first is NaN.
inline Vec<float> larger_of(Vec<float> a, Vec<float> b) {
#if defined(SPARSEKERNELS_AVX512)
  return {_mm512_max_ps(a.v, b.v)};
#elif defined(SPARSEKERNELS_AVX2)
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
#else
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
#endif
}

// The lanes whose bit is set, a number in the others.
inline Vec<float> only_or(uint32_t lanes, Vec<float> a, Vec<float> other) {
#if defined(SPARSEKERNELS_AVX512)
  return {_mm512_mask_mov_ps(other.v, static_cast<__mmask16>(lanes), a.v)};
#else
  float of[kLanes], others[kLanes];
  a.store(of);
  other.store(others);
  for (int i = 0; i < kLanes; ++i) of[i] = lanes >> i & 1 ? of[i] : others[i];
  return Vec<float>::load(of);
#endif
}

// What a run of keys is made of.
struct Run {
  int64_t tiles[kRunTiles];
  uint32_t bits[kRunTiles][kTileRows];
  int64_t count = 0;
  int64_t kept[kTileRows] = {};  // single elements of each row
  int64_t most_kept = 0;
};

struct ForwardBuffers {
  float *q, *scores, *sums, *elements;
  int32_t* keys;

  static int64_t floats(int64_t q_stride, int64_t v_stride) {
    return kTileRows * (q_stride + kScoreStride + v_stride + 2 * kRunKeys);
  }
  ForwardBuffers(float* workspace, int64_t q_stride, int64_t v_stride) {
    q = workspace;                             // [8][q_stride]
    scores = q + kTileRows * q_stride;         // [8][tiles of a run * 32]
    sums = scores + kTileRows * kScoreStride;  // [8][v_stride]
    elements = sums + kTileRows * v_stride;    // [8][single keys of a run]
    keys = reinterpret_cast<int32_t*>(elements + kTileRows * kRunKeys);
  }
};

// to[8][cols] += weights[8][...] by rows of tiles
template <int V>
inline void add_values(
    const float* weights, const float* const* tiles, int64_t count, int64_t b_stride, float* to, int64_t to_stride) {
  for (int64_t first = 0; first < kTileRows; first += kRows)
    for (int64_t t = 0; t < count;) {
      const int64_t end = t + kTilesTogether < count ? t + kTilesTogether : count;
      Vec<float> sums[kRows][V];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = Vec<float>::zero();
      for (; t < end; ++t) {
        const float* const from = weights + first * kScoreStride + t * kKeys;
        const float* const b = tiles[t];
        for (int64_t k = 0; k < kKeys; ++k) {
          Vec<float> row[V];
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) row[v] = Vec<float>::load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const Vec<float> factor = Vec<float>::broadcast(from[r * kScoreStride + k]);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sums[r][v] = fma(factor, row[v], sums[r][v]);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          float* const place = to + (first + r) * to_stride + v * kLanes;
          (Vec<float>::load(place) + sums[r][v]).store(place);
        }
    }
}

// What 8 rows have come to: maxima, sums of exponentials; the sums of values are in the buffers.
struct RowState {
  float most[kTileRows], total[kTileRows];
};

// What rows have come to, to y, rest and statistics; sums are [count][stride].
template <class T>
void store_rows(
    const AttentionGroup& group, const AttentionMember& member, int64_t row, int count, const float* sums,
    int64_t stride, const float* most, const float* total, const bool* any) {
  const int64_t cols = group.v.cols;
  for (int r = 0; r < count; ++r) {
    const float* const of_row = sums + r * stride;
    member.statistics[2 * (row + r)] = most[r];
    member.statistics[2 * (row + r) + 1] = total[r];
    const Vec<float> factor = Vec<float>::broadcast(1.0f / total[r]);
    for (int64_t i = 0; i < cols; i += kLanes) {
      const Vec<float> value = any[r] ? Vec<float>::load(of_row + i) * factor : Vec<float>::zero();
      const uint32_t there = (1u << at_most(cols - i, kLanes)) - 1;
      T* const place = static_cast<T*>(member.y) + (row + r) * cols + i;
      Vec16<T>::store(value, place, there);
      if (member.rest != nullptr) {
        const Vec<float> rounded = Vec16<T>::load(place, there);
        Vec16<T>::store(value + negated(rounded), static_cast<T*>(member.rest) + (row + r) * cols + i, there);
      }
    }
  }
}

template <class T>
class Forward {
 public:
  static int64_t floats(const AttentionGroup& group) {
    return Rows<T>::floats(group.k) + Rows<T>::floats(group.v) +
           ForwardBuffers::floats(padded(group.k.cols, kLanes), padded(group.v.cols, kLanes));
  }
  Forward(const AttentionGroup& group, float* workspace)
      : group_(group),
        k_(group.k, workspace),
        v_(group.v, workspace + Rows<T>::floats(group.k)),
        to_(workspace + Rows<T>::floats(group.k) + Rows<T>::floats(group.v), k_.stride(), v_.stride()) {}

  void rows(const AttentionMember& member, int64_t row, int count) {
    const MaskBits mask{member.mask, group_.mask_words};
    const int64_t tiles = divided(group_.k.rows, kKeys), v_stride = v_.stride();
    for (int64_t i = 0; i < kTileRows * v_stride; i += kLanes) Vec<float>::zero().store(to_.sums + i);
    RowState state;
    bool any[kTileRows] = {}, fetched = false;
    for (int r = 0; r < kTileRows; ++r) state.most[r] = -infinity(), state.total[r] = 0.0f;
    for (int64_t tile = 0; tile < tiles;) {
      Run run;
      tile = gather(mask, row, count, tile, tiles, run, any);
      if (run.count == 0 && run.most_kept == 0) continue;
      if (!fetched) fetch_queries(member, row, count);
      fetched = true;
      add_run(run, state);
    }
    store_rows<T>(group_, member, row, count, to_.sums, v_stride, state.most, state.total, any);
  }

 private:
  // Fills a run from a tile on; returns the tile that comes behind it.
  int64_t gather(MaskBits mask, int64_t row, int count, int64_t tile, int64_t tiles, Run& run, bool (&any)[kTileRows]) {
    for (; tile < tiles; ++tile) {
      if (run.count == kRunTiles || run.most_kept + kKeys > kRunKeys) return tile;
      if (tile % 2 == 0 && is_word_empty(mask, row, count, tile)) {
        ++tile;
        continue;
      }
      const TileBits bits(mask, row, count, tile);
      if (bits.count == 0) continue;
      for (int r = 0; r < count; ++r) any[r] = any[r] || bits.rows[r] != 0;
      bool by_elements = bits.count <= group_.few;
      if (!by_elements) {
        k_.columns_of(tile);
        v_.rows_of(tile);
        by_elements = !k_.is_finite_at(tile) || !v_.is_finite_at(tile);
      }
      if (!by_elements) {
        run.tiles[run.count] = tile;
        for (int r = 0; r < kTileRows; ++r) run.bits[run.count][r] = bits.rows[r];
        ++run.count;
        continue;
      }
      k_.rows_of(tile);
      v_.rows_of(tile);
      for (int r = 0; r < count; ++r)
        for (uint32_t left = bits.rows[r]; left != 0; left &= left - 1)
          to_.keys[r * kRunKeys + run.kept[r]++] = static_cast<int32_t>(tile * kKeys) + __builtin_ctz(left);
      for (const int64_t kept : run.kept) run.most_kept = kept > run.most_kept ? kept : run.most_kept;
    }
    return tile;
  }

  void fetch_queries(const AttentionMember& member, int64_t row, int count) {
    MaskedMatrix q = group_.q;
    q.data = member.q;
    const int64_t stride = k_.stride();
    fetch<T>(q, row, row + count, 0, q.cols, to_.q, stride);
    for (int64_t i = count * stride; i < kTileRows * stride; i += kLanes) Vec<float>::zero().store(to_.q + i);
  }

  void add_run(const Run& run, RowState& state) {
    const Vec<float> scale = Vec<float>::broadcast(group_.scale), least = Vec<float>::broadcast(-infinity());
    const int64_t v_stride = v_.stride();
    Vec<float> most[kTileRows];
    for (Vec<float>& one : most) one = least;
    for (int64_t t = 0; t < run.count; ++t) {
      float* const scores = to_.scores + t * kKeys;
      multiply_tile(to_.q, k_.stride(), k_.columns_of(run.tiles[t]), group_.k.cols, scores, kScoreStride);
      for (int r = 0; r < kTileRows; ++r)
        for (int half = 0; half < 2; ++half) {
          float* const place = scores + r * kScoreStride + half * kLanes;
          const Vec<float> scaled = Vec<float>::load(place) * scale;
          scaled.store(place);
          most[r] = larger_of(only_or(run.bits[t][r] >> (half * kLanes) & 0xffffu, scaled, least), most[r]);
        }
    }
    for (int r = 0; r < kTileRows; ++r) {
      float* const elements = to_.elements + r * kRunKeys;
      const int64_t kept = run.kept[r];
      float above = largest(most[r]);
      if (kept != 0) {
        dots_of(to_.q + r * k_.stride(), k_.rows(), k_.stride(), to_.keys + r * kRunKeys, kept, elements);
        for (int64_t i = 0; i < kept; ++i) {
          elements[i] *= group_.scale;
          above = elements[i] > above ? elements[i] : above;
        }
      }
      // the maximum so far; where it is -infinity, all exponentials so far are 0
      const float most_before = state.most[r], most_now = above > most_before ? above : most_before;
      const float taken = most_now == -infinity() ? 0.0f : most_now;
      if (most_now != most_before && state.total[r] != 0.0f) {
        const float factor = exp_of(most_before - taken);
        state.total[r] *= factor;
        const Vec<float> all = Vec<float>::broadcast(factor);
        float* const sums = to_.sums + r * v_stride;
        for (int64_t i = 0; i < v_stride; i += kLanes) (Vec<float>::load(sums + i) * all).store(sums + i);
      }
      state.most[r] = most_now;
      const Vec<float> negative = Vec<float>::broadcast(-taken);
      Vec<float> totals = Vec<float>::zero();
      for (int64_t t = 0; t < run.count; ++t)
        for (int half = 0; half < 2; ++half) {
          float* const place = to_.scores + r * kScoreStride + t * kKeys + half * kLanes;
          const uint32_t lanes = run.bits[t][r] >> (half * kLanes) & 0xffffu;
          const Vec<float> weight = exp_only(lanes, Vec<float>::load(place) + negative);
          weight.store(place);
          totals = totals + weight;
        }
      for (int64_t i = 0; i < kept; i += kLanes) {
        const uint32_t lanes = (1u << at_most(kept - i, kLanes)) - 1;
        const Vec<float> weight = exp_only(lanes, Vec<float>::load(elements + i) + negative);
        weight.store(elements + i);
        totals = totals + weight;
      }
      state.total[r] += sum(totals);
    }
    const float* values[kRunTiles];
    for (int64_t t = 0; t < run.count; ++t) values[t] = v_.rows_of(run.tiles[t]);
    for (int64_t c = 0; c < v_stride;) {
      const float* of_column[kRunTiles];
      for (int64_t t = 0; t < run.count; ++t) of_column[t] = values[t] + c;
      if (c + 2 * kLanes <= v_stride) {
        add_values<2>(to_.scores, of_column, run.count, v_stride, to_.sums + c, v_stride);
        c += 2 * kLanes;
      } else {
        add_values<1>(to_.scores, of_column, run.count, v_stride, to_.sums + c, v_stride);
        c += kLanes;
      }
    }
    for (int r = 0; r < kTileRows; ++r)
      if (run.kept[r] != 0)
        add_rows_of(
            to_.elements + r * kRunKeys, v_.rows(), v_stride, to_.keys + r * kRunKeys, run.kept[r],
            to_.sums + r * v_stride);
  }

  const AttentionGroup& group_;
  Rows<T> k_, v_;
  ForwardBuffers to_;
};

template <class T>
void forward_part(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  Forward<T> forward(group, workspace);
  const int64_t rows = group.q.rows, height = padded(rows, kAttentionRows);
  for (int64_t at = part.row_begin; at < part.row_end; at += kTileRows) {
    const int64_t row = at % height;
    if (row < rows) forward.rows(group.members[at / height], row, at_most(rows - row, kTileRows));
  }
}

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
