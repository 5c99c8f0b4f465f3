// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which of 64 elements are not zero. Compiled once per instruction set, as vec.h is.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/dtype.h"
#include "base/vec.h"

namespace sparsekernels {
namespace {

// Bit i: elements[i] is not zero; NaN is not. T has the size of the elements, and is a float where these are.
template <class T>
inline uint64_t nonzero_bits(const T* elements) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) {
    bool nonzero;
    if constexpr (std::is_floating_point_v<T>) {
      nonzero = elements[i] != 0;
    } else {
      nonzero = (elements[i] & 0x7fff) != 0;  // all but the sign
    }
    bits |= static_cast<uint64_t>(nonzero) << i;
  }
  return bits;
}

#if defined(SPARSEKERNELS_AVX512)
template <>
inline uint64_t nonzero_bits(const float* elements) {
  const __m512 zero = _mm512_setzero_ps();
  uint64_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const uint64_t mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(elements + 16 * i), zero, _CMP_NEQ_UQ);
    bits |= mask << (16 * i);
  }
  return bits;
}

template <>
inline uint64_t nonzero_bits(const uint16_t* elements) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const uint64_t low = _mm512_test_epi16_mask(_mm512_loadu_si512(elements), magnitude);
  const uint64_t high = _mm512_test_epi16_mask(_mm512_loadu_si512(elements + 32), magnitude);
  return low | high << 32;
}
#elif defined(SPARSEKERNELS_AVX2)
template <>
inline uint64_t nonzero_bits(const float* elements) {
  const __m256 zero = _mm256_setzero_ps();
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    const int mask = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(elements + 8 * i), zero, _CMP_NEQ_UQ));
    bits |= static_cast<uint64_t>(static_cast<uint32_t>(mask)) << (8 * i);
  }
  return bits;
}

template <>
inline uint64_t nonzero_bits(const uint16_t* elements) {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff), zero = _mm256_setzero_si256();
  uint64_t zeros = 0;
  for (int i = 0; i < 2; ++i) {
    __m256i equal[2];
    for (int half = 0; half < 2; ++half) {
      const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements + 32 * i + 16 * half));
      equal[half] = _mm256_cmpeq_epi16(_mm256_and_si256(loaded, magnitude), zero);
    }
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(equal[0], equal[1]), 0xd8);
    zeros |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(bytes))) << (32 * i);
  }
  return ~zeros;
}
#endif

// How many nonzeros are in the words begin, begin + step, ... below end, of 64 elements each, whose bit is not set in
// that word of `except`; null: none is.
template <class T>
int64_t count_nonzeros(const void* elements, const uint64_t* except, int64_t begin, int64_t end, int64_t step) {
  int64_t count = 0;
  for (int64_t word = begin; word < end; word += step) {
    uint64_t bits = nonzero_bits(static_cast<const T*>(elements) + 64 * word);
    if (except != nullptr) bits &= ~except[word];
    count += __builtin_popcountll(bits);
  }
  return count;
}

}  // namespace
}  // namespace sparsekernels
