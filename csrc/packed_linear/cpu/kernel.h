// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A few rows by a weight of bits and nonzeros, in float32: 64 columns of an output at a time, whose nonzeros are
// expanded to vectors, each of which stays in registers for up to four rows of the input. Compiled once per instruction
// set, as vec.h is; with SPARSEKERNELS_VBMI2_KERNELS where the processor expands elements of 16 bits.
#pragma once

#include "packed_linear/cpu/expand.h"
#if defined(SPARSEKERNELS_AVX2)
#include "packed_linear/cpu/panels.h"
#endif

namespace sparsekernels {
namespace {

constexpr int kMostRowsAtOnce = 4;

// Sums of a row that are added up side by side, so that none waits for the one before, as registers allow.
template <int kRows>
constexpr int chains() {
#if defined(SPARSEKERNELS_AVX2)
  return kRows <= 2 ? 2 : 1;
#else
  return kWordVectors;
#endif
}

template <class T>
int64_t packed_arranged_floats(const PackedLinear& call) {
  return call.rows * call.padded_columns();
}

// Where 64 elements of a row of the input begin, of which column k is the first.
inline int64_t arranged_at(const PackedLinear& call, int64_t row, int64_t k) {
#if defined(SPARSEKERNELS_AVX2)
  if (goes_by_panels(call)) return (k / kPanelColumns * call.rows + row) * kPanelColumns + k % kPanelColumns;
#endif
  return row * call.padded_columns() + k;
}

// All bits set: what `expand` makes of 64 elements of the input is their order.
template <class T>
void packed_arrange(const PackedLinear& call, float* arranged) {
  const int64_t padded = call.padded_columns();
  for (int64_t row = 0; row < call.rows; ++row) {
    const T* const from = static_cast<const T*>(call.input) + row * call.columns;
    for (int64_t k = 0; k < padded; k += kWordColumns) {
      float* const to = arranged + arranged_at(call, row, k);
      const int64_t left = call.columns - k;
      Vec<float> vectors[kWordVectors];
      if (left >= kWordColumns) {
        Expanded<T>::expand(from + k, ~uint64_t{0}, vectors);
      } else {
        T last[kWordColumns] = {};
        if (left > 0) std::memcpy(static_cast<void*>(last), from + k, static_cast<size_t>(left) * sizeof(T));
        Expanded<T>::expand(last, ~uint64_t{0}, vectors);
      }
      for (int i = 0; i < kWordVectors; ++i) vectors[i].store(to + i * kLanes);
    }
  }
}

inline Vec<float> sum_of(const Vec<float> (&sums)[1]) {
  return sums[0];
}
inline Vec<float> sum_of(const Vec<float> (&sums)[2]) {
  return sums[0] + sums[1];
}
inline Vec<float> sum_of(const Vec<float> (&sums)[4]) {
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// kRows rows of the input from `first` on, at one output.
template <class T, int kRows>
void packed_output(const PackedLinear& call, const float* arranged, int64_t first, int64_t output) {
  const int64_t padded = call.padded_columns();
  const uint64_t* const words = call.words + output * call.row_words;
  const float* const input = arranged + first * padded;
  constexpr int kChains = chains<kRows>();
  Vec<float> sums[kRows][kChains];
  for (auto& row : sums)
    for (Vec<float>& one : row) one = Vec<float>::zero();
  Values<T> values(call, output);
  for (int64_t i = 0; i < call.row_words; ++i) {
    const uint64_t word = words[i];
    __builtin_prefetch(reinterpret_cast<const char*>(words + i) + kBytesAhead);
    values.prefetch();
    each_expanded(values.at, word, [&](int v, Vec<float> weights) {
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        Vec<float>& to = sums[row][v % kChains];
        to = fma(weights, Vec<float>::load(input + row * padded + i * kWordColumns + v * kLanes), to);
      }
    });
    values.advance(word);
  }
  const float bias = call.bias == nullptr ? 0.0f : widen(static_cast<const T*>(call.bias)[output]);
  for (int row = 0; row < kRows; ++row) {
    narrow(sum(sum_of(sums[row])) + bias, static_cast<T*>(call.output)[(first + row) * call.outputs + output]);
  }
}

template <class T>
void packed_run(const PackedLinear& call, const float* arranged, int64_t begin, int64_t end) {
#if defined(SPARSEKERNELS_AVX2)
  if (goes_by_panels(call)) return panel_run<T>(call, arranged, begin, end);
#endif
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
