// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Parts of masked products, in three ways. Compiled once per instruction set; docs/masked_products.md derives them.
//
// An element of the result is summed in an order that depends on its place and on the masks alone, never on the part
// that it is in or on threads.
#pragma once

#include "masked_matmul/cpu/parts.h"

namespace sparsekernels {
namespace {

#if defined(SPARSEKERNELS_AVX512)
constexpr int kRegisterRows = 8, kRegisterVectors = 16;
#elif defined(SPARSEKERNELS_AVX2)
constexpr int kRegisterRows = 2, kRegisterVectors = 4;  // a vector is two of 16 registers
#else
constexpr int kRegisterRows = 2, kRegisterVectors = 4;
#endif
constexpr int64_t kChain = 256;   // products that are summed one after another
constexpr int64_t kAhead = 96;    // of a row of a, that are prefetched
constexpr int64_t kFetched = 16;  // rows of b that are packed at a time

// sums[r][0..31] += sum over k in [begin, end) of rows[r][k] * b[k][0..31]
template <int R>
inline void multiply_tile(const float* const* rows, int64_t begin, int64_t end, const float* b, float* sums) {
  Vec<float> left[R], right[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) left[r] = right[r] = Vec<float>::zero();
  const float* of[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) of[r] = rows[r];
  for (int64_t from = begin; from < end; from += kLanes) {
    const int64_t to = from + kLanes < end ? from + kLanes : end;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(of[r] + from + kAhead);
    for (int64_t k = from; k < to; ++k) {
      const Vec<float> b0 = Vec<float>::load(b + k * kTileCols), b1 = Vec<float>::load(b + k * kTileCols + kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec<float> factor = Vec<float>::broadcast(of[r][k]);
        left[r] = fma(factor, b0, left[r]);
        right[r] = fma(factor, b1, right[r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    (Vec<float>::load(sums + r * kTileCols) + left[r]).store(sums + r * kTileCols);
    (Vec<float>::load(sums + r * kTileCols + kLanes) + right[r]).store(sums + r * kTileCols + kLanes);
  }
}

inline void multiply_run(const float* const* rows, int64_t begin, int64_t end, const float* b, float* sums) {
  for (int64_t k = begin; k < end; k += kChain) {
    const int64_t to = k + kChain < end ? k + kChain : end;
    for (int64_t r = 0; r < kTileRows; r += kRegisterRows)
      multiply_tile<kRegisterRows>(rows + r, k, to, b, sums + r * kTileCols);
  }
}

int64_t part_workspace(const MaskedProduct& product, Way way, int64_t cols) {
  const int64_t k = product.a.cols, n = padded(cols, kTileCols);
  switch (way) {
    case Way::kTiles:
      return n * k + kTileRows * padded(k, kLanes) + (n / kTileCols + 1) * (padded(divided(k, kRun), kLanes) + 2);
    case Way::kDots:
      return (n + kLanes) * padded(k, kLanes) + 2 * n;
    case Way::kRows:
      return n * k + (kLanes + 1) * padded(k, kLanes) + kLanes * n;
  }
  __builtin_trap();
}

template <class T>
void run_tiles(const MaskedProduct& product, const ProductPart& part, float* workspace) {
  const MaskedMatrix &a = product.a, &b = product.b, &dest = product.dest;
  const int64_t k_end = a.cols, runs = divided(k_end, kRun), run_stride = padded(runs, kLanes);
  const int64_t panels = divided(part.col_end - part.col_begin, kTileCols);
  float* const packed = workspace;  // [panel][k][32]
  float* const block = packed + panels * k_end * kTileCols;
  float* const flags = block + kTileRows * padded(k_end, kLanes);  // not 0: rows of b, [panel][run], and of a, [run]
  float* const a_flags = flags + panels * run_stride;
  uint64_t* const any = reinterpret_cast<uint64_t*>(a_flags + run_stride);  // a word for two panels
  const auto col_of = [&](int64_t panel) { return part.col_begin + panel * kTileCols; };
  const auto cols_of = [&](int64_t panel) {
    const int64_t left = part.col_end - col_of(panel);
    return left < kTileCols ? left : kTileCols;
  };

  find_runs(product, part, any, flags, run_stride);
  for (int64_t k = 0; k < k_end; k += kFetched) {
    const int64_t end = k + kFetched < k_end ? k + kFetched : k_end;
    for (int64_t panel = 0; panel < panels; ++panel) {
      if (flags[panel * run_stride + k / kRun] == 0.0f) continue;
      float* const to = packed + (panel * k_end + k) * kTileCols;
      const int64_t cols = cols_of(panel);
      if (end < k_end)
        prefetch_rows(b, sizeof(T), end, end + kFetched < k_end ? end + kFetched : k_end, col_of(panel), cols);
      fetch<T>(b, k, end, col_of(panel), col_of(panel) + cols, to, kTileCols);
      if (cols <= kLanes)
        for (int64_t i = 0; i < end - k; ++i) Vec<float>::zero().store(to + i * kTileCols + kLanes);
    }
  }

  alignas(kVectorBytes) float sums[kTileRows * kTileCols];
  for (int64_t row = part.row_begin; row < part.row_end; row += kTileRows) {
    const int count = at_most(part.row_end - row, static_cast<int>(kTileRows));
    const float* rows[kTileRows];
    bool fetched = false;
    any_of_rows(dest.mask, row, row + count, part.col_begin, part.col_end, any);
    const auto is_empty = [&](int64_t one) { return panel_bits(any, one) == 0; };
    for (int64_t panel = 0; panel < panels; ++panel) {
      if (is_empty(panel)) {
        const int64_t first = panel;
        while (panel + 1 < panels && is_empty(panel + 1)) ++panel;
        const int64_t cols = (panel - first) * kTileCols + cols_of(panel);
        put_zeros<T>(dest, row, col_of(first), count, cols);
        continue;
      }
      if (!fetched) {
        fetched = true;
        int64_t stride = a.row_stride;
        const float* from = static_cast<const float*>(a.data) + row * a.row_stride;
        if (!is_plain<T>(a)) {
          stride = padded(k_end, kLanes);
          fetch<T>(a, row, row + count, 0, k_end, block, stride);
          from = block;
        }
        for (int r = 0; r < kTileRows; ++r) rows[r] = from + (r < count ? r : count - 1) * stride;
        for (int64_t run = 0; run < runs; ++run)
          a_flags[run] = is_active(a.mask, row, row + count, run * kRun) ? 1.0f : 0.0f;
      }
      for (int64_t i = 0; i < kTileRows * kTileCols; i += kLanes) Vec<float>::zero().store(sums + i);
      const float* const of_panel = flags + panel * run_stride;
      const auto is_kept = [&](int64_t run) { return of_panel[run] != 0.0f && a_flags[run] != 0.0f; };
      for (int64_t run = 0; run < runs;) {
        if (!is_kept(run)) {
          ++run;
          continue;
        }
        const int64_t begin = run * kRun;
        while (run < runs && is_kept(run)) ++run;
        const int64_t end = run * kRun < k_end ? run * kRun : k_end;
        multiply_run(rows, begin, end, packed + panel * k_end * kTileCols, sums);
      }
      put<T>(dest, row, col_of(panel), count, cols_of(panel), sums, kTileCols);
    }
  }
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
  const int64_t cols = part.col_end - part.col_begin, k_end = a.cols, stride = padded(k_end, kLanes);
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
      dot_four(values, others, stride, found);
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
    const int64_t end = i + kChain < count ? i + kChain : count;
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
  if (way == Way::kTiles) return run_tiles<T>(product, part, workspace);
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

// Elements and tiles of tile_rows x 32 that a mask keeps, in rows [begin, end).
MaskCounts count_kept(MaskBits mask, int64_t begin, int64_t end, int64_t cols, int64_t tile_rows) {
  MaskCounts found;
  for (int64_t row = begin; row < end; row += tile_rows) {
    const int64_t last = row + tile_rows < end ? row + tile_rows : end;
    for (int64_t col = 0; col < cols; col += 64) {
      uint64_t any = 0;
      for (int64_t r = row; r < last; ++r) {
        const uint64_t word = mask.words[r * mask.row_words + col / 64];
        any |= word;
        found.elements += __builtin_popcountll(word);
      }
      found.tiles += (any << 32 != 0) + (any >> 32 != 0);
    }
  }
  return found;
}

constexpr MaskedKernels masked_kernels() {
  return {part_workspace, run_part, select_masked, pack_bools, transpose_bits, count_kept};
}

}  // namespace
}  // namespace sparsekernels
