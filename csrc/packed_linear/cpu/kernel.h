// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A few rows by a weight of bits and nonzeros, in float32: 64 columns of an output at a time, whose nonzeros are
// expanded to vectors, which stay in registers for up to four rows of the input. Compiled once per instruction set, as
// vec.h is; with SPARSEKERNELS_VBMI2_KERNELS where the processor expands elements of 16 bits.
#pragma once

#include "base/vec.h"
#include "base/vec16.h"
#include "packed_linear/call.h"

namespace sparsekernels {
namespace {

constexpr int kWordColumns = 64, kWordVectors = kWordColumns / kLanes;
constexpr int kMostRowsAtOnce = 4;
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
#endif

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

template <class T>
int64_t packed_arranged_floats(const PackedLinear& call) {
  return call.rows * call.padded_columns();
}

// All bits set: what `expand` makes of 64 elements of the input is their order.
template <class T>
void packed_arrange(const PackedLinear& call, float* arranged) {
  const int64_t padded = call.padded_columns();
  for (int64_t row = 0; row < call.rows; ++row) {
    const T* const from = static_cast<const T*>(call.input) + row * call.columns;
    for (int64_t k = 0; k < padded; k += kWordColumns) {
      const int64_t left = call.columns - k;
      Vec<float> vectors[kWordVectors];
      if (left >= kWordColumns) {
        Expanded<T>::expand(from + k, ~uint64_t{0}, vectors);
      } else {
        T last[kWordColumns] = {};
        if (left > 0) std::memcpy(static_cast<void*>(last), from + k, static_cast<size_t>(left) * sizeof(T));
        Expanded<T>::expand(last, ~uint64_t{0}, vectors);
      }
      for (int i = 0; i < kWordVectors; ++i) vectors[i].store(arranged + row * padded + k + i * kLanes);
    }
  }
}

// kRows rows of the input from `first` on, at one output.
template <class T, int kRows>
void packed_output(const PackedLinear& call, const float* arranged, int64_t first, int64_t output) {
  const int64_t padded = call.padded_columns();
  const uint64_t* const words = call.words + output * call.row_words;
  const float* const input = arranged + first * padded;
  Vec<float> sums[kRows][kWordVectors];
  for (auto& row : sums)
    for (Vec<float>& one : row) one = Vec<float>::zero();
  Values<T> values(call, output);
  for (int64_t i = 0; i < call.row_words; ++i) {
    const uint64_t word = words[i];
    __builtin_prefetch(reinterpret_cast<const char*>(words + i) + kBytesAhead);
    values.prefetch();
    Vec<float> weights[kWordVectors];
    Expanded<T>::expand(values.at, word, weights);
    values.advance(word);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
      for (int v = 0; v < kWordVectors; ++v)
        sums[row][v] =
            fma(weights[v], Vec<float>::load(input + row * padded + i * kWordColumns + v * kLanes), sums[row][v]);
  }
  const float bias = call.bias == nullptr ? 0.0f : widen(static_cast<const T*>(call.bias)[output]);
  for (int row = 0; row < kRows; ++row) {
    const float total = sum((sums[row][0] + sums[row][1]) + (sums[row][2] + sums[row][3]));
    narrow(total + bias, static_cast<T*>(call.output)[(first + row) * call.outputs + output]);
  }
}

template <class T>
void packed_run(const PackedLinear& call, const float* arranged, int64_t begin, int64_t end) {
  for (int64_t output = begin; output < end; ++output) {
    int64_t row = 0;
    for (; row + kMostRowsAtOnce <= call.rows; row += kMostRowsAtOnce)
      packed_output<T, kMostRowsAtOnce>(call, arranged, row, output);
    switch (call.rows - row) {
      case 3:
        packed_output<T, 3>(call, arranged, row, output);
        break;
      case 2:
        packed_output<T, 2>(call, arranged, row, output);
        break;
      case 1:
        packed_output<T, 1>(call, arranged, row, output);
        break;
      default:
        break;
    }
  }
}

template <class T>
void packed_unpack(const PackedLinear& call, int64_t begin, int64_t end, void* to) {
  for (int64_t output = begin; output < end; ++output) {
    const uint64_t* const words = call.words + output * call.row_words;
    T* const row = static_cast<T*>(to) + (output - begin) * call.columns;
    Values<T> values(call, output);
    for (int64_t k = 0; k < call.columns; k += kWordColumns) {
      const uint64_t word = words[k / kWordColumns];
      values.prefetch();
      const int64_t left = call.columns - k;
      if (left >= kWordColumns) {
        Expanded<T>::unpack(values.at, word, row + k);
      } else {
        T last[kWordColumns];
        Expanded<T>::unpack(values.at, word, last);
        std::memcpy(static_cast<void*>(row + k), last, static_cast<size_t>(left) * sizeof(T));
      }
      values.advance(word);
    }
  }
}

template <class T>
constexpr PackedLinearKernels packed_kernels_of() {
  return {1, packed_arranged_floats<T>, packed_arrange<T>, packed_run<T>, packed_unpack<T>};
}

}  // namespace
}  // namespace sparsekernels
