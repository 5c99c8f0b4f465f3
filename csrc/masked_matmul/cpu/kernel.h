// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Parts of masked products, in three ways. Compiled once per instruction set; docs/masked_products.md derives them.
//
// An element of the result is summed in an order that depends on its place and on the masks alone, never on the part
// that it is in or on threads.
#pragma once

#include "masked_matmul/cpu/tiles.h"

namespace sparsekernels {
namespace {

#if defined(SPARSEKERNELS_AVX512)
constexpr int kRegisterVectors = 16;
#else
constexpr int kRegisterVectors = 4;
#endif

// From column to column where they are packed: an odd number of lines, else they share sets of the caches.
inline int64_t column_stride(int64_t k) {
  return (divided(k, kLanes) | 1) * kLanes;
}

int64_t part_workspace(const MaskedProduct& product, Way way, int64_t, int64_t cols) {
  const int64_t k = product.a.cols, n = padded(cols, kTileCols);
  switch (way) {
    case Way::kTiles:
      break;
    case Way::kDots:
      return (n + kLanes) * column_stride(k) + 2 * n;
    case Way::kRows:
      return n * k + (kLanes + 1) * padded(k, kLanes) + kLanes * n;
  }
  __builtin_trap();
}

// The dot products of a row with four others, to[0..3]; counts are multiples of 16.
inline void dot_four(const float* row, const float* const (&others)[4], int64_t count, float* to) {
  Vec<float> even[4], odd[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) even[i] = odd[i] = Vec<float>::zero();
  int64_t k = 0;
  for (; k + 2 * kLanes <= count; k += 2 * kLanes) {
    const Vec<float> first = Vec<float>::load(row + k), second = Vec<float>::load(row + k + kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      even[i] = fma(first, Vec<float>::load(others[i] + k), even[i]);
      odd[i] = fma(second, Vec<float>::load(others[i] + k + kLanes), odd[i]);
    }
  }
  if (k < count) {
    const Vec<float> first = Vec<float>::load(row + k);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) even[i] = fma(first, Vec<float>::load(others[i] + k), even[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) to[i] = sum(even[i] + odd[i]);
}

template <class T>
void run_dots(const MaskedProduct& product, const ProductPart& part, float* workspace) {
  const MaskedMatrix &a = product.a, &b = product.b, &dest = product.dest;
  const int64_t cols = part.col_end - part.col_begin, k_end = a.cols, stride = column_stride(k_end);
  float* const columns = workspace;              // [column][k]
  float* const block = columns + cols * stride;  // 16 rows of a
  float* const result = block + kLanes * stride;
  int32_t* const kept = reinterpret_cast<int32_t*>(result + padded(cols, kTileCols));
  fetch_transposed<T>(b, 0, k_end, part.col_begin, part.col_end, columns, stride);
  const bool in_place = is_plain<T>(a) && k_end % kLanes == 0;
  for (int64_t row = part.row_begin; row < part.row_end; ++row) {
    const int64_t within = (row - part.row_begin) % kLanes;
    if (!in_place && within == 0) fetch<T>(a, row, row + at_most(part.row_end - row, kLanes), 0, k_end, block, stride);
    int64_t count = 0;
    for (int64_t col = part.col_begin; col < part.col_end; col += 64) {
      uint64_t word = dest.mask.words[row * dest.mask.row_words + col / 64];
      const int32_t base = static_cast<int32_t>(col - part.col_begin);
      for (; word != 0; word &= word - 1) kept[count++] = base + __builtin_ctzll(word);
    }
    for (int64_t c = 0; c < cols; c += kLanes) Vec<float>::zero().store(result + c);
    const float* const values =
        in_place ? static_cast<const float*>(a.data) + row * a.row_stride : block + within * stride;
    if (in_place && row + 1 < part.row_end)
      for (int64_t k = 0; k < k_end; k += kLanes) __builtin_prefetch(values + a.row_stride + k);
    for (int64_t i = 0; i < count; i += 4) {
      const int some = at_most(count - i, 4);
      const float* others[4];
      for (int j = 0; j < 4; ++j) others[j] = columns + kept[i + (j < some ? j : some - 1)] * stride;
      float found[4];
      dot_four(values, others, padded(k_end, kLanes), found);
      for (int j = 0; j < some; ++j) result[kept[i + j]] = found[j];
    }
    put<T>(dest, row, part.col_begin, 1, cols, result, cols);
  }
}

// to[...] = sum over i of values[kept[i]] * b[kept[i]][...], for V vectors.
template <int V>
inline void add_rows(
    const float* values, const int32_t* kept, int64_t count, const float* b, int64_t stride, float* to) {
  Vec<float> total[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) total[v] = Vec<float>::zero();
  int64_t i = 0;
  do {
    const int64_t end = i + kChunk < count ? i + kChunk : count;
    Vec<float> sums[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[v] = Vec<float>::zero();
    for (; i < end; ++i) {
      const Vec<float> factor = Vec<float>::broadcast(values[kept[i]]);
      const float* const from = b + kept[i] * stride;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums[v] = fma(factor, Vec<float>::load(from + v * kLanes), sums[v]);
    }
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) total[v] = total[v] + sums[v];
  } while (i < count);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) total[v].store(to + v * kLanes);
}

template <class T>
void run_rows(const MaskedProduct& product, const ProductPart& part, float* workspace) {
  const MaskedMatrix &a = product.a, &b = product.b, &dest = product.dest;
  const int64_t cols = part.col_end - part.col_begin, k_end = a.cols, stride = padded(cols, kLanes);
  float* const rows_of_b = workspace;  // [k][column]
  const int64_t k_stride = padded(k_end, kLanes);
  float* const block = rows_of_b + k_end * stride;  // 16 rows of a
  int32_t* const kept = reinterpret_cast<int32_t*>(block + kLanes * k_stride);
  float* const result = block + (kLanes + 1) * k_stride;  // [16][column]
  fetch<T>(b, 0, k_end, part.col_begin, part.col_end, rows_of_b, stride);
  MaskedMatrix whole = a;  // what the mask leaves out is not read below
  whole.mask = {};
  for (int64_t first = part.row_begin; first < part.row_end; first += kLanes) {
    const int count = at_most(part.row_end - first, kLanes);
    const float* values = block;
    int64_t values_stride = k_stride;
    if (is_plain<T>(whole)) {
      values = static_cast<const float*>(a.data) + first * a.row_stride;
      values_stride = a.row_stride;
    } else {
      fetch<T>(whole, first, first + count, 0, k_end, block, k_stride);
    }
    for (int r = 0; r < count; ++r) {
      const int64_t row = first + r;
      const float* const of_row = values + r * values_stride;
      int64_t nonzeros = 0;
      for (int64_t word_at = 0; word_at * 64 < k_end; ++word_at) {
        uint64_t word = a.mask.words[row * a.mask.row_words + word_at];
        for (; word != 0; word &= word - 1)
          kept[nonzeros++] = static_cast<int32_t>(word_at * 64) + __builtin_ctzll(word);
      }
      float* const to = result + r * stride;
      int64_t c = 0;
      for (; c + kRegisterVectors * kLanes <= stride; c += kRegisterVectors * kLanes)
        add_rows<kRegisterVectors>(of_row, kept, nonzeros, rows_of_b + c, stride, to + c);
      for (; c + 4 * kLanes <= stride; c += 4 * kLanes)
        add_rows<4>(of_row, kept, nonzeros, rows_of_b + c, stride, to + c);
      for (; c < stride; c += kLanes) add_rows<1>(of_row, kept, nonzeros, rows_of_b + c, stride, to + c);
    }
    put<T>(dest, first, part.col_begin, count, cols, result, stride);
  }
}

template <class T>
void run_part_of(const MaskedProduct& product, Way way, const ProductPart& part, float* workspace) {
  if (way == Way::kDots) return run_dots<T>(product, part, workspace);
  run_rows<T>(product, part, workspace);
}

void run_part(const MaskedProduct& product, Way way, const ProductPart& part, float* workspace) {
  if (product.dtype == DType::kBFloat16) return run_part_of<BFloat16>(product, way, part, workspace);
  if (product.dtype == DType::kFloat16) return run_part_of<Float16>(product, way, part, workspace);
  run_part_of<float>(product, way, part, workspace);
}

void select_masked(const MaskedMatrix& matrix, DType dtype, int64_t begin, int64_t end) {
  if (dtype == DType::kBFloat16) return select_rows<BFloat16>(matrix, begin, end);
  if (dtype == DType::kFloat16) return select_rows<Float16>(matrix, begin, end);
  select_rows<float>(matrix, begin, end);
}

void pack_part(
    const MaskedProduct& product, int64_t col_begin, int64_t col_end, int64_t begin, int64_t end, float* packed) {
  if (product.dtype == DType::kBFloat16) return pack_tiles<BFloat16>(product, col_begin, col_end, begin, end, packed);
  if (product.dtype == DType::kFloat16) return pack_tiles<Float16>(product, col_begin, col_end, begin, end, packed);
  pack_tiles<float>(product, col_begin, col_end, begin, end, packed);
}

void run_packed(const MaskedProduct& product, const ProductPart& part, const float* packed, float* workspace) {
  if (product.dtype == DType::kBFloat16) return run_tiles<BFloat16>(product, part, packed, workspace);
  if (product.dtype == DType::kFloat16) return run_tiles<Float16>(product, part, packed, workspace);
  run_tiles<float>(product, part, packed, workspace);
}

// Elements and tiles of tile_rows x 32 that a mask keeps, in rows [begin, end).
MaskCounts count_kept(
    MaskBits mask, int64_t begin, int64_t end, int64_t cols, int64_t tile_rows, uint64_t* map, int64_t map_row_words) {
  constexpr int64_t kWords = 32;  // a word of the map
  MaskCounts found;
  const int64_t words = divided(cols, 64);
  for (int64_t row = begin; row < end; row += tile_rows) {
    const int64_t last = row + tile_rows < end ? row + tile_rows : end;
    for (int64_t word = 0; word < words; word += kWords) {
      const int64_t some = word + kWords < words ? kWords : words - word;
      uint64_t any[kWords] = {};
      for (int64_t r = row; r < last; ++r) {
        const uint64_t* const from = mask.words + r * mask.row_words + word;
        for (int64_t w = 0; w < some; ++w) {
          any[w] |= from[w];
          found.elements += __builtin_popcountll(from[w]);
        }
      }
      uint64_t tiles = 0;
      for (int64_t w = 0; w < some; ++w)
        tiles |= ((any[w] << 32 != 0 ? uint64_t{1} : 0) | (any[w] >> 32 != 0 ? uint64_t{2} : 0)) << (2 * w);
      found.tiles += __builtin_popcountll(tiles);
      if (map != nullptr) map[row / tile_rows * map_row_words + word / kWords] = tiles;
    }
  }
  return found;
}

constexpr MaskedKernels masked_kernels() {
  return {part_workspace, run_part,   pack_part,      tiles_workspace, run_packed,
          select_masked,  pack_bools, transpose_bits, count_kept};
}

}  // namespace
}  // namespace sparsekernels
