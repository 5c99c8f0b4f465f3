// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Brings parts of tensors up to L2, a few cache lines at a time, while something else is computed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/lanes.h"
#include "base/tensor.h"

namespace sparsekernels {

class PrefetchCursor {
 public:
  PrefetchCursor() = default;
  // [begin, end) of a tensor in each dimension. Nothing, where that is no set of long runs of neighboring elements.
  PrefetchCursor(const Activation& tensor, const int64_t (&begin)[4], const int64_t (&end)[4]) {
    const int64_t element = element_size(tensor.dtype);
    const char* start = static_cast<const char*>(tensor.data);
    int order[4] = {0, 1, 2, 3};  // the dimension with the least stride last
    std::sort(order, order + 4, [&](int a, int b) { return tensor.stride[a] > tensor.stride[b]; });
    run_ = element;
    int kept = 3;
    for (int i = 3; i >= 0; --i) {
      const int d = order[i];
      const int64_t count = end[d] - begin[d], stride = tensor.stride[d] * element;
      if (count <= 0) return;
      start += begin[d] * stride;
      if (count == 1) continue;
      if (kept == 3 && stride == run_) {
        run_ *= count;
        continue;
      }
      if (kept == 0) return;
      --kept;
      counts_[kept] = count;
      strides_[kept] = stride;
    }
    constexpr int64_t kLongRun = 128;
    if (run_ < kLongRun) return;
    for (const char*& place : places_) place = start;
    next_ = start;
    left_ = run_lines();
    runs_ = counts_[0] * counts_[1] * counts_[2];
  }

  // Cache lines that are left.
  int64_t lines() const { return runs_ * run_lines(); }

  // The next `count` of them.
  void prefetch(int64_t count) {
    for (; count > 0 && runs_ > 0; --count) {
      __builtin_prefetch(next_, 0, 2);
      next_ += kLineBytes;
      if (--left_ == 0) next_run();
    }
  }

 private:
  int64_t run_lines() const { return (run_ + kLineBytes - 1) / kLineBytes; }
  void next_run() {
    left_ = run_lines();
    --runs_;
    int d = 2;
    while (d > 0 && ++at_[d] >= counts_[d]) at_[d--] = 0;
    places_[d] += strides_[d];
    for (int inner = d + 1; inner < 3; ++inner) places_[inner] = places_[d];
    next_ = places_[2];
  }

  const char* next_ = nullptr;
  const char* places_[3] = {};  // where each dimension's current run begins
  int64_t run_ = 0, left_ = 0, runs_ = 0;
  int64_t counts_[3] = {1, 1, 1}, strides_[3] = {}, at_[3] = {};
};

}  // namespace sparsekernels
