// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A vector of elements of any dtype as floats, and kLanes such vectors transposed. Compiled once per
// instruction set, as vec.h is.
#pragma once

#include "base/dtype.h"
#include "base/lanes.h"
#include "base/vec.h"

namespace sparsekernels {
namespace {

// A vector of elements of T as floats. A masked access touches only the elements whose bit is set.
template <class T>
struct Vec16 {
  static Vec<float> load(const T* from) {
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = widen(from[i]);
    return Vec<float>::load(lanes);
  }
  static Vec<float> load(const T* from, uint32_t mask) {
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = mask >> i & 1 ? widen(from[i]) : 0.0f;
    return Vec<float>::load(lanes);
  }
  static void store(Vec<float> value, T* to) {
    float lanes[kLanes];
    value.store(lanes);
    for (int i = 0; i < kLanes; ++i) narrow(lanes[i], to[i]);
  }
  static void store(Vec<float> value, T* to, uint32_t mask) {
    float lanes[kLanes];
    value.store(lanes);
    for (int i = 0; i < kLanes; ++i)
      if (mask >> i & 1) narrow(lanes[i], to[i]);
  }
};

#if defined(SPARSEKERNELS_AVX512)

template <>
struct Vec16<float> {
  static Vec<float> load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Vec<float> load(const float* from, uint32_t mask) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from)};
  }
  static void store(Vec<float> value, float* to) { _mm512_storeu_ps(to, value.v); }
  static void store(Vec<float> value, float* to, uint32_t mask) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), value.v);
  }
};

template <>
struct Vec16<BFloat16> {
  static Vec<float> widened(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static __m256i narrowed(Vec<float> value) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(VecPair<BFloat16>::rounded(value.v), 16));
  }
  static Vec<float> load(const BFloat16* from) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Vec<float> load(const BFloat16* from, uint32_t mask) {
    return widened(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from));
  }
  static void store(Vec<float> value, BFloat16* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(value));
  }
  static void store(Vec<float> value, BFloat16* to, uint32_t mask) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(mask), narrowed(value));
  }
};

template <>
struct Vec16<Float16> {
  static __m256i narrowed(Vec<float> value) {
    return _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Vec<float> load(const Float16* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static Vec<float> load(const Float16* from, uint32_t mask) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from))};
  }
  static void store(Vec<float> value, Float16* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(value));
  }
  static void store(Vec<float> value, Float16* to, uint32_t mask) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(mask), narrowed(value));
  }
};

inline void transpose(Vec<float> (&rows)[kLanes]) {
  __m512 quads[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i].v, rows[i + 1].v));
    const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i].v, rows[i + 1].v));
    const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2].v, rows[i + 3].v));
    const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2].v, rows[i + 3].v));
    quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
    quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
    quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
    quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);
    const __m512 e = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
    rows[c].v = _mm512_shuffle_f32x4(a, b, 0x88);
    rows[8 + c].v = _mm512_shuffle_f32x4(a, b, 0xdd);
    rows[4 + c].v = _mm512_shuffle_f32x4(d, e, 0x88);
    rows[12 + c].v = _mm512_shuffle_f32x4(d, e, 0xdd);
  }
}

#elif defined(SPARSEKERNELS_AVX2)

// Eight rows of eight, to columns.
inline void transpose_eight(__m256 (&rows)[8]) {
  __m256 pairs[8], quads[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2f128_ps(quads[c], quads[c + 4], 0x20);
    rows[c + 4] = _mm256_permute2f128_ps(quads[c], quads[c + 4], 0x31);
  }
}

inline void transpose(Vec<float> (&rows)[kLanes]) {
  __m256 quadrants[2][2][8];  // [upper or lower rows][left or right columns]
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 8; ++i) {
      quadrants[half][0][i] = rows[half * 8 + i].lo;
      quadrants[half][1][i] = rows[half * 8 + i].hi;
    }
    transpose_eight(quadrants[half][0]);
    transpose_eight(quadrants[half][1]);
  }
  for (int side = 0; side < 2; ++side)
    for (int i = 0; i < 8; ++i) rows[side * 8 + i] = {quadrants[0][side][i], quadrants[1][side][i]};
}

#else

inline void transpose(Vec<float> (&rows)[kLanes]) {
  float square[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i].store(square[i]);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = square[i][j];
      square[i][j] = square[j][i];
      square[j][i] = kept;
    }
  for (int i = 0; i < kLanes; ++i) rows[i] = Vec<float>::load(square[i]);
}

#endif

// At least low, at most high, where there is such a limit. NaN stays NaN.
struct Limits {
  float low, high;
  bool has_low, has_high;
};

inline Vec<float> limited(const Limits& limits, Vec<float> value) {
#if defined(SPARSEKERNELS_AVX512)
  // of two, of which one is NaN, these give the second
  if (limits.has_low) value.v = _mm512_max_ps(_mm512_set1_ps(limits.low), value.v);
  if (limits.has_high) value.v = _mm512_min_ps(_mm512_set1_ps(limits.high), value.v);
  return value;
#else
  float lanes[kLanes];
  value.store(lanes);
  if (limits.has_low)
    for (int i = 0; i < kLanes; ++i) lanes[i] = lanes[i] < limits.low ? limits.low : lanes[i];
  if (limits.has_high)
    for (int i = 0; i < kLanes; ++i) lanes[i] = lanes[i] > limits.high ? limits.high : lanes[i];
  return Vec<float>::load(lanes);
#endif
}

// Elements of any dtype but float64 as floats, and back.

template <class T>
void widen_all(const void* from, int64_t count, float* to) {
  const T* const elements = static_cast<const T*>(from);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec16<T>::load(elements + i).store(to + i);
  for (; i < count; ++i) to[i] = widen(elements[i]);
}

template <class T>
void narrow_all(const float* from, int64_t count, void* to, int64_t at) {
  T* const elements = static_cast<T*>(to) + at;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec16<T>::store(Vec<float>::load(from + i), elements + i);
  for (; i < count; ++i) narrow(from[i], elements[i]);
}

void widen_elements(const void* from, int64_t count, DType dtype, float* to) {
  if (dtype == DType::kBFloat16) return widen_all<BFloat16>(from, count, to);
  if (dtype == DType::kFloat16) return widen_all<Float16>(from, count, to);
  widen_all<float>(from, count, to);
}

void narrow_elements(const float* from, int64_t count, DType dtype, void* to, int64_t at) {
  if (dtype == DType::kBFloat16) return narrow_all<BFloat16>(from, count, to, at);
  if (dtype == DType::kFloat16) return narrow_all<Float16>(from, count, to, at);
  narrow_all<float>(from, count, to, at);
}

}  // namespace
}  // namespace sparsekernels
