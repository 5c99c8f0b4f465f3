// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Exponentials for softmax. Compiled once per instruction set, as vec.h is.
//
// exp(x) = 2^n * (1 + r + r^2 P(r)), n the integer next to x / ln 2, r = x - n ln 2 in two steps (Cody and Waite); P
// has degree 4 and the least largest relative error for |r| <= ln 2 / 2, 3e-9. The result is within 1.1 units in the
// last place; below -87.33, where exp would be subnormal, it is 0. NaN stays NaN.
#pragma once

#include "base/vec16.h"

namespace sparsekernels {
namespace {

constexpr float kLeastExponent = -87.33f, kLog2E = 1.44269504f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kExp0 = 0x1.fffffcp-2f, kExp1 = 0x1.555492p-3f, kExp2 = 0x1.5558f2p-5f, kExp3 = 0x1.1239e2p-7f,
                kExp4 = 0x1.6a2434p-10f;

#if defined(SPARSEKERNELS_AVX512)

// In the lanes whose bit is set; 0 in the others, whatever they hold.
inline Vec<float> exp_only(uint32_t lanes, Vec<float> x) {
  const auto all = [](float value) { return _mm512_set1_ps(value); };
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x.v, all(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_fnmadd_ps(n, all(kLn2Low), _mm512_fnmadd_ps(n, all(kLn2High), x.v));
  __m512 p = _mm512_fmadd_ps(all(kExp4), r, all(kExp3));
  p = _mm512_fmadd_ps(p, r, all(kExp2));
  p = _mm512_fmadd_ps(p, r, all(kExp1));
  p = _mm512_fmadd_ps(p, r, all(kExp0));
  const __m512 y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r), all(1.0f));
  const __mmask16 kept = _mm512_mask_cmp_ps_mask(static_cast<__mmask16>(lanes), x.v, all(kLeastExponent), _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(kept, y, n)};
}

#elif defined(SPARSEKERNELS_AVX2)

inline __m256 exp_eight(__m256 x) {
  const auto all = [](float value) { return _mm256_set1_ps(value); };
  __m256 n = _mm256_round_ps(_mm256_mul_ps(x, all(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  n = _mm256_min_ps(n, all(128.0f));
  const __m256 r = _mm256_fnmadd_ps(n, all(kLn2Low), _mm256_fnmadd_ps(n, all(kLn2High), x));
  __m256 p = _mm256_fmadd_ps(all(kExp4), r, all(kExp3));
  p = _mm256_fmadd_ps(p, r, all(kExp2));
  p = _mm256_fmadd_ps(p, r, all(kExp1));
  p = _mm256_fmadd_ps(p, r, all(kExp0));
  const __m256 y = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), all(1.0f));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(
      _mm256_cmp_ps(x, all(kLeastExponent), _CMP_NLT_UQ), _mm256_mul_ps(y, _mm256_castsi256_ps(power)));
}
inline Vec<float> exp_only(uint32_t lanes, Vec<float> x) {
  return only(lanes, {exp_eight(x.lo), exp_eight(x.hi)});
}

#else

inline float exp_one(float x) {
  if (x < kLeastExponent) return 0.0f;
  if (!(x < 89.0f)) return x * bits_to_float(0x7f800000u);  // infinity or NaN
  constexpr float kToInteger = 12582912.0f;                 // 1.5 * 2^23: adding it rounds
  const float n = (x * kLog2E + kToInteger) - kToInteger;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  const float p = kExp0 + r * (kExp1 + r * (kExp2 + r * (kExp3 + r * kExp4)));
  const float y = 1.0f + (r + r * r * p);
  const int half = static_cast<int>(n) / 2, other = static_cast<int>(n) - half;
  const auto power = [](int of) { return bits_to_float(static_cast<uint32_t>(of + 127) << 23); };
  return y * power(half) * power(other);
}
inline Vec<float> exp_only(uint32_t lanes, Vec<float> x) {
  for (int i = 0; i < kLanes; ++i) x.v[i] = lanes >> i & 1 ? exp_one(x.v[i]) : 0.0f;
  return x;
}

#endif

// Of one number.
inline float exp_of(float x) {
  float lanes[kLanes];
  exp_only(1, Vec<float>::broadcast(x)).store(lanes);
  return lanes[0];
}

}  // namespace
}  // namespace sparsekernels
