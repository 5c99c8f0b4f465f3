// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which of 64 elements are not zero, and which of them a mask uses. Compiled once per instruction set, as vec.h is.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/dtype.h"
#include "base/vec.h"
#include "sparse_conv2d/element_kernels.h"

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

// Words [begin, end) of 64 elements: those whose bit is set go to `values` one after another. Returns how many of the
// others are not zero, where they are to be counted.
template <class T>
int64_t take_elements(
    const void* elements, const uint64_t* bits, int64_t begin, int64_t end, bool counts_others, void* values) {
  int64_t others = 0;
  auto* to = static_cast<T*>(values);
  for (int64_t word = begin; word < end; ++word) {
    const T* const from = static_cast<const T*>(elements) + 64 * word;
    if (counts_others) others += __builtin_popcountll(nonzero_bits(from) & ~bits[word]);
    for (uint64_t left = bits[word]; left != 0; left &= left - 1) *to++ = from[__builtin_ctzll(left)];
  }
  return others;
}

// The reverse: elements whose bit is not set become zero.
template <class T>
void spread_elements(const void* values, const uint64_t* bits, int64_t begin, int64_t end, void* elements) {
  const auto* from = static_cast<const T*>(values);
  for (int64_t word = begin; word < end; ++word) {
    T* const to = static_cast<T*>(elements) + 64 * word;
    __builtin_memset(to, 0, 64 * sizeof(T));
    for (uint64_t left = bits[word]; left != 0; left &= left - 1) to[__builtin_ctzll(left)] = *from++;
  }
}

// Elements whose bit is not set become zero; nothing is written where they are.
template <class T>
void clear_others(const uint64_t* bits, int64_t begin, int64_t end, void* elements) {
  for (int64_t word = begin; word < end; ++word) {
    T* const at = static_cast<T*>(elements) + 64 * word;
    for (uint64_t left = nonzero_bits(at) & ~bits[word]; left != 0; left &= left - 1) at[__builtin_ctzll(left)] = T(0);
  }
}

#if defined(SPARSEKERNELS_AVX512)
// Without a branch for 16 elements of which none is used: at 5% that is every other one, which no processor predicts.
template <>
int64_t take_elements<float>(
    const void* elements, const uint64_t* bits, int64_t begin, int64_t end, bool counts_others, void* values) {
  const __m512 zero = _mm512_setzero_ps();
  int64_t others = 0;
  auto* to = static_cast<float*>(values);
  for (int64_t word = begin; word < end; ++word) {
    const uint64_t used = bits[word];
    if (used == 0 && !counts_others) continue;
    const float* const from = static_cast<const float*>(elements) + 64 * word;
    uint64_t nonzero = 0;
    for (int i = 0; i < 4; ++i) {
      const auto own = static_cast<__mmask16>(used >> (16 * i));
      const __m512 vector = _mm512_loadu_ps(from + 16 * i);
      nonzero |= static_cast<uint64_t>(_mm512_cmp_ps_mask(vector, zero, _CMP_NEQ_UQ)) << (16 * i);
      const int count = __builtin_popcount(own);
      _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), _mm512_maskz_compress_ps(own, vector));
      to += count;
    }
    others += __builtin_popcountll(nonzero & ~used);
  }
  return counts_others ? others : 0;
}

template <>
void spread_elements<float>(const void* values, const uint64_t* bits, int64_t begin, int64_t end, void* elements) {
  const auto* from = static_cast<const float*>(values);
  for (int64_t word = begin; word < end; ++word) {
    float* const to = static_cast<float*>(elements) + 64 * word;
    for (int i = 0; i < 4; ++i) {
      const auto used = static_cast<__mmask16>(bits[word] >> (16 * i));
      const int count = __builtin_popcount(used);
      const __m512 packed = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
      _mm512_storeu_ps(to + 16 * i, _mm512_maskz_expand_ps(used, packed));
      from += count;
    }
  }
}

template <>
void clear_others<float>(const uint64_t* bits, int64_t begin, int64_t end, void* elements) {
  const __m512 zero = _mm512_setzero_ps();
  for (int64_t word = begin; word < end; ++word) {
    float* const at = static_cast<float*>(elements) + 64 * word;
    for (int i = 0; i < 4; ++i) {
      const auto others = static_cast<__mmask16>(~(bits[word] >> (16 * i)));
      const __mmask16 nonzero = _mm512_mask_cmp_ps_mask(others, _mm512_loadu_ps(at + 16 * i), zero, _CMP_NEQ_UQ);
      if (nonzero != 0) _mm512_mask_storeu_ps(at + 16 * i, others, zero);
    }
  }
}
#endif

template <class T>
constexpr ElementKernels element_kernels_of() {
  return {take_elements<T>, spread_elements<T>, clear_others<T>};
}

}  // namespace
}  // namespace sparsekernels
