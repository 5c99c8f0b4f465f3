// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Random numbers from a counter: Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"),
// a vector of counters at a time. Compiled once per instruction set, as vec.h is.
#pragma once

#include <cstdint>

#include "base/vec.h"

namespace sparsekernels {
namespace {

// A vector of unsigned numbers.
struct Words {
  uint32_t lanes[kLanes];
};

// Of counters (first + lane, second, third, 0): four words each, numbers[w].lanes[lane].
inline void philox(uint32_t first, uint32_t second, uint32_t third, uint64_t seed, Words (&numbers)[4]) {
  constexpr uint32_t kMultiplierA = 0xd2511f53u, kMultiplierB = 0xcd9e8d57u;
  constexpr uint32_t kWeylA = 0x9e3779b9u, kWeylB = 0xbb67ae85u;
  uint32_t key_a = static_cast<uint32_t>(seed), key_b = static_cast<uint32_t>(seed >> 32);
#if defined(SPARSEKERNELS_AVX512)
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i a = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), lane);
  __m512i b = _mm512_set1_epi32(static_cast<int>(second));
  __m512i c = _mm512_set1_epi32(static_cast<int>(third));
  __m512i d = _mm512_setzero_si512();
  // products of even and of odd lanes, whose halves are then sorted
  const auto multiply = [](__m512i x, uint32_t by, __m512i& high, __m512i& low) {
    const __m512i factor = _mm512_set1_epi32(static_cast<int>(by));
    const __m512i even = _mm512_mul_epu32(x, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
    high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  };
  constexpr int kXorOfThree = 0x96;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    __m512i high_a, low_a, high_c, low_c;
    multiply(a, kMultiplierA, high_a, low_a);
    multiply(c, kMultiplierB, high_c, low_c);
    a = _mm512_ternarylogic_epi32(high_c, b, _mm512_set1_epi32(static_cast<int>(key_a)), kXorOfThree);
    c = _mm512_ternarylogic_epi32(high_a, d, _mm512_set1_epi32(static_cast<int>(key_b)), kXorOfThree);
    b = low_c;
    d = low_a;
    key_a += kWeylA;
    key_b += kWeylB;
  }
  _mm512_storeu_si512(numbers[0].lanes, a);
  _mm512_storeu_si512(numbers[1].lanes, b);
  _mm512_storeu_si512(numbers[2].lanes, c);
  _mm512_storeu_si512(numbers[3].lanes, d);
#else
  uint32_t a[kLanes], b[kLanes], c[kLanes], d[kLanes];
  for (uint32_t i = 0; i < kLanes; ++i) {
    a[i] = first + i;
    b[i] = second;
    c[i] = third;
    d[i] = 0;
  }
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t of_a = static_cast<uint64_t>(a[i]) * kMultiplierA;
      const uint64_t of_c = static_cast<uint64_t>(c[i]) * kMultiplierB;
      a[i] = static_cast<uint32_t>(of_c >> 32) ^ b[i] ^ key_a;
      c[i] = static_cast<uint32_t>(of_a >> 32) ^ d[i] ^ key_b;
      b[i] = static_cast<uint32_t>(of_c);
      d[i] = static_cast<uint32_t>(of_a);
    }
    key_a += kWeylA;
    key_b += kWeylB;
  }
  for (int i = 0; i < kLanes; ++i) {
    numbers[0].lanes[i] = a[i];
    numbers[1].lanes[i] = b[i];
    numbers[2].lanes[i] = c[i];
    numbers[3].lanes[i] = d[i];
  }
#endif
}

// The lanes whose number is at least the threshold.
inline uint32_t lanes_at_least(const Words& numbers, uint32_t threshold) {
#if defined(SPARSEKERNELS_AVX512)
  const __m512i given = _mm512_loadu_si512(numbers.lanes);
  return _mm512_cmpge_epu32_mask(given, _mm512_set1_epi32(static_cast<int>(threshold)));
#else
  uint32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result |= static_cast<uint32_t>(numbers.lanes[i] >= threshold) << i;
  return result;
#endif
}

}  // namespace
}  // namespace sparsekernels
