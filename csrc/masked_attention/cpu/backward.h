// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The gradients of attention, 32 rows of queries at a time. Compiled once per instruction set; docs/masked_products.md
// derives them.
//
// Each gradient is summed in an order that depends on the mask and on the numbers alone: dq over tiles of keys, dk and
// dv over blocks of rows. So a part may compute dq alone, or dk and dv alone, with the same bits.
#pragma once

#include "masked_attention/cpu/forward.h"

namespace sparsekernels {
namespace {
namespace attention {

constexpr int64_t kBlockRows = kAttentionRows, kSubtiles = kBlockRows / kTileRows;
constexpr int64_t kListed = 256;  // single elements of a row that are kept back

struct BackwardBuffers {
  float *q, *dy, *dq, *weights, *of_scores, *deltas, *most, *factors, *dots, *of_weights;
  int32_t* keys;

  static int64_t floats(int64_t q_stride, int64_t v_stride) {
    return kBlockRows * (2 * q_stride + v_stride + 2 * kKeys + 3 + kListed) + 2 * kListed;
  }
  BackwardBuffers(float* workspace, int64_t q_stride, int64_t v_stride) {
    q = workspace;                             // [32][q_stride]
    dq = q + kBlockRows * q_stride;            // the same
    dy = dq + kBlockRows * q_stride;           // [32][v_stride]
    weights = dy + kBlockRows * v_stride;      // [32][32]
    of_scores = weights + kBlockRows * kKeys;  // [32][32]
    deltas = of_scores + kBlockRows * kKeys;   // [32]
    most = deltas + kBlockRows;                // [32], largest scores
    factors = most + kBlockRows;               // [32], of exponentials: what makes them weights
    dots = factors + kBlockRows;               // of single elements of a row
    of_weights = dots + kListed;
    keys = reinterpret_cast<int32_t*>(of_weights + kListed);  // [32][kListed]
  }
};

template <class T>
class Backward {
 public:
  static int64_t floats(const AttentionGroup& group) {
    const int64_t q_stride = padded(group.k.cols, kLanes), v_stride = padded(group.v.cols, kLanes);
    return Rows<T>::floats(group.k) + Rows<T>::floats(group.v) + padded(group.k.rows, kKeys) * (q_stride + v_stride) +
           BackwardBuffers::floats(q_stride, v_stride);
  }
  Backward(const AttentionGroup& group, const AttentionPart& part, float* workspace)
      : group_(group),
        part_(part),
        k_(group.k, workspace),
        v_(group.v, workspace + Rows<T>::floats(group.k)),
        dk_(workspace + Rows<T>::floats(group.k) + Rows<T>::floats(group.v)),
        dv_(dk_ + padded(group.k.rows, kKeys) * k_.stride()),
        to_(dv_ + padded(group.k.rows, kKeys) * v_.stride(), k_.stride(), v_.stride()) {
    if (!part.keys) return;
    for (int64_t i = first_key() * k_.stride(); i < last_key() * k_.stride(); i += kLanes)
      Vec<float>::zero().store(dk_ + i);
    for (int64_t i = first_key() * v_.stride(); i < last_key() * v_.stride(); i += kLanes)
      Vec<float>::zero().store(dv_ + i);
  }

  void rows(const AttentionMember& member, int64_t row, int count) {
    const MaskBits mask{member.mask, group_.mask_words};
    bool fetched = false;
    for (int64_t i = 0; i < kBlockRows * k_.stride(); i += kLanes) Vec<float>::zero().store(to_.dq + i);
    for (int64_t tile = part_.tile_begin; tile < part_.tile_end; ++tile) {
      if (tile % 2 == 0 && is_word_empty(mask, row, count, tile)) {
        ++tile;
        continue;
      }
      int dense[kSubtiles], found = 0;
      uint32_t bits_of[kSubtiles][kTileRows];
      for (int sub = 0; sub * kTileRows < count; ++sub) {
        const int64_t first = sub * kTileRows;
        const TileBits bits(mask, row + first, at_most(count - first, kTileRows), tile);
        if (bits.count == 0) continue;
        if (!fetched) fetch_rows(member, row, count);
        fetched = true;
        if (is_dense(bits, sub, tile)) {
          for (int r = 0; r < kTileRows; ++r) bits_of[found][r] = bits.rows[r];
          dense[found++] = sub;
        } else {
          list(bits, sub, tile);
        }
      }
      if (found != 0) add_tile_of(tile, dense, bits_of, found);
      if (most_listed_ + kKeys > kListed) add_listed();
    }
    if (most_listed_ != 0) add_listed();
    if (part_.queries) {
      scale_all(to_.dq, kBlockRows * k_.stride());
      put_rows(member.dq, group_.q.cols, to_.dq, k_.stride(), row, count);
    }
  }

  // dk and dv, once all rows are done.
  void store_keys() {
    const int64_t last = last_key() < group_.k.rows ? last_key() : group_.k.rows, count = last - first_key();
    scale_all(dk_ + first_key() * k_.stride(), count * k_.stride());
    put_rows(group_.dk, group_.k.cols, dk_ + first_key() * k_.stride(), k_.stride(), first_key(), count);
    put_rows(group_.dv, group_.v.cols, dv_ + first_key() * v_.stride(), v_.stride(), first_key(), count);
  }

 private:
  int64_t first_key() const { return part_.tile_begin * kKeys; }
  int64_t last_key() const { return part_.tile_end * kKeys; }

  void scale_all(float* from, int64_t count) const {
    const Vec<float> scale = Vec<float>::broadcast(group_.scale);
    for (int64_t i = 0; i < count; i += kLanes) (Vec<float>::load(from + i) * scale).store(from + i);
  }

  static void put_rows(void* data, int64_t cols, const float* from, int64_t stride, int64_t row, int64_t count) {
    MaskedMatrix dest;
    dest.data = data, dest.row_stride = cols, dest.col_stride = 1;
    for (int64_t r = 0; r < count; r += kLanes)
      put<T>(dest, row + r, 0, at_most(count - r, kLanes), cols, from + r * stride, stride);
  }

  void fetch_rows(const AttentionMember& member, int64_t row, int count) {
    MaskedMatrix q = group_.q, gradient = group_.gradient;
    q.data = member.q, gradient.data = member.gradient;
    const int64_t q_stride = k_.stride(), v_stride = v_.stride(), cols = group_.v.cols;
    fetch<T>(q, row, row + count, 0, q.cols, to_.q, q_stride);
    fetch<T>(gradient, row, row + count, 0, cols, to_.dy, v_stride);
    for (int64_t i = count * q_stride; i < kBlockRows * q_stride; i += kLanes) Vec<float>::zero().store(to_.q + i);
    for (int64_t i = count * v_stride; i < kBlockRows * v_stride; i += kLanes) Vec<float>::zero().store(to_.dy + i);
    for (int r = 0; r < kBlockRows; ++r) to_.deltas[r] = 0.0f, to_.most[r] = 0.0f, to_.factors[r] = 0.0f;
    for (int r = 0; r < count; ++r) {
      const float* const statistics = member.statistics + 2 * (row + r);
      to_.most[r] = statistics[0] == -infinity() ? 0.0f : statistics[0];
      to_.factors[r] = 1.0f / statistics[1];
      Vec<float> sums = Vec<float>::zero();
      for (int64_t i = 0; i < cols; i += kLanes) {
        const uint32_t there = (1u << at_most(cols - i, kLanes)) - 1;
        Vec<float> y = Vec16<T>::load(static_cast<const T*>(member.y) + (row + r) * cols + i, there);
        if (member.rest != nullptr)
          y = y + Vec16<T>::load(static_cast<const T*>(member.rest) + (row + r) * cols + i, there);
        sums = fma(y, Vec<float>::load(to_.dy + r * v_stride + i), sums);
      }
      to_.deltas[r] = sum(sums);
    }
    for (int sub = 0; sub < kSubtiles; ++sub)
      finite_[sub] = is_finite(to_.q + sub * kTileRows * q_stride, kTileRows * q_stride) &&
                     is_finite(to_.dy + sub * kTileRows * v_stride, kTileRows * v_stride);
  }

  // Whether 8 rows are computed as a tile; what is needed for one way or the other is fetched.
  bool is_dense(const TileBits& bits, int sub, int64_t tile) {
    if (bits.count > group_.few && finite_[sub]) {
      k_.rows_of(tile);
      k_.columns_of(tile);
      v_.columns_of(tile);
      if (k_.is_finite_at(tile) && v_.is_finite_at(tile)) return true;
    }
    k_.rows_of(tile);
    v_.rows_of(tile);
    return false;
  }

  void list(const TileBits& bits, int sub, int64_t tile) {
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = sub * kTileRows + r;
      for (uint32_t left = bits.rows[r]; left != 0; left &= left - 1)
        to_.keys[row * kListed + listed_[row]++] = static_cast<int32_t>(tile * kKeys) + __builtin_ctz(left);
      most_listed_ = listed_[row] > most_listed_ ? listed_[row] : most_listed_;
    }
  }

  void add_tile_of(int64_t tile, const int* dense, const uint32_t (*bits)[kTileRows], int found) {
    const int64_t q_stride = k_.stride(), v_stride = v_.stride();
    const Vec<float> scale = Vec<float>::broadcast(group_.scale);
    // the rows that are computed lie side by side: those of dk and dv are summed over them
    for (int i = 0; i < found; ++i) {
      const int64_t first = dense[i] * kTileRows;
      float *const weights = to_.weights + i * kTileRows * kKeys, *const of_scores =
                                                                      to_.of_scores + i * kTileRows * kKeys;
      multiply_tile(to_.q + first * q_stride, q_stride, k_.columns_of(tile), group_.k.cols, weights, kKeys);
      multiply_tile(to_.dy + first * v_stride, v_stride, v_.columns_of(tile), group_.v.cols, of_scores, kKeys);
      for (int r = 0; r < kTileRows; ++r) {
        const Vec<float> most = Vec<float>::broadcast(-to_.most[first + r]);
        const Vec<float> factor = Vec<float>::broadcast(to_.factors[first + r]);
        const Vec<float> delta = Vec<float>::broadcast(-to_.deltas[first + r]);
        for (int half = 0; half < 2; ++half) {
          const uint32_t lanes = bits[i][r] >> (half * kLanes) & 0xffffu;
          float* const place = weights + r * kKeys + half * kLanes;
          const Vec<float> weight = only(lanes, exp_only(lanes, Vec<float>::load(place) * scale + most) * factor);
          weight.store(place);
          float* const other = of_scores + r * kKeys + half * kLanes;
          only(lanes, weight * (Vec<float>::load(other) + delta)).store(other);
        }
      }
      if (part_.queries)
        add_product<false>(of_scores, kKeys, k_.rows_of(tile), q_stride, kKeys, to_.dq + first * q_stride, q_stride);
    }
    if (!part_.keys) return;
    float *const dk = dk_ + tile * kKeys * q_stride, *const dv = dv_ + tile * kKeys * v_stride;
    bool together = true;
    for (int i = 0; i < found; ++i) together = together && dense[i] == dense[0] + i;
    for (int64_t key = 0; key < kKeys; key += kTileRows)
      for (int i = 0; i < found; i += together ? found : 1) {
        const int64_t depth = (together ? found : 1) * kTileRows, first = dense[i] * kTileRows;
        const int64_t at = i * kTileRows * kKeys + key;
        add_product<true>(
            to_.of_scores + at, kKeys, to_.q + first * q_stride, q_stride, depth, dk + key * q_stride, q_stride);
        add_product<true>(
            to_.weights + at, kKeys, to_.dy + first * v_stride, v_stride, depth, dv + key * v_stride, v_stride);
      }
  }

  // The single elements that were kept back.
  void add_listed() {
    const int64_t q_stride = k_.stride(), v_stride = v_.stride();
    most_listed_ = 0;
    for (int r = 0; r < kBlockRows; ++r) {
      const int64_t count = listed_[r];
      if (count == 0) continue;
      listed_[r] = 0;
      const int32_t* const keys = to_.keys + r * kListed;
      const float *const q = to_.q + r * q_stride, *const dy = to_.dy + r * v_stride;
      dots_of(q, k_.rows(), q_stride, keys, count, to_.dots);
      dots_of(dy, v_.rows(), v_stride, keys, count, to_.of_weights);
      const Vec<float> scale = Vec<float>::broadcast(group_.scale);
      const Vec<float> most = Vec<float>::broadcast(-to_.most[r]), factor = Vec<float>::broadcast(to_.factors[r]);
      const Vec<float> delta = Vec<float>::broadcast(-to_.deltas[r]);
      for (int64_t i = 0; i < count; i += kLanes) {
        const Vec<float> weight = exp_only(0xffffu, Vec<float>::load(to_.dots + i) * scale + most) * factor;
        weight.store(to_.dots + i);
        (weight * (Vec<float>::load(to_.of_weights + i) + delta)).store(to_.of_weights + i);
      }
      if (part_.queries) add_rows_of(to_.of_weights, k_.rows(), q_stride, keys, count, to_.dq + r * q_stride);
      if (!part_.keys) continue;
      for (int64_t i = 0; i < count; ++i) {
        add_row(to_.of_weights[i], q, q_stride, dk_ + keys[i] * q_stride);
        add_row(to_.dots[i], dy, v_stride, dv_ + keys[i] * v_stride);
      }
    }
  }

  const AttentionGroup& group_;
  const AttentionPart& part_;
  Rows<T> k_, v_;
  float *dk_, *dv_;  // [keys][stride]
  BackwardBuffers to_;
  bool finite_[kSubtiles] = {};
  int64_t listed_[kBlockRows] = {}, most_listed_ = 0;
};

template <class T>
void backward_part(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  Backward<T> backward(group, part, workspace);
  const int64_t rows = group.q.rows, height = padded(rows, kBlockRows);
  for (int64_t at = part.row_begin; at < part.row_end; at += kBlockRows)
    backward.rows(group.members[at / height], at % height, at_most(rows - at % height, kBlockRows));
  if (part.keys) backward.store_keys();
}

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
