// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The gradients of attention in bfloat16 on tiles of AMX, 64 rows of queries at a time, by halves; else as backward.h
// has it. For files that are compiled for AMX.
//
// Scores are computed transposed, keys by rows, so that no tile of weights is turned: their rows are what dk and dv
// multiply by, and rows of two keys side by side what dq, transposed, does.
#pragma once

#include "masked_attention/cpu/backward.h"
#include "masked_attention/cpu/tiles.h"

namespace sparsekernels {
namespace {
namespace attention {

constexpr int64_t kHalves = 2;                      // of the rows that dk and dv are summed over at once
constexpr int64_t kTurnedRun = 4;                   // tiles of keys that dq is summed over at once
constexpr int64_t kWeightWords = 2 * kTileWords;    // of 32 x 32 weights, as pairs
constexpr int64_t kTurnedWords = 2 * kWeightWords;  // the same, upper halves and what these leave
constexpr int64_t kSideTile = kSide * kSide;        // numbers

// to[32][32] += rows of `turned`, two tiles, by weights of pairs of keys: upper halves and what these leave.
inline void add_turned(const uint32_t* const* turned, const uint32_t* weights, int64_t count, float* to) {
  constexpr int64_t kBytes = kSide * static_cast<int64_t>(sizeof(float));
  load_tile<0>(to, kBytes);
  load_tile<1>(to + kLanes, kBytes);
  load_tile<2>(to + 16 * kSide, kBytes);
  load_tile<3>(to + 16 * kSide + kLanes, kBytes);
  for (int64_t t = 0; t < count; ++t) {
    load_tile<4>(turned[t], kVectorBytes);
    load_tile<5>(turned[t] + kTileWords, kVectorBytes);
    for (const uint32_t* of = weights + t * kTurnedWords; of < weights + (t + 1) * kTurnedWords; of += kWeightWords) {
      load_tile<6>(of, kVectorBytes);
      load_tile<7>(of + kTileWords, kVectorBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_tile<0>(to, kBytes);
  store_tile<1>(to + kLanes, kBytes);
  store_tile<2>(to + 16 * kSide, kBytes);
  store_tile<3>(to + 16 * kSide + kLanes, kBytes);
}

// Keys or values as tiles, 32 at a time, each when it is first asked for: as they lie, [32][columns]; and, where it is
// asked for, turned, [columns / 16][column of 16][pair of keys, which lie 16 apart].
class KeyTiles {
 public:
  static int64_t floats(const MaskedMatrix& of, bool turned) {
    const int64_t tiles = divided(of.rows, kSide);
    return tiles * padded(of.cols, kSide) * (kSide / 2) * (turned ? 2 : 1) + padded(tiles, kLanes);
  }
  KeyTiles(const MaskedMatrix& of, bool turned, float* workspace)
      : of_(of), stride_(padded(of.cols, kSide)), has_turned_(turned) {
    const int64_t tiles = divided(of.rows, kSide);
    numbers_ = reinterpret_cast<BFloat16*>(workspace);
    turned_ = reinterpret_cast<uint32_t*>(workspace + tiles * stride_ * (kSide / 2));
    state_ = reinterpret_cast<int32_t*>(turned_ + (turned ? tiles * stride_ * (kSide / 2) : 0));
    for (int64_t i = 0; i < tiles; ++i) state_[i] = 0;
  }
  // Packs a tile, unless it is; returns whether it has neither infinity nor NaN.
  bool prepare(int64_t tile) {
    if (state_[tile] != 0) return state_[tile] == kFinite;
    bool special = false;
    for (int64_t r = 0; r < kSide; ++r) {
      const int64_t row = tile * kSide + r;
      BFloat16* const to = numbers_ + (tile * kSide + r) * stride_;
      pack_row(of_, row < of_.rows ? row : -1, to);
      for (int64_t col = 0; col < stride_; col += kSide) special = special || is_special(_mm512_loadu_si512(to + col));
    }
    if (has_turned_) {
      pack_pairs(of_, tile * kSide, of_.rows, turned_ + tile * stride_ * (kSide / 2));
      turn_squares(turned_ + tile * stride_ * (kSide / 2), stride_ / kLanes);
    }
    state_[tile] = special ? kSpecial : kFinite;
    return !special;
  }
  // Of a tile that is packed.
  const BFloat16* rows_of(int64_t tile) const { return numbers_ + tile * kSide * stride_; }
  const uint32_t* turned_of(int64_t tile) const { return turned_ + tile * stride_ * (kSide / 2); }
  int64_t stride() const { return stride_; }

 private:
  static constexpr int32_t kFinite = 1, kSpecial = 2;

  MaskedMatrix of_;
  int64_t stride_;
  bool has_turned_;
  BFloat16* numbers_ = nullptr;
  uint32_t* turned_ = nullptr;
  int32_t* state_ = nullptr;
};

// 32 rows of queries as tiles, and what is summed for them.
struct SideRows {
  float* dq;                                              // [padded E][32]
  uint32_t *q_columns, *dy_columns, *q_pairs, *dy_pairs;  // as pack_columns and pack_pairs have them
  uint32_t* weights;                                      // of a run, as add_turned takes them
  const uint32_t* turned[kTurnedRun];                     // keys of a run
  int64_t run = 0;
  bool packed = false;

  static int64_t floats(const AttentionGroup& group) {
    const int64_t depth = padded(group.q.cols, kSide), width = padded(group.v.cols, kSide);
    return kSide * (depth + depth + width) + kTurnedRun * kTurnedWords;
  }
  SideRows(const AttentionGroup& group, float* workspace) {
    const int64_t words_of_q = padded(group.q.cols, kSide) * (kSide / 2);
    const int64_t words_of_v = padded(group.v.cols, kSide) * (kSide / 2);
    dq = workspace;
    q_columns = reinterpret_cast<uint32_t*>(dq + 2 * words_of_q);
    q_pairs = q_columns + words_of_q;
    dy_columns = q_pairs + words_of_q;
    dy_pairs = dy_columns + words_of_v;
    weights = dy_pairs + words_of_v;
  }
};

class BackwardSide {
 public:
  static int64_t floats(const AttentionGroup& group) {
    const int64_t stride = padded(group.k.cols, kLanes), v_stride = padded(group.v.cols, kLanes);
    return own_floats(group) + Rows<BFloat16>::floats(group.k) + Rows<BFloat16>::floats(group.v) +
           kHalves * BackwardBuffers::floats(stride, v_stride);
  }
  BackwardSide(const AttentionGroup& group, const AttentionPart& part, float* workspace)
      : group_(group),
        part_(part),
        depth_(padded(group.q.cols, kSide)),
        width_(padded(group.v.cols, kSide)),
        k_(group.k, true, take(workspace, KeyTiles::floats(group.k, true))),
        v_(group.v, false, take(workspace, KeyTiles::floats(group.v, false))),
        scores_(take(workspace, kSideTile)),
        of_weights_(take(workspace, kSideTile)),
        weights_(reinterpret_cast<uint32_t*>(take(workspace, kHalves * kTurnedWords))),
        of_scores_(reinterpret_cast<uint32_t*>(take(workspace, kHalves * kTurnedWords))),
        sides_{{group, take(workspace, SideRows::floats(group))}, {group, take(workspace, SideRows::floats(group))}},
        k_rows_(group.k, take(workspace, Rows<BFloat16>::floats(group.k))),
        v_rows_(group.v, take(workspace, Rows<BFloat16>::floats(group.v))),
        own_{
            {group, take(workspace, BackwardBuffers::floats(k_rows_.stride(), v_rows_.stride()))},
            {group, take(workspace, BackwardBuffers::floats(k_rows_.stride(), v_rows_.stride()))}} {
    const int64_t keys = padded(group.k.rows, kSide);
    sums_.dk = take(workspace, keys * depth_), sums_.dv = take(workspace, keys * width_);
    sums_.k_stride = depth_, sums_.v_stride = width_;
    if (part.keys) clear_keys(part, sums_);
  }

  // Up to 64 rows.
  void rows(const AttentionMember& member, int64_t row, int count) {
    const MaskBits mask{member.mask, group_.mask_words};
    const int halves = static_cast<int>(divided(count, kSide));
    for (int half = 0; half < halves; ++half) {
      own_[half].begin(member, row + half * kSide, at_most(count - half * kSide, kSide));
      sides_[half].run = 0, sides_[half].packed = false;
    }
    for (int64_t tile = part_.tile_begin; tile < part_.tile_end; ++tile) {
      if (tile % 2 == 0 && is_word_empty(mask, row, count, tile)) {
        ++tile;
        continue;
      }
      int64_t found = 0;
      const uint32_t *of_dy[kHalves], *of_q[kHalves];
      for (int half = 0; half < halves; ++half) {
        alignas(64) uint32_t bits[kSide] = {};
        int64_t elements = 0;
        for (int r = 0; r < own_[half].count(); ++r) {
          bits[r] = half_word(mask, own_[half].row() + r, tile * kSide);
          elements += __builtin_popcount(bits[r]);
        }
        if (elements == 0) continue;
        own_[half].fetch_rows();
        if (!is_dense(elements, half, tile)) {
          k_rows_.rows_of(tile);
          v_rows_.rows_of(tile);
          own_[half].list(bits, 0, own_[half].count(), tile);
          continue;
        }
        pack_rows(half);
        add_scores(tile, half, bits, found);
        of_dy[found] = sides_[half].dy_pairs, of_q[found] = sides_[half].q_pairs;
        ++found;
      }
      if (part_.keys && found != 0) {
        add_keys(weights_, of_dy, found, sums_.dv + tile * kSide * width_, width_);
        add_keys(of_scores_, of_q, found, sums_.dk + tile * kSide * depth_, depth_);
      }
      // both halves at once: so each key gets what is listed in the order of rows, whatever tile a part begins with
      if (own_[0].is_nearly_full() || (halves == 2 && own_[1].is_nearly_full())) add_listed(halves);
    }
    add_listed(halves);
    for (int half = 0; half < halves && part_.queries; ++half) store_queries(half);
  }

  void finish() { store_keys<BFloat16>(group_, part_, sums_); }

 private:
  static float* take(float*& workspace, int64_t floats) {
    float* const taken = workspace;
    workspace += floats;
    return taken;
  }
  static int64_t own_floats(const AttentionGroup& group) {
    const int64_t keys = padded(group.k.rows, kSide);
    return KeyTiles::floats(group.k, true) + KeyTiles::floats(group.v, false) + 2 * kSideTile +
           2 * kHalves * kTurnedWords + kHalves * SideRows::floats(group) +
           keys * (padded(group.q.cols, kSide) + padded(group.v.cols, kSide));
  }

  // Rows as tiles, once one of their tiles is computed as such.
  void pack_rows(int half) {
    SideRows& side = sides_[half];
    if (side.packed) return;
    side.packed = true;
    const BackwardRows<BFloat16>& own = own_[half];
    MaskedMatrix q = group_.q, gradient = group_.gradient;
    q.data = own.member().q, gradient.data = own.member().gradient;
    const int64_t begin = own.row(), end = begin + own.count();
    pack_columns(q, begin, end, side.q_columns);
    pack_columns(gradient, begin, end, side.dy_columns);
    if (part_.keys) {
      pack_pairs(q, begin, end, side.q_pairs);
      pack_pairs(gradient, begin, end, side.dy_pairs);
    }
    for (int64_t i = 0; i < depth_ * kSide; i += kLanes) Vec<float>::zero().store(side.dq + i);
  }

  void add_listed(int halves) {
    for (int half = 0; half < halves; ++half) own_[half].add_listed(k_rows_.rows(), v_rows_.rows(), part_, sums_);
  }

  bool is_dense(int64_t elements, int half, int64_t tile) {
    if (elements <= group_.few) return false;
    for (int sub = 0; sub < kSubtiles; ++sub)
      if (!own_[half].is_finite_at(sub)) return false;
    const bool finite = k_.prepare(tile);
    return v_.prepare(tile) && finite;
  }

  // Weights and gradients to scores of 32 keys and rows: at `place` of those that dk and dv are summed over, and at the
  // end of the run that dq is.
  void add_scores(int64_t tile, int half, const uint32_t* bits, int64_t place) {
    SideRows& side = sides_[half];
    const BackwardBuffers& of = own_[half].to;
    multiply_side(k_.rows_of(tile), depth_, side.q_columns, scores_, kSide);
    multiply_side(v_.rows_of(tile), width_, side.dy_columns, of_weights_, kSide);
    uint32_t* const weights = weights_ + place * kWeightWords;
    uint32_t* const of_scores = of_scores_ + place * kWeightWords;
    uint32_t* const turned = side.weights + side.run * kTurnedWords;
    const Vec<float> scale = Vec<float>::broadcast(group_.scale);
    for (int64_t j = 0; j < kLanes; ++j) {
      Vec<float> found[2][2], other[2][2];  // [key j or j + 16][rows]
#pragma GCC unroll 2
      for (int64_t rows = 0; rows < 2; ++rows) {
        const Vec<float> most = negated(Vec<float>::load(of.most + rows * kLanes));
        const Vec<float> factor = Vec<float>::load(of.factors + rows * kLanes);
        const Vec<float> delta = negated(Vec<float>::load(of.deltas + rows * kLanes));
        const __m512i kept = _mm512_load_si512(bits + rows * kLanes);
#pragma GCC unroll 2
        for (int64_t upper = 0; upper < 2; ++upper) {
          const int64_t key = j + upper * kLanes, at = key * kSide + rows * kLanes;
          const uint32_t lanes = _mm512_test_epi32_mask(kept, _mm512_set1_epi32(static_cast<int>(1u << key)));
          const Vec<float> weight =
              only(lanes, exp_only(lanes, fma(Vec<float>::load(scores_ + at), scale, most)) * factor);
          found[upper][rows] = weight;
          other[upper][rows] = only(lanes, weight * (Vec<float>::load(of_weights_ + at) + delta));
        }
      }
      if (part_.keys)
        for (int64_t upper = 0; upper < 2; ++upper) {
          const int64_t at = (j + upper * kLanes) * kLanes;
          store_weights(found[upper][0], found[upper][1], weights + at, weights + kHalves * kWeightWords + at);
          store_weights(other[upper][0], other[upper][1], of_scores + at, of_scores + kHalves * kWeightWords + at);
        }
      if (part_.queries)
        for (int64_t rows = 0; rows < 2; ++rows) {
          uint32_t* const to = turned + rows * kTileWords + j * kLanes;
          store_weights(other[0][rows], other[1][rows], to, to + kWeightWords);
        }
    }
    if (!part_.queries) return;
    side.turned[side.run++] = k_.turned_of(tile);
    if (side.run == kTurnedRun) add_queries(side);
  }

  void add_queries(SideRows& side) const {
    if (side.run == 0) return;
    for (int64_t e = 0; e < depth_; e += kSide) {
      const uint32_t* turned[kTurnedRun];
      for (int64_t t = 0; t < side.run; ++t) turned[t] = side.turned[t] + e / kLanes * kTileWords;
      add_turned(turned, side.weights, side.run, side.dq + e * kSide);
    }
    side.run = 0;
  }

  static void add_keys(
      const uint32_t* weights, const uint32_t* const* pairs, int64_t count, float* to, int64_t stride) {
    for (int64_t c = 0; c < stride; c += kSide) {
      const uint32_t* of_columns[kHalves];
      for (int64_t i = 0; i < count; ++i) of_columns[i] = pairs[i] + c / kLanes * kTileWords;
      add_side(weights, weights + kHalves * kWeightWords, of_columns, count, to + c, stride);
    }
  }

  void store_queries(int half) {
    BackwardRows<BFloat16>& own = own_[half];
    SideRows& side = sides_[half];
    add_queries(side);
    const int64_t stride = k_rows_.stride();
    for (int64_t e = 0; side.packed && e < stride; e += kLanes)
      for (int64_t first = 0; first < kSide; first += kLanes) {
        Vec<float> square[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) square[i] = Vec<float>::load(side.dq + (e + i) * kSide + first);
        transpose(square);
        for (int64_t r = 0; r < kLanes; ++r) {
          float* const place = own.to.dq + (first + r) * stride + e;
          (Vec<float>::load(place) + square[r]).store(place);
        }
      }
    scale_all(group_.scale, own.to.dq, kSide * stride);
    put_rows<BFloat16>(own.member().dq, group_.q.cols, own.to.dq, stride, own.row(), own.count());
  }

  const AttentionGroup& group_;
  const AttentionPart& part_;
  int64_t depth_, width_;  // columns of q and of v, padded
  KeyTiles k_, v_;
  float *scores_, *of_weights_;     // [32 keys][32 rows]
  uint32_t *weights_, *of_scores_;  // upper halves of each half of the rows, then what these leave
  SideRows sides_[kHalves];
  Rows<BFloat16> k_rows_, v_rows_;
  BackwardRows<BFloat16> own_[kHalves];
  KeySums sums_;
};

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
