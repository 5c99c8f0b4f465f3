// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A vector of elements of any dtype as floats; kLanes such vectors transposed or summed up; limits, and lanes as the
// bits of a mask. Compiled once per instruction set, as vec.h is.
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

inline Vec<float> negated(Vec<float> a) {
  return a * Vec<float>::broadcast(-1.0f);
}

// The lanes in which `a` is not at most, or not at least, `limit`: a NaN is neither.
inline uint32_t lanes_above(Vec<float> a, float limit) {
#if defined(SPARSEKERNELS_AVX512)
  return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(limit), _CMP_NLE_UQ);
#elif defined(SPARSEKERNELS_AVX2)
  const __m256 limits = _mm256_set1_ps(limit);
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, limits, _CMP_NLE_UQ));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, limits, _CMP_NLE_UQ));
  return static_cast<uint32_t>(lo | hi << 8);
#else
  uint32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result |= static_cast<uint32_t>(!(a.v[i] <= limit)) << i;
  return result;
#endif
}
inline uint32_t lanes_below(Vec<float> a, float limit) {
  return lanes_above(negated(a), -limit);
}

// The lanes whose bit is set; zero in the others, whatever they hold.
inline Vec<float> only(uint32_t lanes, Vec<float> a) {
#if defined(SPARSEKERNELS_AVX512)
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(lanes), a.v)};
#elif defined(SPARSEKERNELS_AVX2)
  const __m256i bits = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
  const auto mask = [&](uint32_t eight) {
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(eight)), bits);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bits));
  };
  return {_mm256_and_ps(mask(lanes), a.lo), _mm256_and_ps(mask(lanes >> 8), a.hi)};
#else
  for (int i = 0; i < kLanes; ++i)
    if (!(lanes >> i & 1)) a.v[i] = 0;
  return a;
#endif
}

// The larger of two, lane by lane; NaN where either is.
inline Vec<float> larger(Vec<float> a, Vec<float> b) {
#if defined(SPARSEKERNELS_AVX512)
  // max gives b where either is NaN
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
#else
  float one[kLanes], other[kLanes];
  a.store(one);
  b.store(other);
  for (int i = 0; i < kLanes; ++i) one[i] = one[i] > other[i] || one[i] != one[i] ? one[i] : other[i];
  return Vec<float>::load(one);
#endif
}

// A sum for each lane, in double: what is left is the rounding of what is added.
class WideSum {
 public:
#if defined(SPARSEKERNELS_AVX512)
  void add(Vec<float> a) {
    low_ = _mm512_add_pd(low_, _mm512_cvtps_pd(_mm512_castps512_ps256(a.v)));
    high_ = _mm512_add_pd(high_, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1)));
  }
  double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low_, high_)); }

 private:
  __m512d low_ = _mm512_setzero_pd(), high_ = _mm512_setzero_pd();
#else
  void add(Vec<float> a) {
    float lanes[kLanes];
    a.store(lanes);
    for (int i = 0; i < kLanes; ++i) lanes_[i] += lanes[i];
  }
  double total() const {
    double result = 0;
    for (const double lane : lanes_) result += lane;
    return result;
  }

 private:
  double lanes_[kLanes] = {};
#endif
};

#if defined(SPARSEKERNELS_AVX512)

// The sums over the lanes of 16 vectors.
inline Vec<float> sum_lanes(const float (&vectors)[kLanes][kLanes]) {
  __m512 quads[4];
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const __m512 a = _mm512_loadu_ps(vectors[4 * q]), b = _mm512_loadu_ps(vectors[4 * q + 1]);
    const __m512 c = _mm512_loadu_ps(vectors[4 * q + 2]), d = _mm512_loadu_ps(vectors[4 * q + 3]);
    const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    quads[q] =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  }
  const __m512 low =
      _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  const __m512 high =
      _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd))};
}

#else

inline Vec<float> sum_lanes(const float (&vectors)[kLanes][kLanes]) {
  float sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = sum(Vec<float>::load(vectors[i]));
  return Vec<float>::load(sums);
}

#endif

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

inline void widen_elements(const void* from, int64_t count, DType dtype, float* to) {
  if (dtype == DType::kBFloat16) return widen_all<BFloat16>(from, count, to);
  if (dtype == DType::kFloat16) return widen_all<Float16>(from, count, to);
  widen_all<float>(from, count, to);
}

inline void narrow_elements(const float* from, int64_t count, DType dtype, void* to, int64_t at) {
  if (dtype == DType::kBFloat16) return narrow_all<BFloat16>(from, count, to, at);
  if (dtype == DType::kFloat16) return narrow_all<Float16>(from, count, to, at);
  narrow_all<float>(from, count, to, at);
}

}  // namespace
}  // namespace sparsekernels
