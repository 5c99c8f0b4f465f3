// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Iterating over rows: where each tensor's current row lies, a row in pairs of vectors, and the row after it prefetched
// in time.
#pragma once

#include "base/vec.h"
#include "rms_norm/call.h"

namespace sparsekernels {
namespace {

// Where the current row of each tensor of a call lies.
template <int kTensors>
class RowIterator {
 public:
  RowIterator(const RowSpace& space, const RowTensor* const* tensors, int64_t row) : space_(space) {
    for (int t = 0; t < kTensors; ++t) {
      tensors_[t] = tensors[t];
      offset_[t] = 0;
    }
    for (int d = space.ndim - 1; d >= 0; --d) {
      index_[d] = row % space.sizes[d];
      row /= space.sizes[d];
      for (int t = 0; t < kTensors; ++t) offset_[t] += index_[d] * tensors[t]->strides[d];
    }
  }

  int64_t offset(int tensor) const { return offset_[tensor]; }

  void next() {
    for (int d = space_.ndim - 1; d >= 0; --d) {
      for (int t = 0; t < kTensors; ++t) offset_[t] += tensors_[t]->strides[d];
      if (++index_[d] < space_.sizes[d]) return;
      index_[d] = 0;
      for (int t = 0; t < kTensors; ++t) offset_[t] -= space_.sizes[d] * tensors_[t]->strides[d];
    }
  }

 private:
  const RowSpace& space_;
  const RowTensor* tensors_[kTensors];
  int64_t offset_[kTensors];
  int64_t index_[kMaxLeadingDims] = {};
};

template <class T>
const T* row_of(const RowTensor& tensor, int64_t offset) {
  return static_cast<const T*>(tensor.data) + offset;
}
template <class T>
T* mutable_row_of(const RowTensor& tensor, int64_t offset) {
  return static_cast<T*>(tensor.data) + offset;
}

// Calls body(offset, count) for the pairs of vectors of a row; count is kPairLanes for all but a last one that is not
// full.
template <class Full, class Some>
inline void for_each_pair(int64_t cols, Full full, Some some) {
  int64_t j = 0;
  for (; j + kPairLanes <= cols; j += kPairLanes) full(j);
  if (j < cols) some(j, static_cast<int>(cols - j));
}

// Prefetching. The processor's own prefetcher stops at the end of each 4 KB page, and rows are about that long: a
// kernel that leaves it all to the hardware takes 1.2 times as long as a copy, one that asks for the next row, and for
// the place where its result will go, 0.75 times (4096x2048, float32 and bfloat16, 2 cores of a Xeon with AVX-512 and
// AMX).

// How many elements ahead the same column of the row to prefetch lies: for each tensor one distance.
struct PrefetchDistance {
  int64_t read, written;
};

// At least 8 KB of rows ahead. Exact while rows are one stride apart; elsewhere it prefetches lines that are not used.
template <class T>
int64_t prefetch_distance(const RowSpace& space, const RowTensor& tensor) {
  const int64_t bytes = space.cols * static_cast<int64_t>(sizeof(T));
  return tensor.strides[space.ndim - 1] * (bytes >= 8192 ? 1 : 8192 / bytes);
}

// Whether a call is worth it: what it touches is more than half of a usual L2 cache.
template <class T>
bool out_of_cache(const RowSpace& space) {
  return space.rows * space.cols * static_cast<int64_t>(sizeof(T)) > (1 << 18);
}

template <class T>
inline void prefetch_pair(const T* pair) {
  const char* line = reinterpret_cast<const char*>(pair);
  for (int i = 0; i < static_cast<int>(kPairLanes * sizeof(T) / kLineBytes); ++i)
    __builtin_prefetch(line + kLineBytes * i, 0, 3);
}
template <class T>
inline void prefetch_pair(T* pair) {
  const char* line = reinterpret_cast<const char*>(pair);
  for (int i = 0; i < static_cast<int>(kPairLanes * sizeof(T) / kLineBytes); ++i)
    __builtin_prefetch(line + kLineBytes * i, 1, 3);
}

}  // namespace
}  // namespace sparsekernels
