// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The elements of a dense weight that a mask uses, by its bits. Compiled once per instruction set, as vec.h is.
#pragma once

#include "sparse_conv2d/element_kernels.h"
#include "sparse_conv2d/nonzero_words.h"

namespace sparsekernels {
namespace {

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
