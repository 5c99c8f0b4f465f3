// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masks as bits: packed from bools, transposed, asked. Compiled once per instruction set.
#pragma once

#include <cstring>

#include "base/vec16.h"
#include "masked_matmul/call.h"

namespace sparsekernels {
namespace {

inline void pack_bools(const uint8_t* bools, int64_t count, uint64_t* words) {
  int64_t i = 0;
#if defined(SPARSEKERNELS_AVX512)
  for (; i + 64 <= count; i += 64) {
    const __m512i bytes = _mm512_loadu_si512(bools + i);
    *words++ = _mm512_test_epi8_mask(bytes, bytes);
  }
  if (i < count) {
    const __m512i bytes = _mm512_maskz_loadu_epi8((uint64_t{1} << (count - i)) - 1, bools + i);
    *words++ = _mm512_test_epi8_mask(bytes, bytes);
  }
#else
  for (; i < count; i += 64) {
    uint64_t word = 0;
    const int64_t some = count - i < 64 ? count - i : 64;
    for (int64_t b = 0; b < some; ++b) word |= uint64_t{bools[i + b] != 0} << b;
    *words++ = word;
  }
#endif
}

// A square of 64 x 64 bits, to columns (Warren, Hacker's Delight, section 7-3).
inline void transpose_square(uint64_t (&square)[64]) {
  uint64_t kept = 0x00000000ffffffffu;
  for (int step = 32; step != 0; step >>= 1, kept ^= kept << step)
    for (int i = 0; i < 64; i = ((i | step) + 1) & ~step) {
      const uint64_t swapped = ((square[i] >> step) ^ square[i | step]) & kept;
      square[i] ^= swapped << step;
      square[i | step] ^= swapped;
    }
}

inline void transpose_bits(
    MaskBits mask, int64_t rows, int64_t begin, int64_t end, uint64_t* words, int64_t row_words) {
  for (int64_t column = begin; column < end; column += 64)
    for (int64_t row = 0; row < rows; row += 64) {
      uint64_t square[64] = {};
      const int64_t count = rows - row < 64 ? rows - row : 64;
      const uint64_t* const from = mask.words + row * mask.row_words + column / 64;
      for (int64_t i = 0; i < count; ++i) square[i] = from[i * mask.row_words];
      transpose_square(square);
      const int64_t some = end - column < 64 ? end - column : 64;
      for (int64_t i = 0; i < some; ++i) words[(column + i) * row_words + row / 64] = square[i];
    }
}

// 16 bits of a row from a column on that is a multiple of 16.
inline uint32_t lanes_at(MaskBits mask, int64_t row, int64_t column) {
  if (mask.words == nullptr) return 0xffffu;
  return mask.words[row * mask.row_words + column / 64] >> (column % 64) & 0xffffu;
}

// 32 bits of a row from a column on that is a multiple of 32.
inline uint32_t half_word(MaskBits mask, int64_t row, int64_t column) {
  return static_cast<uint32_t>(mask.words[row * mask.row_words + column / 64] >> (column % 64));
}

}  // namespace
}  // namespace sparsekernels
