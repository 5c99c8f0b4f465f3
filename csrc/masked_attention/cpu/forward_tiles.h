// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Attention forward in bfloat16 on tiles of AMX, 32 rows of queries at a time; else as forward.h has it.
#pragma once

#include "masked_attention/cpu/few_queries.h"
#include "masked_attention/cpu/tiles.h"

namespace sparsekernels {
namespace {
namespace attention {

constexpr int64_t kSideRun = 8;     // tiles of a run
constexpr int64_t kSideKeys = 256;  // of a run and a row, computed one by one
constexpr int64_t kSideStride = kSideRun * kSide + kLanes;

struct SideRun {
  int64_t tiles[kSideRun];
  uint32_t bits[kSideRun][kSide];
  int64_t count = 0;
  int64_t kept[kSide] = {};  // single elements of each row
  int64_t most_kept = 0;
};

struct ForwardSideBuffers {
  float *columns, *values, *k_state, *v_state, *scores, *sums, *q, *elements;
  BFloat16* q_numbers;
  uint32_t *upper, *rest;
  int32_t* keys;

  static int64_t floats(const AttentionGroup& group) {
    const int64_t depth = padded(group.q.cols, kSide), width = padded(group.v.cols, kSide);
    return Tiles::floats(group.k) + Tiles::floats(group.v) + Tiles::state_floats(group.k) +
           Tiles::state_floats(group.v) +
           kSide * (kSideStride + width + padded(group.q.cols, kLanes) + depth / 2 + kSideRun * kSide + 2 * kSideKeys);
  }
  ForwardSideBuffers(const AttentionGroup& group, float* workspace) {
    const int64_t depth = padded(group.q.cols, kSide), width = padded(group.v.cols, kSide);
    columns = workspace;
    values = columns + Tiles::floats(group.k);
    k_state = values + Tiles::floats(group.v);
    v_state = k_state + Tiles::state_floats(group.k);
    scores = v_state + Tiles::state_floats(group.v);                                    // [32][kSideStride]
    sums = scores + kSide * kSideStride;                                                // [32][width]
    q = sums + kSide * width;                                                           // as floats
    q_numbers = reinterpret_cast<BFloat16*>(q + kSide * padded(group.q.cols, kLanes));  // [32][depth]
    upper = reinterpret_cast<uint32_t*>(q_numbers + kSide * depth);                     // [tile][32][16]
    rest = upper + kSideRun * 2 * kTileWords;
    elements = reinterpret_cast<float*>(rest + kSideRun * 2 * kTileWords);  // [32][kSideKeys]
    keys = reinterpret_cast<int32_t*>(elements + kSide * kSideKeys);
  }
};

class ForwardSide {
 public:
  static int64_t floats(const AttentionGroup& group) {
    return Rows<BFloat16>::floats(group.k) + Rows<BFloat16>::floats(group.v) + ForwardSideBuffers::floats(group);
  }
  ForwardSide(const AttentionGroup& group, float* workspace)
      : group_(group),
        to_(group, workspace),
        k_(group.k, to_.columns, nullptr, to_.k_state),
        v_(group.v, nullptr, to_.values, to_.v_state),
        k_rows_(group.k, workspace + ForwardSideBuffers::floats(group)),
        v_rows_(group.v, workspace + ForwardSideBuffers::floats(group) + Rows<BFloat16>::floats(group.k)),
        depth_(padded(group.q.cols, kSide)),
        width_(padded(group.v.cols, kSide)) {}

  // Up to 32 rows, wherever they are, over the keys from `key` on, a multiple of 64, of which k and v begin.
  void run(const RowPlace* places, int count, int64_t key) {
    const int64_t tiles = divided(group_.k.rows, kSide);
    const uint64_t* mask[kSide];
    for (int r = 0; r < count; ++r) mask[r] = places[r].member->mask + places[r].row * group_.mask_words + key / 64;
    bool fetched = false;
    for (int r = 0; r < kSide; ++r) most_[r] = -infinity(), total_[r] = 0.0f, any_[r] = false;
    for (int64_t i = 0; i < kSide * width_; i += kLanes) Vec<float>::zero().store(to_.sums + i);
    for (int64_t tile = 0; tile < tiles;) {
      SideRun run;
      tile = gather(mask, count, tile, tiles, run);
      if (run.count == 0 && run.most_kept == 0) continue;
      if (!fetched) {
        MaskedMatrix q = group_.q;
        for (int r = 0; r < kSide; ++r) {
          if (r < count) q.data = places[r].member->q;
          pack_row(q, r < count ? places[r].row : -1, to_.q_numbers + r * depth_);
          if (r < count)
            fetch<BFloat16>(
                q, places[r].row, places[r].row + 1, 0, q.cols, to_.q + r * k_rows_.stride(), k_rows_.stride());
        }
      }
      fetched = true;
      add_run(run, count);
    }
  }
  // Results of `run`.
  void store(const RowPlace* places, int count) const {
    for (int r = 0; r < count; ++r)
      store_rows<BFloat16>(
          group_, *places[r].member, places[r].row, 1, to_.sums + r * width_, width_, most_ + r, total_ + r, any_ + r);
  }
  void store_partials(int count, float* to) const {
    for (int r = 0; r < count; ++r, to += partial_stride(group_)) {
      to[0] = most_[r], to[1] = total_[r], to[2] = any_[r] ? 1.0f : 0.0f;
      for (int64_t i = 0; i < width_; i += kLanes)
        Vec<float>::load(to_.sums + r * width_ + i).store(to + kPartialHead + i);
    }
  }

 private:
  int64_t gather(const uint64_t* const* mask, int count, int64_t tile, int64_t tiles, SideRun& run) {
    for (; tile < tiles; ++tile) {
      if (run.count == kSideRun || run.most_kept + kSide > kSideKeys) return tile;
      if (tile % 2 == 0) {
        uint64_t found = 0;
        for (int r = 0; r < count; ++r) found |= mask[r][tile / 2];
        if (found == 0) {
          ++tile;
          continue;
        }
      }
      uint32_t bits[kSide] = {};
      int64_t found = 0;
      for (int r = 0; r < count; ++r) {
        bits[r] = static_cast<uint32_t>(mask[r][tile / 2] >> (tile % 2 * kSide));
        found += __builtin_popcount(bits[r]);
        any_[r] = any_[r] || bits[r] != 0;
      }
      if (found == 0) continue;
      bool by_elements = found <= group_.few;
      if (!by_elements) {
        k_.columns_of(tile);
        v_.rows_of(tile);
        by_elements = !k_.is_finite_at(tile) || !v_.is_finite_at(tile);
      }
      if (!by_elements) {
        run.tiles[run.count] = tile;
        for (int r = 0; r < kSide; ++r) run.bits[run.count][r] = bits[r];
        ++run.count;
        continue;
      }
      k_rows_.rows_of(tile);
      v_rows_.rows_of(tile);
      for (int r = 0; r < count; ++r)
        for (uint32_t left = bits[r]; left != 0; left &= left - 1)
          to_.keys[r * kSideKeys + run.kept[r]++] = static_cast<int32_t>(tile * kSide) + __builtin_ctz(left);
      for (const int64_t kept : run.kept) run.most_kept = kept > run.most_kept ? kept : run.most_kept;
    }
    return tile;
  }

  void add_run(const SideRun& run, int count) {
    for (int64_t t = 0; t < run.count; ++t)
      multiply_side(to_.q_numbers, depth_, k_.columns_of(run.tiles[t]), to_.scores + t * kSide, kSideStride);
    for (int r = 0; r < count; ++r) add_row_of(run, r);
    for (int64_t t = 0; t < run.count; ++t)
      for (int64_t i = count * kLanes; i < 2 * kTileWords; i += kLanes) {
        _mm512_storeu_si512(to_.upper + t * 2 * kTileWords + i, _mm512_setzero_si512());
        _mm512_storeu_si512(to_.rest + t * 2 * kTileWords + i, _mm512_setzero_si512());
      }
    if (run.count != 0)
      for (int64_t c = 0; c < width_; c += kSide) {
        const uint32_t* values[kSideRun];
        for (int64_t t = 0; t < run.count; ++t) values[t] = v_.rows_of(run.tiles[t]) + c / kLanes * kTileWords;
        add_side(to_.upper, to_.rest, values, run.count, to_.sums + c, width_);
      }
    for (int r = 0; r < count; ++r)
      if (run.kept[r] != 0) {
        const float* const weights = to_.elements + r * kSideKeys;
        add_rows_of(
            weights, v_rows_.rows(), v_rows_.stride(), to_.keys + r * kSideKeys, run.kept[r], to_.sums + r * width_);
      }
  }

  // The weights of one row.
  void add_row_of(const SideRun& run, int r) {
    const float* const scores = to_.scores + r * kSideStride;
    float* const elements = to_.elements + r * kSideKeys;
    const Vec<float> scale = Vec<float>::broadcast(group_.scale), least = Vec<float>::broadcast(-infinity());
    const int64_t kept = run.kept[r];
    Vec<float> above = least;
    for (int64_t t = 0; t < run.count; ++t) {
      const uint32_t bits = run.bits[t][r];
      if (bits == 0) continue;
      const float* const of_tile = scores + t * kSide;
      above = larger_of(only_or(bits & 0xffffu, Vec<float>::load(of_tile) * scale, least), above);
      above = larger_of(only_or(bits >> kLanes, Vec<float>::load(of_tile + kLanes) * scale, least), above);
    }
    float now = largest(above);
    if (kept != 0) {
      const int64_t stride = k_rows_.stride();
      dots_of(to_.q + r * stride, k_rows_.rows(), stride, to_.keys + r * kSideKeys, kept, elements);
      for (int64_t i = 0; i < kept; ++i) {
        elements[i] *= group_.scale;
        now = elements[i] > now ? elements[i] : now;
      }
    }
    const float before = most_[r];
    now = now > before ? now : before;
    const float taken = now == -infinity() ? 0.0f : now;
    if (now != before && total_[r] != 0.0f) {
      const float factor = exp_of(before - taken);
      total_[r] *= factor;
      const Vec<float> all = Vec<float>::broadcast(factor);
      for (int64_t i = r * width_; i < (r + 1) * width_; i += kLanes)
        (Vec<float>::load(to_.sums + i) * all).store(to_.sums + i);
    }
    most_[r] = now;
    const Vec<float> negative = Vec<float>::broadcast(-taken);
    Vec<float> totals = Vec<float>::zero();
    for (int64_t t = 0; t < run.count; ++t) {
      const uint32_t bits = run.bits[t][r];
      const int64_t at = (t * kSide + r) * kLanes;
      if (bits == 0) {
        _mm512_storeu_si512(to_.upper + at, _mm512_setzero_si512());
        _mm512_storeu_si512(to_.rest + at, _mm512_setzero_si512());
        continue;
      }
      const float* const of_tile = scores + t * kSide;
      const Vec<float> first = exp_only(bits & 0xffffu, Vec<float>::load(of_tile) * scale + negative);
      const Vec<float> second = exp_only(bits >> kLanes, Vec<float>::load(of_tile + kLanes) * scale + negative);
      store_weights(first, second, to_.upper + at, to_.rest + at);
      totals = totals + (first + second);
    }
    for (int64_t i = 0; i < kept; i += kLanes) {
      const uint32_t lanes = (1u << at_most(kept - i, kLanes)) - 1;
      const Vec<float> weight = exp_only(lanes, Vec<float>::load(elements + i) + negative);
      weight.store(elements + i);
      totals = totals + weight;
    }
    total_[r] += sum(totals);
  }

  const AttentionGroup& group_;
  ForwardSideBuffers to_;
  Tiles k_, v_;
  Rows<BFloat16> k_rows_, v_rows_;
  int64_t depth_, width_;  // columns of q and of v, padded
  float most_[kSide], total_[kSide];
  bool any_[kSide];
};

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
