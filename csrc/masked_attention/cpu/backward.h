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

// Where dk and dv are summed: [keys][stride].
struct KeySums {
  float *dk = nullptr, *dv = nullptr;
  int64_t k_stride = 0, v_stride = 0;
};

// 32 rows of queries: what both ways of computing them need, and their single elements.
template <class T>
class BackwardRows {
 public:
  BackwardRows(const AttentionGroup& group, float* workspace)
      : to(workspace, padded(group.k.cols, kLanes), padded(group.v.cols, kLanes)),
        group_(group),
        q_stride_(padded(group.k.cols, kLanes)),
        v_stride_(padded(group.v.cols, kLanes)) {}

  void begin(const AttentionMember& member, int64_t row, int count) {
    member_ = &member, row_ = row, count_ = count, fetched_ = false;
    for (int64_t i = 0; i < kBlockRows * q_stride_; i += kLanes) Vec<float>::zero().store(to.dq + i);
  }
  const AttentionMember& member() const { return *member_; }
  int64_t row() const { return row_; }
  int count() const { return count_; }

  // Reads the rows, unless they are there.
  void fetch_rows() {
    if (fetched_) return;
    fetched_ = true;
    MaskedMatrix q = group_.q, gradient = group_.gradient;
    q.data = member_->q, gradient.data = member_->gradient;
    const int64_t cols = group_.v.cols;
    fetch<T>(q, row_, row_ + count_, 0, q.cols, to.q, q_stride_);
    fetch<T>(gradient, row_, row_ + count_, 0, cols, to.dy, v_stride_);
    for (int64_t i = count_ * q_stride_; i < kBlockRows * q_stride_; i += kLanes) Vec<float>::zero().store(to.q + i);
    for (int64_t i = count_ * v_stride_; i < kBlockRows * v_stride_; i += kLanes) Vec<float>::zero().store(to.dy + i);
    for (int r = 0; r < kBlockRows; ++r) to.deltas[r] = 0.0f, to.most[r] = 0.0f, to.factors[r] = 0.0f;
    for (int r = 0; r < count_; ++r) {
      const float* const statistics = member_->statistics + 2 * (row_ + r);
      to.most[r] = statistics[0] == -infinity() ? 0.0f : statistics[0];
      to.factors[r] = 1.0f / statistics[1];
      Vec<float> sums = Vec<float>::zero();
      for (int64_t i = 0; i < cols; i += kLanes) {
        const uint32_t there = (1u << at_most(cols - i, kLanes)) - 1;
        Vec<float> y = Vec16<T>::load(static_cast<const T*>(member_->y) + (row_ + r) * cols + i, there);
        if (member_->rest != nullptr)
          y = y + Vec16<T>::load(static_cast<const T*>(member_->rest) + (row_ + r) * cols + i, there);
        sums = fma(y, Vec<float>::load(to.dy + r * v_stride_ + i), sums);
      }
      to.deltas[r] = sum(sums);
    }
    for (int sub = 0; sub < kSubtiles; ++sub)
      finite_[sub] = is_finite(to.q + sub * kTileRows * q_stride_, kTileRows * q_stride_) &&
                     is_finite(to.dy + sub * kTileRows * v_stride_, kTileRows * v_stride_);
  }
  // Of 8 rows.
  bool is_finite_at(int sub) const { return finite_[sub]; }

  // Keeps back the elements of some rows in a tile.
  void list(const uint32_t* bits, int first, int count, int64_t tile) {
    for (int r = 0; r < count; ++r) {
      int64_t& listed = listed_[first + r];
      for (uint32_t left = bits[r]; left != 0; left &= left - 1)
        to.keys[(first + r) * kListed + listed++] = static_cast<int32_t>(tile * kKeys) + __builtin_ctz(left);
      most_listed_ = listed > most_listed_ ? listed : most_listed_;
    }
  }
  // Whether there may be no room for those of another tile.
  bool is_nearly_full() const { return most_listed_ + kKeys > kListed; }
  // Computes those that were kept back.
  void add_listed(const float* k_rows, const float* v_rows, const AttentionPart& part, const KeySums& sums) {
    if (most_listed_ == 0) return;
    most_listed_ = 0;
    for (int r = 0; r < kBlockRows; ++r) {
      const int64_t count = listed_[r];
      if (count == 0) continue;
      listed_[r] = 0;
      const int32_t* const keys = to.keys + r * kListed;
      const float *const q = to.q + r * q_stride_, *const dy = to.dy + r * v_stride_;
      dots_of(q, k_rows, q_stride_, keys, count, to.dots);
      dots_of(dy, v_rows, v_stride_, keys, count, to.of_weights);
      const Vec<float> scale = Vec<float>::broadcast(group_.scale);
      const Vec<float> most = Vec<float>::broadcast(-to.most[r]), factor = Vec<float>::broadcast(to.factors[r]);
      const Vec<float> delta = Vec<float>::broadcast(-to.deltas[r]);
      for (int64_t i = 0; i < count; i += kLanes) {
        const Vec<float> weight = exp_only(0xffffu, Vec<float>::load(to.dots + i) * scale + most) * factor;
        weight.store(to.dots + i);
        (weight * (Vec<float>::load(to.of_weights + i) + delta)).store(to.of_weights + i);
      }
      if (part.queries) add_rows_of(to.of_weights, k_rows, q_stride_, keys, count, to.dq + r * q_stride_);
      if (!part.keys) continue;
      for (int64_t i = 0; i < count; ++i) {
        add_row(to.of_weights[i], q, q_stride_, sums.dk + keys[i] * sums.k_stride);
        add_row(to.dots[i], dy, v_stride_, sums.dv + keys[i] * sums.v_stride);
      }
    }
  }

  const BackwardBuffers to;

 private:
  const AttentionGroup& group_;
  int64_t q_stride_, v_stride_;
  const AttentionMember* member_ = nullptr;
  int64_t row_ = 0;
  int count_ = 0;
  bool fetched_ = false, finite_[kSubtiles] = {};
  int64_t listed_[kBlockRows] = {}, most_listed_ = 0;
};

inline void scale_all(float scale, float* from, int64_t count) {
  const Vec<float> all = Vec<float>::broadcast(scale);
  for (int64_t i = 0; i < count; i += kLanes) (Vec<float>::load(from + i) * all).store(from + i);
}

template <class T>
void put_rows(void* data, int64_t cols, const float* from, int64_t stride, int64_t row, int64_t count) {
  MaskedMatrix dest;
  dest.data = data, dest.row_stride = cols, dest.col_stride = 1;
  for (int64_t r = 0; r < count; r += kLanes)
    put<T>(dest, row + r, 0, at_most(count - r, kLanes), cols, from + r * stride, stride);
}

// dk and dv of a part, before its first row and after its last one.
inline void clear_keys(const AttentionPart& part, const KeySums& sums) {
  const int64_t first = part.tile_begin * kKeys, last = part.tile_end * kKeys;
  for (int64_t i = first * sums.k_stride; i < last * sums.k_stride; i += kLanes) Vec<float>::zero().store(sums.dk + i);
  for (int64_t i = first * sums.v_stride; i < last * sums.v_stride; i += kLanes) Vec<float>::zero().store(sums.dv + i);
}
template <class T>
void store_keys(const AttentionGroup& group, const AttentionPart& part, const KeySums& sums) {
  const int64_t first = part.tile_begin * kKeys, end = part.tile_end * kKeys;
  const int64_t count = (end < group.k.rows ? end : group.k.rows) - first;
  scale_all(group.scale, sums.dk + first * sums.k_stride, count * sums.k_stride);
  put_rows<T>(group.dk, group.k.cols, sums.dk + first * sums.k_stride, sums.k_stride, first, count);
  put_rows<T>(group.dv, group.v.cols, sums.dv + first * sums.v_stride, sums.v_stride, first, count);
}

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
        sums_(sums_at(group, workspace + Rows<T>::floats(group.k) + Rows<T>::floats(group.v))),
        own_(group, sums_.dv + padded(group.k.rows, kKeys) * v_.stride()) {
    if (part.keys) clear_keys(part, sums_);
  }

  void rows(const AttentionMember& member, int64_t row, int count) {
    const MaskBits mask{member.mask, group_.mask_words};
    own_.begin(member, row, count);
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
        own_.fetch_rows();
        if (is_dense(bits, sub, tile)) {
          for (int r = 0; r < kTileRows; ++r) bits_of[found][r] = bits.rows[r];
          dense[found++] = sub;
        } else {
          own_.list(bits.rows, sub * kTileRows, kTileRows, tile);
        }
      }
      if (found != 0) add_tile_of(tile, dense, bits_of, found);
      if (own_.is_nearly_full()) own_.add_listed(k_.rows(), v_.rows(), part_, sums_);
    }
    own_.add_listed(k_.rows(), v_.rows(), part_, sums_);
    if (part_.queries) {
      scale_all(group_.scale, own_.to.dq, kBlockRows * k_.stride());
      put_rows<T>(member.dq, group_.q.cols, own_.to.dq, k_.stride(), row, count);
    }
  }

  // dk and dv, once all rows are done.
  void finish() { store_keys<T>(group_, part_, sums_); }

 private:
  static KeySums sums_at(const AttentionGroup& group, float* at) {
    const int64_t q_stride = padded(group.k.cols, kLanes), v_stride = padded(group.v.cols, kLanes);
    return {at, at + padded(group.k.rows, kKeys) * q_stride, q_stride, v_stride};
  }

  // Whether 8 rows are computed as a tile; what is needed for one way or the other is fetched.
  bool is_dense(const TileBits& bits, int sub, int64_t tile) {
    if (bits.count > group_.few && own_.is_finite_at(sub)) {
      k_.rows_of(tile);
      k_.columns_of(tile);
      v_.columns_of(tile);
      if (k_.is_finite_at(tile) && v_.is_finite_at(tile)) return true;
    }
    k_.rows_of(tile);
    v_.rows_of(tile);
    return false;
  }

  void add_tile_of(int64_t tile, const int* dense, const uint32_t (*bits)[kTileRows], int found) {
    const int64_t q_stride = k_.stride(), v_stride = v_.stride();
    const Vec<float> scale = Vec<float>::broadcast(group_.scale);
    // the rows that are computed lie side by side: those of dk and dv are summed over them
    for (int i = 0; i < found; ++i) {
      const int64_t first = dense[i] * kTileRows;
      float *const weights = own_.to.weights + i * kTileRows * kKeys, *const of_scores =
                                                                          own_.to.of_scores + i * kTileRows * kKeys;
      multiply_tile(own_.to.q + first * q_stride, q_stride, k_.columns_of(tile), group_.k.cols, weights, kKeys);
      multiply_tile(own_.to.dy + first * v_stride, v_stride, v_.columns_of(tile), group_.v.cols, of_scores, kKeys);
      for (int r = 0; r < kTileRows; ++r) {
        const Vec<float> most = Vec<float>::broadcast(-own_.to.most[first + r]);
        const Vec<float> factor = Vec<float>::broadcast(own_.to.factors[first + r]);
        const Vec<float> delta = Vec<float>::broadcast(-own_.to.deltas[first + r]);
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
        add_product<false>(
            of_scores, kKeys, k_.rows_of(tile), q_stride, kKeys, own_.to.dq + first * q_stride, q_stride);
    }
    if (!part_.keys) return;
    float *const dk = sums_.dk + tile * kKeys * q_stride, *const dv = sums_.dv + tile * kKeys * v_stride;
    bool together = true;
    for (int i = 0; i < found; ++i) together = together && dense[i] == dense[0] + i;
    for (int64_t key = 0; key < kKeys; key += kTileRows)
      for (int i = 0; i < found; i += together ? found : 1) {
        const int64_t depth = (together ? found : 1) * kTileRows, first = dense[i] * kTileRows;
        const int64_t at = i * kTileRows * kKeys + key;
        add_product<true>(
            own_.to.of_scores + at, kKeys, own_.to.q + first * q_stride, q_stride, depth, dk + key * q_stride,
            q_stride);
        add_product<true>(
            own_.to.weights + at, kKeys, own_.to.dy + first * v_stride, v_stride, depth, dv + key * v_stride, v_stride);
      }
  }

  const AttentionGroup& group_;
  const AttentionPart& part_;
  Rows<T> k_, v_;
  KeySums sums_;
  BackwardRows<T> own_;
};

template <class T>
void backward_part(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  Backward<T> backward(group, part, workspace);
  const int64_t rows = group.q.rows, height = padded(rows, kBlockRows);
  for (int64_t at = part.row_begin; at < part.row_end; at += kBlockRows)
    backward.rows(group.members[at / height], at % height, at_most(rows - at % height, kBlockRows));
  if (part.keys) backward.finish();
}

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
