// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// CUDA's half, for the emulated device. Conversions round to nearest, ties to even.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float value) {  // NOLINT: as CUDA's
    const _Float16 rounded = static_cast<_Float16>(value);
    std::memcpy(&bits, &rounded, 2);
  }
  explicit __half(double value) {
    const _Float16 rounded = static_cast<_Float16>(value);
    std::memcpy(&bits, &rounded, 2);
  }
  operator float() const {  // NOLINT: as CUDA's
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
  }
};
struct alignas(4) __half2 {
  __half x, y;
};
inline float __half2float(__half value) {
  return static_cast<float>(value);
}
inline __half __float2half_rn(float value) {
  return __half(value);
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline float2 __half22float2(__half2 pair) {
  return {static_cast<float>(pair.x), static_cast<float>(pair.y)};
}
