// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the ways of computing a part share. Compiled once per instruction set.
#pragma once

#include "masked_matmul/cpu/fetch.h"

namespace sparsekernels {
namespace {

// Whether any of these rows of a mask has a bit in 32 columns.
inline bool is_active(MaskBits mask, int64_t row_begin, int64_t row_end, int64_t col) {
  if (mask.words == nullptr) return true;
  uint32_t any = 0;
  for (int64_t r = row_begin; r < row_end; ++r) any |= half_word(mask, r, col);
  return any != 0;
}

inline int64_t divided(int64_t count, int64_t by) {
  return (count + by - 1) / by;
}

// Zeros in [col, col + cols) of rows of dest.
template <class T>
void put_zeros(const MaskedMatrix& dest, int64_t row, int64_t col, int rows, int64_t cols) {
  T* const to = static_cast<T*>(const_cast<void*>(dest.data)) + row * dest.row_stride + col * dest.col_stride;
  if (dest.col_stride == 1) {
    for (int r = 0; r < rows; ++r) std::memset(to + r * dest.row_stride, 0, static_cast<size_t>(cols) * sizeof(T));
  } else {
    for (int64_t c = 0; c < cols; ++c) std::memset(to + c * dest.col_stride, 0, static_cast<size_t>(rows) * sizeof(T));
  }
}

// any[w] = the bits of word w of the columns from col_begin on, a multiple of 64, that any of these rows has.
inline void any_of_rows(
    MaskBits mask, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end, uint64_t* any) {
  const int64_t words = divided(col_end - col_begin, 64);
  for (int64_t w = 0; w < words; ++w) any[w] = mask.words == nullptr ? ~uint64_t{0} : 0;
  if (mask.words == nullptr) return;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const uint64_t* const row = mask.words + r * mask.row_words + col_begin / 64;
    for (int64_t w = 0; w < words; ++w) any[w] |= row[w];
  }
}

// The bits of a panel of 32 columns in such words.
inline uint32_t panel_bits(const uint64_t* any, int64_t panel) {
  return static_cast<uint32_t>(any[panel / 2] >> (panel % 2 * kTileCols));
}

// Which runs of k each panel of 32 columns needs, flags[panel * stride + run]: not 0, where the mask of dest keeps any
// of the panel in this part, and that of b any of the run. any: a word for each 64 columns.
inline void find_runs(
    const MaskedProduct& product, const ProductPart& part, uint64_t* any, float* flags, int64_t stride) {
  const int64_t k_end = product.a.cols, panels = divided(part.col_end - part.col_begin, kTileCols);
  any_of_rows(product.dest.mask, part.row_begin, part.row_end, part.col_begin, part.col_end, any);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const bool needed = panel_bits(any, panel) != 0;
    for (int64_t run = 0; run * kRun < k_end; ++run) flags[panel * stride + run] = needed ? 1.0f : 0.0f;
  }
  if (product.b.mask.words == nullptr) return;
  for (int64_t run = 0; run * kRun < k_end; ++run) {
    const int64_t end = (run + 1) * kRun < k_end ? (run + 1) * kRun : k_end;
    any_of_rows(product.b.mask, run * kRun, end, part.col_begin, part.col_end, any);
    for (int64_t panel = 0; panel < panels; ++panel)
      if (panel_bits(any, panel) == 0) flags[panel * stride + run] = 0.0f;
  }
}

// Brings rows of b, as far as they lie side by side, to the cache.
inline void prefetch_rows(
    const MaskedMatrix& m, int64_t element, int64_t row, int64_t row_end, int64_t col, int64_t cols) {
  if (m.col_stride != 1) return;
  const char* from = static_cast<const char*>(m.data) + (row * m.row_stride + col) * element;
  for (int64_t r = row; r < row_end; ++r, from += m.row_stride * element)
    for (int64_t byte = 0; byte < cols * element; byte += kLineBytes) __builtin_prefetch(from + byte);
}

}  // namespace
}  // namespace sparsekernels
