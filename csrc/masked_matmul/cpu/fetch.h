// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Parts of matrices, of any dtype and strides and masked, as rows of floats or columns; and rows of floats stored.
// Compiled once per instruction set.
#pragma once

#include "masked_matmul/cpu/bits.h"

namespace sparsekernels {
namespace {

// 16 x 16 elements from (row, col) on, of which `rows` and `cols` are there; zeros behind them and where the mask says.
template <class T>
void load_square(const MaskedMatrix& m, int64_t row, int64_t col, int rows, int cols, Vec<float> (&square)[kLanes]) {
  const T* const from = static_cast<const T*>(m.data) + row * m.row_stride + col * m.col_stride;
  for (Vec<float>& one : square) one = Vec<float>::zero();
  if (m.col_stride == 1) {
    const uint32_t there = (1u << cols) - 1;
    for (int r = 0; r < rows; ++r) square[r] = Vec16<T>::load(from + r * m.row_stride, there);
  } else if (m.row_stride == 1) {
    const uint32_t there = (1u << rows) - 1;
    for (int c = 0; c < cols; ++c) square[c] = Vec16<T>::load(from + c * m.col_stride, there);
    transpose(square);
  } else {
    for (int r = 0; r < rows; ++r) {
      float lanes[kLanes] = {};
      for (int c = 0; c < cols; ++c) lanes[c] = widen(from[r * m.row_stride + c * m.col_stride]);
      square[r] = Vec<float>::load(lanes);
    }
  }
  if (m.mask.words != nullptr)
    for (int r = 0; r < rows; ++r) square[r] = only(lanes_at(m.mask, row + r, col), square[r]);
}

// Brings the lines of the 16 x 16 elements from (row, col) on to the cache. Lines that lie a page apart are not guessed
// by the processor.
template <class T>
inline void prefetch_square(const MaskedMatrix& m, int64_t row, int64_t col) {
  const T* const from = static_cast<const T*>(m.data) + row * m.row_stride + col * m.col_stride;
  const int64_t stride = m.col_stride == 1 ? m.row_stride : m.col_stride;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) __builtin_prefetch(from + i * stride);
}
constexpr int64_t kSquaresAhead = 3 * kLanes;

inline int at_most(int64_t count, int most) {
  return count < most ? static_cast<int>(count) : most;
}

// to[(r - row_begin) * stride + (c - col_begin)], zeros up to a multiple of 16 columns. col_begin is a multiple of 16.
template <class T>
void fetch(
    const MaskedMatrix& m, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end, float* to,
    int64_t stride) {
  if (m.col_stride == 1) {
    for (int64_t r = row_begin; r < row_end; ++r) {
      const T* const from = static_cast<const T*>(m.data) + r * m.row_stride;
      float* const row = to + (r - row_begin) * stride - col_begin;
      for (int64_t c = col_begin; c < col_end; c += kLanes) {
        uint32_t lanes = lanes_at(m.mask, r, c);
        if (c + kLanes > col_end) lanes &= (1u << (col_end - c)) - 1;
        (lanes == 0xffffu ? Vec16<T>::load(from + c) : Vec16<T>::load(from + c, lanes)).store(row + c);
      }
    }
    return;
  }
  for (int64_t r = row_begin; r < row_end; r += kLanes)
    for (int64_t c = col_begin; c < col_end; c += kLanes) {
      const int rows = at_most(row_end - r, kLanes);
      if (c + kSquaresAhead + kLanes <= col_end) prefetch_square<T>(m, r, c + kSquaresAhead);
      Vec<float> square[kLanes];
      load_square<T>(m, r, c, rows, at_most(col_end - c, kLanes), square);
      for (int i = 0; i < rows; ++i) square[i].store(to + (r - row_begin + i) * stride + c - col_begin);
    }
}

// to[(c - col_begin) * stride + (r - row_begin)], zeros up to a multiple of 16 rows. col_begin is a multiple of 16.
template <class T>
void fetch_transposed(
    const MaskedMatrix& m, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end, float* to,
    int64_t stride) {
  if (m.row_stride == 1 && m.mask.words == nullptr) {
    MaskedMatrix other = m;
    other.row_stride = m.col_stride, other.col_stride = 1;
    return fetch<T>(other, col_begin, col_end, row_begin, row_end, to, stride);
  }
  for (int64_t c = col_begin; c < col_end; c += kLanes)
    for (int64_t r = row_begin; r < row_end; r += kLanes) {
      const int cols = at_most(col_end - c, kLanes);
      if (r + kSquaresAhead + kLanes <= row_end) prefetch_square<T>(m, r + kSquaresAhead, c);
      Vec<float> square[kLanes];
      load_square<T>(m, r, c, at_most(row_end - r, kLanes), cols, square);
      transpose(square);
      for (int i = 0; i < cols; ++i) square[i].store(to + (c - col_begin + i) * stride + r - row_begin);
    }
}

// Whether rows can be read where they are.
template <class T>
bool is_plain(const MaskedMatrix&) {
  return false;
}
template <>
inline bool is_plain<float>(const MaskedMatrix& m) {
  return m.col_stride == 1 && m.mask.words == nullptr;
}

// from[i * stride + j], for `rows` rows and `cols` columns, to dest from (row, col) on; zero where the mask of dest
// says. rows: at most 16. Each of from's rows can be read up to a multiple of 16. col is a multiple of 16.
template <class T>
void put(
    const MaskedMatrix& dest, int64_t row, int64_t col, int rows, int64_t cols, const float* from, int64_t stride) {
  T* const to = static_cast<T*>(const_cast<void*>(dest.data)) + row * dest.row_stride + col * dest.col_stride;
  for (int64_t c = 0; c < cols; c += kLanes) {
    const int some = at_most(cols - c, kLanes);
    const uint32_t there = (1u << some) - 1;
    if (dest.col_stride == 1) {
      for (int r = 0; r < rows; ++r) {
        const Vec<float> value = only(lanes_at(dest.mask, row + r, col + c), Vec<float>::load(from + r * stride + c));
        T* const place = to + r * dest.row_stride + c;
        if (some == kLanes) {
          Vec16<T>::store(value, place);
        } else {
          Vec16<T>::store(value, place, there);
        }
      }
      continue;
    }
    Vec<float> square[kLanes];
    for (int r = 0; r < kLanes; ++r) square[r] = Vec<float>::zero();
    for (int r = 0; r < rows; ++r)
      square[r] = only(lanes_at(dest.mask, row + r, col + c), Vec<float>::load(from + r * stride + c));
    transpose(square);
    for (int i = 0; i < some; ++i) Vec16<T>::store(square[i], to + (c + i) * dest.col_stride, (1u << rows) - 1);
  }
}

template <class T>
void select_rows(const MaskedMatrix& m, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    T* const row = static_cast<T*>(const_cast<void*>(m.data)) + r * m.row_stride;
    for (int64_t c = 0; c < m.cols; c += kLanes) {
      const uint32_t left_out = ~lanes_at(m.mask, r, c) & ((1u << at_most(m.cols - c, kLanes)) - 1);
      if (left_out != 0) Vec16<T>::store(Vec<float>::zero(), row + c, left_out);
    }
  }
}

}  // namespace
}  // namespace sparsekernels
