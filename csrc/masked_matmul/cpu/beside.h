// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What is done between the multiply-adds of register tiles: lines that come next are brought to the L2 cache, and zeros
// of the result are written. Compiled once per instruction set.
//
// That hides them only where lines follow each other through whole pages: with 1 or 2 KB of each page a line takes 3 to
// 4 ns beside multiply-adds, with all of it less than 0.5 (docs/decisions.md#masked-pages).
#pragma once

#include "masked_matmul/cpu/kept_tiles.h"

namespace sparsekernels {
namespace {

constexpr int64_t kStep = 16;  // of k, after which some lines are touched

constexpr int64_t kMostRate = 16;

// Lines for each of so many steps.
inline int64_t rate_of(int64_t lines, int64_t steps) {
  if (steps == 0) return 0;
  return divided(lines, steps) < kMostRate ? divided(lines, steps) : kMostRate;
}

// Lines that are brought to the cache, one behind the other.
struct Lines {
  const char* at = nullptr;
  int64_t left = 0, rate = 0;  // for each step

  inline __attribute__((always_inline)) void touch() {
    if (left <= 0) return;
    for (int64_t i = 0; i < rate; ++i) __builtin_prefetch(at + i * kLineBytes, 0, 2);
    at += rate * kLineBytes;
    left -= rate;
  }
};

// The same of rows.
struct Rows {
  const char *at = nullptr, *end = nullptr;
  int64_t row_bytes = 0, stride = 0;  // of a row, and from row to row
  int64_t rows = 0;                   // behind this one
  int64_t rate = 0;                   // for each step

  // `count` rows of a matrix whose columns lie side by side, in so many steps.
  void start(const MaskedMatrix& m, int64_t row, int64_t count, int64_t cols, int64_t element, int64_t steps) {
    row_bytes = cols * element, stride = m.row_stride * element, rows = count - 1;
    at = static_cast<const char*>(m.data) + row * stride;
    end = at + row_bytes;
    rate = rate_of(count * divided(row_bytes, kLineBytes), steps);
  }
  inline __attribute__((always_inline)) void touch() {
    for (int64_t i = 0; i < rate; ++i) {
      if (at >= end) {
        if (rows == 0) return;
        --rows;
        end += stride;
        at = end - row_bytes;
      }
      __builtin_prefetch(at, 0, 2);
      at += kLineBytes;
    }
  }
};

// Zeros of up to 32 rows of dest where tiles are left out, row by row.
struct Zeros {
  char *at = nullptr, *end = nullptr;
  char* row = nullptr;  // that is written, from the first column of the part on
  int64_t rows = 0, next = 0, stride = 0, row_bytes = 0, panel_bytes = 0;
  int64_t rate = 0;                            // lines for each step
  uint64_t empty[kPartRows / kTileRows] = {};  // the panels that each tile row leaves out
  uint64_t left = 0;                           // of these in this row

  void start(
      const MaskedMatrix& dest, int64_t first, int64_t col_begin, int64_t col_end, int64_t count, int64_t element) {
    row = static_cast<char*>(const_cast<void*>(dest.data)) + (first * dest.row_stride + col_begin) * element;
    rows = count, stride = dest.row_stride * element;
    row_bytes = (col_end - col_begin) * element, panel_bytes = kTileCols * element;
  }
  // Goes to the next run of empty panels. Inline: a call would cost saving all the sums.
  inline __attribute__((always_inline)) bool advance() {
    while (left == 0) {
      if (next == rows) return false;
      if (next > 0) row += stride;
      left = empty[next / kTileRows];
      ++next;
    }
    const int panel = lowest(left);
    const uint64_t others = ~(left >> panel);
    const int to = others == 0 ? 64 : panel + lowest(others);
    left &= to >= 64 ? 0 : ~uint64_t{0} << to;
    at = row + panel * panel_bytes;
    end = row + (to * panel_bytes < row_bytes ? to * panel_bytes : row_bytes);
    return true;
  }
  __attribute__((noinline)) void clear() {
    std::memset(at, 0, static_cast<size_t>(end - at));
    at = end;
  }
  inline __attribute__((always_inline)) void write() {
    constexpr int64_t kAhead = 32 * kLineBytes;
    for (int64_t i = 0; i < rate; ++i) {
      if (end - at < kLineBytes) {
        if (__builtin_expect(at != end, 0)) clear();
        if (!advance()) return;
        continue;
      }
      Vec<float>::zero().store(reinterpret_cast<float*>(at));
      __builtin_prefetch(at + kAhead, 1, 3);
      at += kLineBytes;
    }
  }
  void finish() {
    if (at != end) clear();
    while (advance()) clear();
  }
};

// Rates are set so that all is done when the tiles are.
struct Beside {
  Lines b;
  Rows a;
  Zeros zeros;

  inline __attribute__((always_inline)) void step() {
    b.touch();
    a.touch();
    zeros.write();
  }
};

}  // namespace
}  // namespace sparsekernels
