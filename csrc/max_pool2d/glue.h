// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the bindings that pool share: the window as Python gives it.
#pragma once

#include "base/torch_glue.h"
#include "max_pool2d/call.h"

namespace sparsekernels {

// Of kh, kw, sh, sw, ph, pw; the rest as it is by default.
inline MaxPool2d pooling_of(const std::vector<int64_t>& window) {
  require(window.size() == 6, "max_pool2d: expected window of 6 numbers", window);
  MaxPool2d result;
  for (size_t d = 0; d < 2; ++d) {
    constexpr int64_t kMost = 1 << 20;
    result.window[d] = window[d];
    result.stride[d] = window[2 + d];
    result.padding[d] = window[4 + d];
    require(
        result.window[d] > 0 && result.window[d] < kMost && result.stride[d] > 0 && result.stride[d] < kMost &&
            result.padding[d] >= 0 && 2 * result.padding[d] <= result.window[d],
        "max_pool2d: expected window of positive sizes and strides, with padding of at most half the size", window);
  }
  return result;
}

}  // namespace sparsekernels
