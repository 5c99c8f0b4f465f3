// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What reading and writing tensors have in common: lanes, strides, interleaved images. Compiled once per instruction
// set, as vec.h is.
#pragma once

#include "base/vec16.h"

namespace sparsekernels::jit {
namespace {

#if defined(SPARSEKERNELS_AVX512)

// The bits of `count` lanes.
inline uint32_t first_lanes(int64_t count) {
  return count <= 0 ? 0 : count >= kLanes ? 0xffffu : (1u << count) - 1;
}

// Lanes i of 16 where 0 <= first + i * step < size.
inline uint32_t lanes_within(int64_t first, int64_t step, int64_t size) {
  const int64_t below = first >= 0 ? 0 : (-first + step - 1) / step;
  const int64_t until = first >= size ? 0 : (size - first + step - 1) / step;
  return first_lanes(until) & ~first_lanes(below);
}

inline __m512i indices_from(int first, int step) {
  const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_mullo_epi32(count, _mm512_set1_epi32(step)));
}

// The lower eight bits, each followed by a zero.
inline uint32_t spread_bits(uint32_t bits) {
  bits &= 0xff;
  bits = (bits | bits << 4) & 0x0f0f;
  bits = (bits | bits << 2) & 0x3333;
  return (bits | bits << 1) & 0x5555;
}

// Elements `stride` apart, where the mask has a bit; no others are touched.
template <class T>
inline Vec<float> load_strided(const T* from, int64_t stride, uint32_t mask) {
  if (stride == 1) return Vec16<T>::load(from, mask);
  if (stride == 2) {
    const Vec<float> low = Vec16<T>::load(from, spread_bits(mask));
    const Vec<float> high = Vec16<T>::load(from + kLanes, spread_bits(mask >> 8));
    return {_mm512_permutex2var_ps(low.v, indices_from(0, 2), high.v)};
  }
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = mask >> i & 1 ? widen(from[i * stride]) : 0.0f;
  return Vec<float>::load(lanes);
}

template <class T>
inline void store_strided(Vec<float> value, T* to, int64_t stride, uint32_t mask) {
  if (stride == 1) return Vec16<T>::store(value, to, mask);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (stride < int64_t{1} << 26) {
      _mm512_mask_i32scatter_ps(
          to, static_cast<__mmask16>(mask), indices_from(0, static_cast<int>(stride)), value.v, 4);
      return;
    }
  }
  float lanes[kLanes];
  value.store(lanes);
  for (int i = 0; i < kLanes; ++i)
    if (mask >> i & 1) narrow(lanes[i], to[i * stride]);
}

// vectors[i] holds 16 columns of image i; then their elements in the order column, image. Or back.
template <int kImages>
inline void interleave(Vec<float> (&vectors)[kImages]) {
  if constexpr (kImages == kLanes) {
    transpose(vectors);
  } else if constexpr (kImages > 1) {
    constexpr int kHalf = kImages / 2;
    Vec<float> even[kHalf], odd[kHalf];
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      even[i] = vectors[2 * i];
      odd[i] = vectors[2 * i + 1];
    }
    interleave<kHalf>(even);
    interleave<kHalf>(odd);
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      vectors[2 * i].v = _mm512_permutex2var_ps(even[i].v, low, odd[i].v);
      vectors[2 * i + 1].v = _mm512_permutex2var_ps(even[i].v, high, odd[i].v);
    }
  }
}

template <int kImages>
inline void separate(Vec<float> (&vectors)[kImages]) {
  if constexpr (kImages == kLanes) {
    transpose(vectors);
  } else if constexpr (kImages > 1) {
    constexpr int kHalf = kImages / 2;
    Vec<float> even[kHalf], odd[kHalf];
    const __m512i evens = indices_from(0, 2), odds = indices_from(1, 2);
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      even[i].v = _mm512_permutex2var_ps(vectors[2 * i].v, evens, vectors[2 * i + 1].v);
      odd[i].v = _mm512_permutex2var_ps(vectors[2 * i].v, odds, vectors[2 * i + 1].v);
    }
    separate<kHalf>(even);
    separate<kHalf>(odd);
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      vectors[2 * i] = even[i];
      vectors[2 * i + 1] = odd[i];
    }
  }
}

// The masks of a row's columns, of 16 at a time.
class ColumnMasks {
 public:
  ColumnMasks() = default;
  ColumnMasks(int64_t first, int64_t step, int64_t size, int64_t count) : first_(first), step_(step), size_(size) {
    for (int64_t i = 0; i < kHeld && i * kLanes < count; ++i)
      held_[i] =
          static_cast<uint16_t>(lanes_within(first + i * kLanes * step, step, size) & first_lanes(count - i * kLanes));
    count_ = count;
  }
  uint32_t at(int64_t x) const {
    if (x < kHeld * kLanes) return held_[x / kLanes];
    return lanes_within(first_ + x * step_, step_, size_) & first_lanes(count_ - x);
  }

 private:
  static constexpr int64_t kHeld = 16;
  int64_t first_, step_, size_, count_;
  uint16_t held_[kHeld];
};

#endif

}  // namespace
}  // namespace sparsekernels::jit
