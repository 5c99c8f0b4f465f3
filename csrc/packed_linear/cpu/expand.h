// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What is stored of a packed weight as vectors, 64 columns at a time, zeros included. Compiled once per instruction
// set, as vec.h is; with SPARSEKERNELS_VBMI2_KERNELS where the processor expands elements of 16 bits.
#pragma once

#include <cstring>

#include "base/vec.h"
#include "base/vec16.h"
#include "packed_linear/call.h"

namespace sparsekernels {
namespace {

constexpr int kWordColumns = 64, kWordVectors = kWordColumns / kLanes;
constexpr int kBytesAhead = 2048;  // of values, and of words

// The 64 elements of a word, zeros included, as vectors of floats, in an order of their own.
template <class T>
struct Expanded {
  static void expand(const T* values, uint64_t word, Vec<float> (&to)[kWordVectors]) {
    float lanes[kWordColumns] = {};
    for (; word != 0; word &= word - 1) lanes[__builtin_ctzll(word)] = widen(*values++);
    for (int i = 0; i < kWordVectors; ++i) to[i] = Vec<float>::load(lanes + i * kLanes);
  }
  static void unpack(const T* values, uint64_t word, T* to) {
    std::memset(static_cast<void*>(to), 0, kWordColumns * sizeof(T));
    for (; word != 0; word &= word - 1) to[__builtin_ctzll(word)] = *values++;
  }
};

#if defined(SPARSEKERNELS_AVX512)

// How many bits are set before each 16 of a word.
struct Before {
  int64_t at[kWordVectors];
  explicit Before(uint64_t word)
      : at{0, __builtin_popcount(static_cast<uint32_t>(word) & 0xffff), __builtin_popcount(static_cast<uint32_t>(word)),
           __builtin_popcountll(word << 16)} {}
};

inline __mmask16 bits_of(uint64_t word, int i) {
  return static_cast<__mmask16>(word >> (i * kLanes));
}

template <>
struct Expanded<float> {
  static void expand(const float* values, uint64_t word, Vec<float> (&to)[kWordVectors]) {
    const Before before(word);
#pragma GCC unroll 4
    for (int i = 0; i < kWordVectors; ++i)
      to[i] = {_mm512_maskz_expand_ps(bits_of(word, i), _mm512_loadu_ps(values + before.at[i]))};
  }
  static void unpack(const float* values, uint64_t word, float* to) {
    Vec<float> vectors[kWordVectors];
    expand(values, word, vectors);
    for (int i = 0; i < kWordVectors; ++i) vectors[i].store(to + i * kLanes);
  }
};

#if defined(SPARSEKERNELS_VBMI2_KERNELS)

constexpr int kHalf = 32;  // elements of 16 bits in a register

template <class T>
inline __m512i expanded_half(const T* values, uint64_t word, int half) {
  const auto bits = static_cast<__mmask32>(word >> (half * kHalf));
  const T* const from = values + (half == 0 ? 0 : __builtin_popcount(static_cast<uint32_t>(word)));
  return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(from));
}

template <class T>
inline void unpack_halves(const T* values, uint64_t word, T* to) {
  for (int half = 0; half < 2; ++half) _mm512_storeu_si512(to + half * kHalf, expanded_half(values, word, half));
}

// Of 32 elements first the even ones, then the odd ones: a shift and a mask widen them.
template <>
struct Expanded<BFloat16> {
  static void expand(const BFloat16* values, uint64_t word, Vec<float> (&to)[kWordVectors]) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i elements = expanded_half(values, word, half);
      to[2 * half] = {_mm512_castsi512_ps(_mm512_slli_epi32(elements, 16))};
      to[2 * half + 1] = {_mm512_castsi512_ps(_mm512_and_si512(elements, upper))};
    }
  }
  static void unpack(const BFloat16* values, uint64_t word, BFloat16* to) { unpack_halves(values, word, to); }
};

template <>
struct Expanded<Float16> {
  static void expand(const Float16* values, uint64_t word, Vec<float> (&to)[kWordVectors]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i elements = expanded_half(values, word, half);
      to[2 * half] = {_mm512_cvtph_ps(_mm512_castsi512_si256(elements))};
      to[2 * half + 1] = {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(elements, 1))};
    }
  }
  static void unpack(const Float16* values, uint64_t word, Float16* to) { unpack_halves(values, word, to); }
};

#else

// Without an instruction that expands 16 bits: 16 elements at a time, widened.
template <class T>
struct ExpandedWide {
  static void expand(const T* values, uint64_t word, Vec<float> (&to)[kWordVectors]) {
    const Before before(word);
#pragma GCC unroll 4
    for (int i = 0; i < kWordVectors; ++i)
      to[i] = {_mm512_maskz_expand_ps(bits_of(word, i), Vec16<T>::load(values + before.at[i]).v)};
  }
  static void unpack(const T* values, uint64_t word, T* to) {
    const Before before(word);
    for (int i = 0; i < kWordVectors; ++i) {
      const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + before.at[i]));
      const __m512i wide = _mm512_maskz_expand_epi32(bits_of(word, i), _mm512_cvtepu16_epi32(own));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * kLanes), _mm512_cvtepi32_epi16(wide));
    }
  }
};
template <>
struct Expanded<BFloat16> : ExpandedWide<BFloat16> {};
template <>
struct Expanded<Float16> : ExpandedWide<Float16> {};

#endif

#elif defined(SPARSEKERNELS_AVX2)

constexpr int kByteLanes = 8;  // elements that a byte of bits stands for

// By a byte of bits: which of the values each of its eight lanes is, times kScale; -128 for none. Each lane kScale
// bytes.
template <int kScale>
struct Shuffles {
  int8_t of[256][kByteLanes * kScale];

  constexpr Shuffles() : of{} {
    for (int bits = 0; bits < 256; ++bits) {
      int next = 0;
      for (int lane = 0; lane < kByteLanes; ++lane) {
        const bool is_set = (bits >> lane & 1) != 0;
        for (int i = 0; i < kScale; ++i)
          of[bits][lane * kScale + i] = static_cast<int8_t>(is_set ? next * kScale + i : -128);
        next += is_set ? 1 : 0;
      }
    }
  }
};
alignas(kLineBytes) constexpr Shuffles<1> kPlaces;       // of 32 bits, for vpermps
alignas(kLineBytes) constexpr Shuffles<2> kBytesOfHalf;  // of 16 bits, for vpshufb

// How many bits are set up to each byte of a word, that one included, in that byte.
inline uint64_t counts_up_to(uint64_t word) {
  word -= word >> 1 & 0x5555555555555555;
  word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
  return ((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101;
}

template <class T>
struct Eight;

template <>
struct Eight<float> {
  static __m256 expand(const float* values, uint8_t bits) {
    const __m256i places = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[bits])));
    const __m256 moved = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), places);
    return _mm256_blendv_ps(moved, _mm256_setzero_ps(), _mm256_castsi256_ps(places));
  }
  static void unpack(const float* values, uint8_t bits, float* to) { _mm256_storeu_ps(to, expand(values, bits)); }
};

template <class T>
struct EightHalves {
  static __m128i moved(const T* values, uint8_t bits) {
    return _mm_shuffle_epi8(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(values)),
        _mm_load_si128(reinterpret_cast<const __m128i*>(kBytesOfHalf.of[bits])));
  }
  static void unpack(const T* values, uint8_t bits, T* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), moved(values, bits));
  }
};
template <>
struct Eight<BFloat16> : EightHalves<BFloat16> {
  static __m256 expand(const BFloat16* values, uint8_t bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(moved(values, bits)), 16));
  }
};
template <>
struct Eight<Float16> : EightHalves<Float16> {
  static __m256 expand(const Float16* values, uint8_t bits) { return _mm256_cvtph_ps(moved(values, bits)); }
};

// Eight elements at a time, by tables.
template <class T>
struct ExpandedByTable {
  template <class Body>
  static void each(const T* values, uint64_t word, Body body) {
    const uint64_t before = counts_up_to(word) << 8;
#pragma GCC unroll 4
    for (int i = 0; i < kWordVectors; ++i) {
      __m256 halves[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int shift = (2 * i + half) * kByteLanes;
        halves[half] = Eight<T>::expand(values + (before >> shift & 0xff), static_cast<uint8_t>(word >> shift));
      }
      body(i, Vec<float>{halves[0], halves[1]});
    }
  }
  static void expand(const T* values, uint64_t word, Vec<float> (&to)[kWordVectors]) {
    each(values, word, [&](int i, Vec<float> vector) { to[i] = vector; });
  }
  static void unpack(const T* values, uint64_t word, T* to) {
    const uint64_t before = counts_up_to(word) << 8;
#pragma GCC unroll 8
    for (int shift = 0; shift < kWordColumns; shift += kByteLanes)
      Eight<T>::unpack(values + (before >> shift & 0xff), static_cast<uint8_t>(word >> shift), to + shift);
  }
};
template <>
struct Expanded<float> : ExpandedByTable<float> {};
template <>
struct Expanded<BFloat16> : ExpandedByTable<BFloat16> {};
template <>
struct Expanded<Float16> : ExpandedByTable<Float16> {};

#endif

// Calls `body` with the number of each vector of a word, and the vector.
template <class T, class Body>
inline void each_expanded(const T* values, uint64_t word, Body body) {
#if defined(SPARSEKERNELS_AVX2)
  Expanded<T>::each(values, word, body);  // sixteen registers do not hold all of them
#else
  Vec<float> vectors[kWordVectors];
  Expanded<T>::expand(values, word, vectors);
#pragma GCC unroll 4
  for (int i = 0; i < kWordVectors; ++i) body(i, vectors[i]);
#endif
}

// The values of one output, word by word.
template <class T>
struct Values {
  const T *at, *last;

  Values(const PackedLinear& call, int64_t output)
      : at(static_cast<const T*>(call.values) + call.first_value(output)),
        last(static_cast<const T*>(call.values) + call.count - kPackedSlack) {}

  void prefetch() const {
    constexpr int kLines = sizeof(T) / 2;
    for (int i = 0; i < kLines; ++i)
      __builtin_prefetch(reinterpret_cast<const char*>(at) + kBytesAhead + i * kLineBytes);
  }
  void advance(uint64_t word) {
    at += __builtin_popcountll(word);
    at = at < last ? at : last;
  }
};

// Lines that come up while something else is done, a share of them at each of `steps` calls.
struct Ahead {
  const char *at, *end;
  int64_t each;

  Ahead(const void* from, const void* to, int64_t steps)
      : at(static_cast<const char*>(from)),
        end(static_cast<const char*>(to)),
        each(((end - at) / kLineBytes + steps) / steps * kLineBytes) {}
  void prefetch() {
    const char* const until = end - at < each ? end : at + each;
    for (; at < until; at += kLineBytes) __builtin_prefetch(at, 0, 2);
  }
};

}  // namespace
}  // namespace sparsekernels
