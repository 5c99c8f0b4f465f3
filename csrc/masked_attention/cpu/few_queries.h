// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Attention forward of few queries: keys and values are read where they lie, once for all queries that share them.
// Compiled once per instruction set; docs/masked_products.md derives it.
//
// The keys of a part are taken in chunks. In a chunk, rows whose masks are the same there are computed together, else
// one by one, over a list of the keys that they keep; no other key is read. In float32 and float16 what a row comes to
// does not depend on the rows beside it; on tiles of AMX the masks of a group's other heads may change its last bits.
#pragma once

#include "masked_attention/cpu/forward.h"

namespace sparsekernels {
namespace {
namespace attention {

constexpr int64_t kChunkKeys = 256, kChunkWords = kChunkKeys / 64;
#if defined(SPARSEKERNELS_AVX512)
constexpr int kFewSums = 16;  // vectors of sums in registers
#else
constexpr int kFewSums = 4;
#endif
constexpr int kMostTogether = kFewSums / 4 < 2 ? 2 : 4;  // rows
constexpr int64_t kBytesAhead = 12288;                   // that are on their way from memory

// Of few queries: row `at` of a group.
struct RowPlace {
  const AttentionMember* member;
  int64_t row;
};
inline RowPlace place_of(const AttentionGroup& group, int64_t at) {
  return {group.members + at % group.count, at / group.count};
}

inline int64_t partial_stride(const AttentionGroup& group) {
  return kPartialHead + padded(group.v.cols, kKeys);
}

// How many rows of a matrix are fetched ahead of those that are computed.
template <class T>
inline int64_t rows_ahead(const MaskedMatrix& m) {
  const int64_t rows = kBytesAhead / ((m.cols + 1) * static_cast<int64_t>(sizeof(T)));
  return rows < 16 ? 16 : rows > 64 ? 64 : rows / 16 * 16;
}

// Brings rows of a matrix to L2.
template <class T>
inline void prefetch_rows(const MaskedMatrix& m, const int32_t* keys, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; ++i) {
    const T* const row = static_cast<const T*>(m.data) + keys[i] * m.row_stride;
    for (int64_t c = 0; c < m.cols; c += kLine) __builtin_prefetch(row + c, 0, 2);
  }
}

// to[r * kChunkKeys + i] = the dot product of row r of q, which lies as pairs of vectors, with key keys[i].
// Rows of v are what is needed next.
template <class T, int R>
inline void few_scores(
    const float* q, const MaskedMatrix& k, const MaskedMatrix& v, const int32_t* keys, int64_t count, float* to) {
  constexpr int kTogether = kFewSums / R;
  const int64_t stride = padded(k.cols, kPairLanes), whole = k.cols / kPairLanes * kPairLanes;
  const int tail = static_cast<int>(k.cols - whole);
  const int64_t rows_before = rows_ahead<T>(k);
  for (int64_t i = 0; i < count; i += kTogether) {
    const int some = at_most(count - i, kTogether);
    const T* rows[kTogether];
    for (int j = 0; j < kTogether; ++j)
      rows[j] = static_cast<const T*>(k.data) + keys[i + (j < some ? j : some - 1)] * k.row_stride;
    const int64_t ahead = i + rows_before;
    if (ahead < count) {
      prefetch_rows<T>(k, keys + ahead, at_most(count - ahead, kTogether));
    } else {
      const int64_t of_v = ahead - count;
      if (of_v < count) prefetch_rows<T>(v, keys + of_v, at_most(count - of_v, kTogether));
    }
    Vec<float> sums[R][kTogether];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < kTogether; ++j) sums[r][j] = Vec<float>::zero();
    for (int64_t c = 0; c < whole; c += kPairLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kTogether; ++j) {
        const VecPair<T> key = VecPair<T>::load(rows[j] + c);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sums[r][j] = fma(key.a, Vec<float>::load(q + r * stride + c), sums[r][j]);
          sums[r][j] = fma(key.b, Vec<float>::load(q + r * stride + c + kLanes), sums[r][j]);
        }
      }
    }
    if (tail != 0) {
#pragma GCC unroll 16
      for (int j = 0; j < kTogether; ++j) {
        const VecPair<T> key = VecPair<T>::load_some(rows[j] + whole, tail);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sums[r][j] = fma(key.a, Vec<float>::load(q + r * stride + whole), sums[r][j]);
          sums[r][j] = fma(key.b, Vec<float>::load(q + r * stride + whole + kLanes), sums[r][j]);
        }
      }
    }
    float found[kLanes];
#if defined(SPARSEKERNELS_AVX512)
    float all[kLanes][kLanes];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < kTogether; ++j) sums[r][j].store(all[r * kTogether + j]);
    sum_lanes(all).store(found);
#else
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kTogether; ++j) found[r * kTogether + j] = sum(sums[r][j]);
#endif
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < some; ++j) to[r * kChunkKeys + i + j] = found[r * kTogether + j];
  }
}

// to[r][...] += sum over i of weights[r * kChunkKeys + i] * row keys[i] of v, P pairs of vectors from a column on.
template <class T, int R, int P>
inline void few_values(
    const float* weights, const MaskedMatrix& v, int64_t col, const int32_t* keys, int64_t count, float* to,
    int64_t stride) {
  const T* const from = static_cast<const T*>(v.data) + col;
  const int some = P == 1 ? at_most(v.cols - col, kPairLanes) : kPairLanes;
  Vec<float> sums[R][2 * P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < 2 * P; ++p) sums[r][p] = Vec<float>::zero();
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t rows_before = rows_ahead<T>(v);
  for (int64_t i = 0; i < count; ++i) {
    const T* const row = from + keys[i] * v.row_stride;
    if (i + rows_before < count) {
      const T* const next = from + keys[i + rows_before] * v.row_stride;
#pragma GCC unroll 8
      for (int64_t c = 0; c < P * kPairLanes; c += kLine) __builtin_prefetch(next + c, 0, 2);
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const VecPair<T> value = some == kPairLanes ? VecPair<T>::load(row + p * kPairLanes)
                                                  : VecPair<T>::load_some(row + p * kPairLanes, some);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<float> weight = Vec<float>::broadcast(weights[r * kChunkKeys + i]);
        sums[r][2 * p] = fma(weight, value.a, sums[r][2 * p]);
        sums[r][2 * p + 1] = fma(weight, value.b, sums[r][2 * p + 1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < 2 * P; ++p) {
      float* const place = to + r * stride + col + p * kLanes;
      (Vec<float>::load(place) + sums[r][p]).store(place);
    }
}

template <class T>
class FewQueries {
 public:
  static int64_t floats(const AttentionGroup& group) {
    return kFewRows * (padded(group.k.cols, kPairLanes) + padded(group.v.cols, kPairLanes)) +
           kMostTogether * kChunkKeys + kChunkKeys;
  }
  FewQueries(const AttentionGroup& group, const FewPart& part, float* workspace)
      : group_(group),
        part_(part),
        q_stride_(padded(group.k.cols, kPairLanes)),
        v_stride_(padded(group.v.cols, kPairLanes)),
        q_(workspace),
        sums_(q_ + kFewRows * q_stride_),
        weights_(sums_ + kFewRows * v_stride_),
        keys_(reinterpret_cast<int32_t*>(weights_ + kMostTogether * kChunkKeys)) {}

  void run() {
    const int64_t rows = part_.row_end - part_.row_begin;
    for (int64_t i = 0; i < rows * v_stride_; i += kLanes) Vec<float>::zero().store(sums_ + i);
    for (int64_t r = 0; r < rows; ++r) {
      most_[r] = -infinity(), total_[r] = 0.0f, any_[r] = false;
      fetch_query(r);
    }
    for (int64_t key = part_.key_begin; key < part_.key_end; key += kChunkKeys)
      for (int64_t row = 0; row < rows; row += kMostTogether) add_chunk(key, row, at_most(rows - row, kMostTogether));
    for (int64_t r = 0; r < rows; ++r) store_partial(r);
  }

 private:
  const uint64_t* words_of(int64_t r, int64_t key) const {
    const RowPlace place = place_of(group_, part_.row_begin + r);
    return place.member->mask + place.row * group_.mask_words + key / 64;
  }

  void fetch_query(int64_t r) {
    const RowPlace place = place_of(group_, part_.row_begin + r);
    const MaskedMatrix& q = group_.q;
    const T* const from = static_cast<const T*>(place.member->q) + place.row * q.row_stride;
    for (int64_t c = 0; c < q.cols; c += kPairLanes) {
      const int some = at_most(q.cols - c, kPairLanes);
      T numbers[kPairLanes] = {};
      for (int i = 0; i < some; ++i) numbers[i] = from[(c + i) * q.col_stride];
      const VecPair<T> pair = VecPair<T>::load(numbers);
      pair.a.store(q_ + r * q_stride_ + c);
      pair.b.store(q_ + r * q_stride_ + c + kLanes);
    }
  }

  // Rows from `row` on: together, where all keep the same keys.
  void add_chunk(int64_t key, int64_t row, int count) {
    const int64_t words = at_most(divided(part_.key_end - key, 64), kChunkWords);
    const uint64_t* const first = words_of(row, key);
    bool alike = true;
    for (int r = 1; r < count; ++r) {
      const uint64_t* const other = words_of(row + r, key);
      for (int64_t w = 0; w < words; ++w) alike = alike && first[w] == other[w];
    }
    if (!alike) {
      for (int r = 0; r < count; ++r) add_rows(list(words_of(row + r, key), words, key), row + r, 1);
      return;
    }
    const int64_t kept = list(first, words, key);
    if (count == 4) return add_rows(kept, row, 4);
    for (int r = 0; r < count; r += 2) add_rows(kept, row + r, at_most(count - r, 2));
  }

  // Lists the keys that are kept; returns how many.
  int64_t list(const uint64_t* words, int64_t count, int64_t key) {
    int64_t kept = 0;
    for (int64_t w = 0; w < count; ++w) {
      const int32_t first = static_cast<int32_t>(key + w * 64);
      if (words[w] == ~uint64_t{0}) {
        for (int32_t i = 0; i < 64; ++i) keys_[kept + i] = first + i;
        kept += 64;
        continue;
      }
      for (uint64_t left = words[w]; left != 0; left &= left - 1) keys_[kept++] = first + __builtin_ctzll(left);
    }
    return kept;
  }

  void add_rows(int64_t kept, int64_t row, int count) {
    if (kept == 0) return;
    if (count == 1) return add_list<1>(kept, row);
    if (count == 2) return add_list<2>(kept, row);
    add_list<kMostTogether>(kept, row);
  }

  template <int R>
  void add_list(int64_t kept, int64_t row) {
    few_scores<T, R>(q_ + row * q_stride_, group_.k, group_.v, keys_, kept, weights_);
    for (int r = 0; r < R; ++r) weigh(kept, row + r, weights_ + r * kChunkKeys);
    constexpr int kPairs = kFewSums / 2 / R < 1 ? 1 : kFewSums / 2 / R > 4 ? 4 : kFewSums / 2 / R;
    const int64_t cols = group_.v.cols;
    float* const to = sums_ + row * v_stride_;
    int64_t c = 0;
    for (; c + kPairs * kPairLanes <= cols; c += kPairs * kPairLanes)
      few_values<T, R, kPairs>(weights_, group_.v, c, keys_, kept, to, v_stride_);
    for (; c < cols; c += kPairLanes) few_values<T, R, 1>(weights_, group_.v, c, keys_, kept, to, v_stride_);
  }

  // Scores to weights, of one row.
  void weigh(int64_t kept, int64_t row, float* weights) {
    const Vec<float> scale = Vec<float>::broadcast(group_.scale), least = Vec<float>::broadcast(-infinity());
    Vec<float> most = least;
    for (int64_t i = 0; i < kept; i += kLanes) {
      const uint32_t there = (1u << at_most(kept - i, kLanes)) - 1;
      const Vec<float> scaled = Vec<float>::load(weights + i) * scale;
      scaled.store(weights + i);
      most = larger_of(only_or(there, scaled, least), most);
    }
    const float above = largest(most), before = most_[row], now = above > before ? above : before;
    const float taken = now == -infinity() ? 0.0f : now;
    if (now != before && any_[row]) {
      const float factor = exp_of(before - taken);
      const Vec<float> all = Vec<float>::broadcast(factor);
      total_[row] *= factor;
      float* const sums = sums_ + row * v_stride_;
      for (int64_t i = 0; i < v_stride_; i += kLanes) (Vec<float>::load(sums + i) * all).store(sums + i);
    }
    most_[row] = now;
    any_[row] = true;
    const Vec<float> negative = Vec<float>::broadcast(-taken);
    Vec<float> totals = Vec<float>::zero();
    for (int64_t i = 0; i < kept; i += kLanes) {
      const uint32_t there = (1u << at_most(kept - i, kLanes)) - 1;
      const Vec<float> weight = exp_only(there, Vec<float>::load(weights + i) + negative);
      weight.store(weights + i);
      totals = totals + weight;
    }
    total_[row] += sum(totals);
  }

  void store_partial(int64_t r) {
    float* const to = part_.partial + r * partial_stride(group_);
    to[0] = most_[r], to[1] = total_[r], to[2] = any_[r] ? 1.0f : 0.0f;
    for (int64_t i = 0; i < v_stride_; i += kPairLanes)
      for (int e = 0; e < kPairLanes; ++e) to[kPartialHead + i + e] = sums_[r * v_stride_ + i + VecPair<T>::lane_of(e)];
  }

  const AttentionGroup& group_;
  const FewPart& part_;
  int64_t q_stride_, v_stride_;
  float *q_, *sums_, *weights_;
  int32_t* keys_;
  float most_[kFewRows], total_[kFewRows];
  bool any_[kFewRows];
};

inline int64_t few_floats(const AttentionGroup& group) {
  return FewQueries<float>::floats(group);
}

template <class T>
void few_part(const AttentionGroup& group, const FewPart& part, float* workspace) {
  FewQueries<T>(group, part, workspace).run();
}

template <class T>
void merge_rows(
    const AttentionGroup& group, int64_t row_begin, int64_t row_end, float* partials, int64_t parts, int64_t apart) {
  const int64_t stride = partial_stride(group), cols = stride - kPartialHead;
  for (int64_t at = row_begin; at < row_end; ++at) {
    float* const first = partials + (at - row_begin) * stride;
    float most = -infinity(), total = 0.0f;
    bool any = false;
    for (int64_t p = 0; p < parts; ++p) {
      const float* const one = first + p * apart;
      most = one[2] != 0.0f && one[0] > most ? one[0] : most;
      any = any || one[2] != 0.0f;
    }
    const float taken = most == -infinity() ? 0.0f : most;
    bool started = false;
    for (int64_t p = 0; p < parts; ++p) {
      const float* const one = first + p * apart;
      if (one[2] == 0.0f) continue;
      const float factor = exp_of(one[0] - taken);
      total += one[1] * factor;
      const Vec<float> all = Vec<float>::broadcast(factor);
      float* const sums = first + kPartialHead;
      for (int64_t i = 0; i < cols; i += kLanes) {
        const Vec<float> so_far = started ? Vec<float>::load(sums + i) : Vec<float>::zero();
        fma(Vec<float>::load(one + kPartialHead + i), all, so_far).store(sums + i);
      }
      started = true;
    }
    const RowPlace place = place_of(group, at);
    store_rows<T>(group, *place.member, place.row, 1, first + kPartialHead, cols, &most, &total, &any);
  }
}

}  // namespace attention
}  // namespace
}  // namespace sparsekernels
