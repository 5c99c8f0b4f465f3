// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// 16 lanes of float, and how each dtype is read into them and written from them. Compiled once per instruction
// set: the file that includes this defines SPARSEKERNELS_AVX512, SPARSEKERNELS_AVX2 or neither. Everything is in an
// anonymous namespace and no standard template is used, so that no code made for one instruction set can be picked by
// the linker for another.
//
// Tensors are read in pairs of vectors, 32 elements. Which element sits in which lane is up to the dtype: float
// keeps its order, bfloat16 puts even elements in the first vector and odd ones in the second, because then widening is
// a shift and a mask and narrowing needs no shuffle. `lane_of` tells the place of an element in its pair.
//
// Narrowing to bfloat16 in vectors relies on the lower half of every NaN being zero, else the carry of rounding could
// turn it into a number. It is: a NaN comes from a bfloat16, or from the processor (0xffc00000), or from a weight of a
// wider dtype, which arrange_weight makes plain.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/lanes.h"

#if defined(SPARSEKERNELS_AVX512) || defined(SPARSEKERNELS_AVX2)
#include <immintrin.h>
#endif

namespace sparsekernels {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr int kPairLanes = 2 * kLanes;

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float value) {
  return value;
}
inline double widen(double value) {
  return value;
}
inline float widen(BFloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}

// Scales by 2^112 to move float16's exponent to float's, which also normalizes subnormal numbers.
inline float widen(Float16 value) {
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000u);
  const uint32_t bits = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : float_to_bits(scaled);
  return bits_to_float(bits | sign);
}

inline void narrow(float value, float& out) {
  out = value;
}
inline void narrow(double value, double& out) {
  out = value;
}

// To the nearest, ties to even; a NaN stays one.
inline void narrow(float value, BFloat16& out) {
  const uint32_t bits = float_to_bits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void narrow(float value, Float16& out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520, half way from the largest float16 to the next power of two
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns its bits at the end of the significand
    result = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(result | sign);
}

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <class Element>
struct Vec;

#if defined(SPARSEKERNELS_AVX512)

template <>
struct Vec<float> {
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
};
inline Vec<float> operator+(Vec<float> a, Vec<float> b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec<float> operator*(Vec<float> a, Vec<float> b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline float sum(Vec<float> a) {
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

#elif defined(SPARSEKERNELS_AVX2)

template <>
struct Vec<float> {
  __m256 lo, hi;

  static Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Vec broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Vec load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  void store(float* to) const {
    _mm256_storeu_ps(to, lo);
    _mm256_storeu_ps(to + 8, hi);
  }
};
inline Vec<float> operator+(Vec<float> a, Vec<float> b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Vec<float> operator*(Vec<float> a, Vec<float> b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline float sum(Vec<float> a) {
  const __m256 half = _mm256_add_ps(a.lo, a.hi);
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

#endif

// Plain loops: double everywhere, float on a processor with neither.
template <class Element>
struct Vec {
  Element v[kLanes];

  static Vec zero() { return broadcast(0); }
  static Vec broadcast(Element value) {
    Vec result;
    for (Element& lane : result.v) lane = value;
    return result;
  }
  static Vec load(const Element* from) {
    Vec result;
    std::memcpy(result.v, from, sizeof result.v);
    return result;
  }
  void store(Element* to) const { std::memcpy(to, v, sizeof v); }
};
template <class Element>
inline Vec<Element> operator+(Vec<Element> a, Vec<Element> b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
  return a;
}
template <class Element>
inline Vec<Element> operator*(Vec<Element> a, Vec<Element> b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] *= b.v[i];
  return a;
}
template <class Element>
inline Vec<Element> fma(Vec<Element> a, Vec<Element> b, Vec<Element> c) {
  for (int i = 0; i < kLanes; ++i) c.v[i] += a.v[i] * b.v[i];
  return c;
}
template <class Element>
inline Element sum(Vec<Element> a) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}

// 32 elements of T in a pair of vectors.
template <class T>
struct VecPair {
  using Acc = typename Accumulator<T>::type;
  Vec<Acc> a, b;

  static constexpr int lane_of(int element) { return element; }

  static VecPair load(const T* from) {
    Acc lanes[kPairLanes];
    for (int i = 0; i < kPairLanes; ++i) lanes[i] = widen(from[i]);
    return {Vec<Acc>::load(lanes), Vec<Acc>::load(lanes + kLanes)};
  }
  void store(T* to) const {
    Acc lanes[kPairLanes];
    a.store(lanes);
    b.store(lanes + kLanes);
    for (int i = 0; i < kPairLanes; ++i) narrow(lanes[i], to[i]);
  }
  // The first `count` elements, zeros behind them.
  static VecPair load_some(const T* from, int count) {
    T elements[kPairLanes] = {};
    std::memcpy(elements, from, static_cast<size_t>(count) * sizeof(T));
    return load(elements);
  }
  void store_some(T* to, int count) const {
    T elements[kPairLanes];
    store(elements);
    std::memcpy(to, elements, static_cast<size_t>(count) * sizeof(T));
  }
};

#if defined(SPARSEKERNELS_AVX512)

template <>
struct VecPair<float> {
  using Acc = float;
  Vec<float> a, b;

  static constexpr int lane_of(int element) { return element; }
  static VecPair load(const float* from) { return {Vec<float>::load(from), Vec<float>::load(from + kLanes)}; }
  void store(float* to) const {
    a.store(to);
    b.store(to + kLanes);
  }
  static VecPair load_some(const float* from, int count) {
    const uint32_t mask = (1u << count) - 1;
    return {
        {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from)},
        {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> kLanes), from + kLanes)}};
  }
  void store_some(float* to, int count) const {
    const uint32_t mask = (1u << count) - 1;
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), a.v);
    _mm512_mask_storeu_ps(to + kLanes, static_cast<__mmask16>(mask >> kLanes), b.v);
  }
};

template <>
struct VecPair<BFloat16> {
  using Acc = float;
  Vec<float> a, b;

  static constexpr int lane_of(int element) { return element / 2 + (element % 2) * kLanes; }
  static VecPair widen_pairs(__m512i pairs) {
    const __m512i odd = _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))}, {_mm512_castsi512_ps(odd)}};
  }
  // Rounded to the nearest, ties to even, in the upper half of each lane: adds 0x7fff to an even upper half, 0x8000 to
  // an odd one.
  static __m512i rounded(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(up, odd, bits, _mm512_set1_epi32(0x8000));
  }
  __m512i narrowed() const {
    const __m512i even = _mm512_srli_epi32(rounded(a.v), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, even, rounded(b.v));
  }
  static VecPair load(const BFloat16* from) { return widen_pairs(_mm512_loadu_si512(from)); }
  void store(BFloat16* to) const { _mm512_storeu_si512(to, narrowed()); }
  static VecPair load_some(const BFloat16* from, int count) {
    return widen_pairs(_mm512_maskz_loadu_epi16((1u << count) - 1, from));
  }
  void store_some(BFloat16* to, int count) const { _mm512_mask_storeu_epi16(to, (1u << count) - 1, narrowed()); }
};

template <>
struct VecPair<Float16> {
  using Acc = float;
  Vec<float> a, b;

  static constexpr int lane_of(int element) { return element; }
  static VecPair widen_halves(__m512i halves) {
    return {{_mm512_cvtph_ps(_mm512_castsi512_si256(halves))}, {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))}};
  }
  __m512i narrowed() const {
    const __m256i low = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i high = _mm512_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  static VecPair load(const Float16* from) { return widen_halves(_mm512_loadu_si512(from)); }
  void store(Float16* to) const { _mm512_storeu_si512(to, narrowed()); }
  static VecPair load_some(const Float16* from, int count) {
    return widen_halves(_mm512_maskz_loadu_epi16((1u << count) - 1, from));
  }
  void store_some(Float16* to, int count) const { _mm512_mask_storeu_epi16(to, (1u << count) - 1, narrowed()); }
};

#elif defined(SPARSEKERNELS_AVX2)

template <>
inline VecPair<float> VecPair<float>::load(const float* from) {
  return {Vec<float>::load(from), Vec<float>::load(from + kLanes)};
}
template <>
inline void VecPair<float>::store(float* to) const {
  a.store(to);
  b.store(to + kLanes);
}

// As on AVX-512: even elements in the first vector, odd ones in the second.
template <>
constexpr int VecPair<BFloat16>::lane_of(int element) {
  return element / 2 + (element % 2) * kLanes;
}
template <>
inline VecPair<BFloat16> VecPair<BFloat16>::load(const BFloat16* from) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + kLanes));
  return {
      {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))},
      {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(hi, upper))}};
}
inline __m256i rounded(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
}
template <>
inline void VecPair<BFloat16>::store(BFloat16* to) const {
  const __m256i lo = _mm256_blend_epi16(_mm256_srli_epi32(rounded(a.lo), 16), rounded(b.lo), 0xaa);
  const __m256i hi = _mm256_blend_epi16(_mm256_srli_epi32(rounded(a.hi), 16), rounded(b.hi), 0xaa);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + kLanes), hi);
}

inline __m256 widen_eight(const Float16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void narrow_eight(__m256 value, Float16* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
template <>
inline VecPair<Float16> VecPair<Float16>::load(const Float16* from) {
  return {{widen_eight(from), widen_eight(from + 8)}, {widen_eight(from + kLanes), widen_eight(from + kLanes + 8)}};
}
template <>
inline void VecPair<Float16>::store(Float16* to) const {
  narrow_eight(a.lo, to);
  narrow_eight(a.hi, to + 8);
  narrow_eight(b.lo, to + kLanes);
  narrow_eight(b.hi, to + kLanes + 8);
}

#endif

}  // namespace
}  // namespace sparsekernels
