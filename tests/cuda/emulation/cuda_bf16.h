// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// CUDA's bfloat16, for the emulated device. Conversions round to nearest, ties to even.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {  // NOLINT: as CUDA's
    const uint32_t word = __float_as_uint(value);
    bits = value != value ? 0x7fff : static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  // By way of float, rounded to odd, so that it is rounded once.
  explicit __nv_bfloat16(double value) {
    float narrow = static_cast<float>(value);
    if (static_cast<double>(narrow) != value && value == value) {
      uint32_t word = __float_as_uint(narrow);
      const bool away = std::abs(static_cast<double>(narrow)) > std::abs(value);
      if ((word & 1) == 0) word = away ? word - 1 : word + 1;
      narrow = __uint_as_float(word);
    }
    *this = __nv_bfloat16(narrow);
  }
  operator float() const { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }  // NOLINT: as CUDA's
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  return static_cast<float>(value);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return __nv_bfloat16(value);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
