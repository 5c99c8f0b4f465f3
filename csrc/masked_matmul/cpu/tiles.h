// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked products by register tiles of 8 rows x 32 columns. Compiled once per instruction set;
// docs/masked_products.md derives them.
//
// 256 rows of b are packed in panels of 32 columns, which stay in L2; 8 rows of a are copied to L1 and multiplied by
// each panel that they need. What comes from and goes to a cache that is far away, the next rows of a and the zeros of
// the result, is fetched and written a few lines at a time between multiply-adds.
#pragma once

#include "masked_matmul/cpu/parts.h"

namespace sparsekernels {
namespace {

#if defined(SPARSEKERNELS_AVX512)
constexpr int kRegisterRows = 8;
#else
constexpr int kRegisterRows = 2;
#endif
constexpr int64_t kChunk = 256;                       // products that are summed one after another
constexpr int64_t kStep = 16;                         // of k, between which something else is done
constexpr int64_t kMostDepth = 2 * kChunk;            // of b that is packed at a time
constexpr int64_t kTileStride = kMostDepth + kLanes;  // of rows of a in L1: in the matrix they may share a set of it
constexpr int64_t kPackedFloats = 1 << 18;            // of b: half of an L2 cache of 2 MB
constexpr int kMostZeros = 12;                        // lines

// Which panels of 32 columns the mask of dest keeps any of in each tile of 8 rows of a part.
class KeptTiles {
 public:
  // Words of 64 bits for a part: a bit for each panel, by tiles and of all of them.
  static int64_t words(int64_t rows, int64_t cols) {
    return (divided(rows, kTileRows) + 1) * divided(divided(cols, kTileCols), 64);
  }

  KeptTiles(MaskBits mask, const ProductPart& part, uint64_t* words)
      : tiles_(divided(part.row_end - part.row_begin, kTileRows)),
        panels_(divided(part.col_end - part.col_begin, kTileCols)),
        words_(divided(panels_, 64)),
        bits_(words) {
    for (int64_t i = 0; i < (tiles_ + 1) * words_; ++i) words[i] = 0;
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      const int64_t row = part.row_begin + tile * kTileRows;
      const int64_t end = row + kTileRows < part.row_end ? row + kTileRows : part.row_end;
      uint64_t* const bits = words + tile * words_;
      for (int64_t pair = 0; pair * 2 < panels_; ++pair) {
        uint64_t any = mask.words == nullptr ? ~uint64_t{0} : 0;
        for (int64_t r = row; r < end && mask.words != nullptr; ++r)
          any |= mask.words[r * mask.row_words + part.col_begin / 64 + pair];
        const uint64_t both = (any << 32 != 0 ? 1u : 0u) | (any >> 32 != 0 && pair * 2 + 1 < panels_ ? 2u : 0u);
        bits[pair / 32] |= both << (pair % 32 * 2);
      }
      for (int64_t w = 0; w < words_; ++w) {
        kept_ += __builtin_popcountll(bits[w]);
        words[tiles_ * words_ + w] |= bits[w];
      }
    }
  }

  int64_t kept() const { return kept_; }
  int64_t tiles() const { return tiles_; }
  int64_t panels() const { return panels_; }
  // The first panel from `from` on that a tile keeps, or does not; none: panels().
  int64_t next_panel(int64_t tile, int64_t from) const { return find(tile, from, 0); }
  int64_t next_empty(int64_t tile, int64_t from) const { return find(tile, from, ~uint64_t{0}); }
  // The first panel that any tile keeps.
  int64_t next_panel(int64_t from) const { return find(tiles_, from, 0); }
  // The first tile from `from` on that keeps any; none: tiles().
  int64_t next_tile(int64_t from) const {
    while (from < tiles_ && next_panel(from, 0) == panels_) ++from;
    return from;
  }

 private:
  // The first bit from `from` on that is not that of `others`.
  int64_t find(int64_t tile, int64_t from, uint64_t others) const {
    const uint64_t* const bits = bits_ + tile * words_;
    while (from < panels_) {
      const uint64_t left = (bits[from / 64] ^ others) >> (from % 64);
      if (left != 0) {
        from += __builtin_ctzll(left);
        return from < panels_ ? from : panels_;
      }
      from = (from / 64 + 1) * 64;
    }
    return panels_;
  }

  int64_t tiles_, panels_, words_, kept_ = 0;
  const uint64_t* bits_;
};

// Zeros where tiles are left out, a few lines at a time.
template <class T>
class ZeroCursor {
 public:
  ZeroCursor(const MaskedMatrix& dest, const ProductPart& part, const KeptTiles& kept) : kept_(kept), part_(part) {
    first_ = static_cast<T*>(const_cast<void*>(dest.data)) + part.row_begin * dest.row_stride +
             part.col_begin * dest.col_stride;
    stride_ = dest.row_stride;
    tiles_ = kept.tiles();
    lines_ =
        (tiles_ * kept.panels() - kept.kept()) * kTileRows * kTileCols * static_cast<int64_t>(sizeof(T)) / kLineBytes;
    if (dest.col_stride == 1) return;
    // transposed: at once
    for (; tile_ < tiles_; ++tile_) {
      const int64_t row = part.row_begin + tile_ * kTileRows;
      const int count = at_most(part.row_end - row, static_cast<int>(kTileRows));
      for (int64_t from = kept.next_empty(tile_, 0), to; from < kept.panels(); from = kept.next_empty(tile_, to)) {
        to = kept.next_panel(tile_, from);
        put_zeros<T>(dest, row, part.col_begin + from * kTileCols, count, cols_between(from, to));
      }
    }
    lines_ = 0;
  }

  int64_t lines() const { return lines_; }

  void write(int64_t lines) {
    for (; lines > 0; --lines) {
      if (at_ == end_ && !next()) return;
      constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(T));
      if (end_ - at_ >= kLine) {
        Vec<float>::zero().store(reinterpret_cast<float*>(at_));
        at_ += kLine;
      } else {
        std::memset(static_cast<void*>(at_), 0, static_cast<size_t>(end_ - at_) * sizeof(T));
        at_ = end_;
      }
    }
  }

  void finish() {
    for (; at_ != end_ || next(); at_ = end_)
      std::memset(static_cast<void*>(at_), 0, static_cast<size_t>(end_ - at_) * sizeof(T));
  }

 private:
  int64_t cols_between(int64_t from, int64_t to) const {
    const int64_t cols = part_.col_end - part_.col_begin;
    return (to * kTileCols < cols ? to * kTileCols : cols) - from * kTileCols;
  }
  bool next() {
    while (tile_ < tiles_) {
      panel_ = kept_.next_empty(tile_, panel_);
      if (panel_ < kept_.panels()) {
        const int64_t to = kept_.next_panel(tile_, panel_);
        at_ = first_ + row_ * stride_ + panel_ * kTileCols;
        end_ = at_ + cols_between(panel_, to);
        panel_ = to;
        return true;
      }
      panel_ = 0;
      if (++row_ == part_.row_end - part_.row_begin) {
        tile_ = tiles_;
      } else {
        tile_ = row_ / kTileRows;
      }
    }
    return false;
  }

  const KeptTiles& kept_;
  const ProductPart part_;
  T *first_, *at_ = nullptr, *end_ = nullptr;
  int64_t stride_, tiles_, lines_, tile_ = 0, row_ = 0, panel_ = 0;
};

// What is done between multiply-adds.
template <class T>
struct Between {
  const char* next_a = nullptr;  // 8 rows of a that come next; nullptr: none
  int64_t a_stride = 0;          // in bytes
  ZeroCursor<T>* zeros = nullptr;
  int64_t zero_lines = 0;  // for each step
};

// sums[r][0..31] (+)= sum over k < size of a[r][k] * b[k][0..31]
template <int R, class T>
inline void multiply_tile(
    const float* a, int64_t size, const float* b, float* sums, bool is_first, const Between<T>& between) {
  Vec<float> left[R], right[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) left[r] = right[r] = Vec<float>::zero();
  const auto multiply = [&] {
    const Vec<float> b0 = Vec<float>::load(b), b1 = Vec<float>::load(b + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<float> factor = Vec<float>::broadcast(a[r * kTileStride]);
      left[r] = fma(factor, b0, left[r]);
      right[r] = fma(factor, b1, right[r]);
    }
    ++a, b += kTileCols;
  };
  const char* next = between.next_a;
  int64_t k = 0;
  for (; k + kStep <= size; k += kStep) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) multiply();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      multiply();
      if (next != nullptr) __builtin_prefetch(next + j * between.a_stride);
    }
    if (next != nullptr) next += kStep * static_cast<int64_t>(sizeof(T));
    between.zeros->write(between.zero_lines);
  }
  for (; k < size; ++k) multiply();
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    float* const to = sums + r * kTileCols;
    (is_first ? left[r] : Vec<float>::load(to) + left[r]).store(to);
    (is_first ? right[r] : Vec<float>::load(to + kLanes) + right[r]).store(to + kLanes);
  }
}

// The tile as often as the registers of this instruction set ask for.
template <class T>
void multiply_rows(
    const float* a, int64_t size, const float* b, float* sums, bool is_first, const Between<T>& between) {
  for (int64_t r = 0; r < kTileRows; r += kRegisterRows)
    multiply_tile<kRegisterRows>(a + r * kTileStride, size, b, sums + r * kTileCols, is_first, between);
}

// The workspace of run_tiles, for parts of at most so many rows and columns.
struct TilesWorkspace {
  int64_t depth;  // rows of b that are packed at a time
  float* packed;  // [panel][depth][32]: b
  float* tile;    // [8][kTileStride]: a
  float* sums;    // [8][32] of each tile that is kept
  uint64_t* kept;
  int64_t floats = 0;

  // memory: nullptr to ask for the floats alone.
  TilesWorkspace(float* memory, int64_t rows, int64_t cols) {
    const auto take = [&](int64_t some) {
      float* const at = memory == nullptr ? nullptr : memory + floats;
      floats += padded(some, kLanes);
      return at;
    };
    depth = kPackedFloats / padded(cols, kTileCols) / kChunk * kChunk;
    depth = depth < kChunk ? kChunk : depth < kMostDepth ? depth : kMostDepth;
    packed = take(depth * padded(cols, kTileCols));
    tile = take(kTileRows * kTileStride);
    sums = take(padded(rows, kTileRows) * padded(cols, kTileCols));
    kept = reinterpret_cast<uint64_t*>(take(2 * KeptTiles::words(rows, cols)));
  }
};

// The same for floats that lie side by side, row by row, so that the processor sees what is read next.
inline void pack_lying(
    const MaskedMatrix& b, int64_t begin, int64_t end, const ProductPart& part, const KeptTiles& kept, int64_t depth,
    float* packed) {
  const float* const rows = static_cast<const float*>(b.data) + part.col_begin;
  for (int64_t k = begin; k < end; ++k) {
    const float* const row = rows + k * b.row_stride;
    const float* const next = rows + (k + 4 < end ? k + 4 : k) * b.row_stride;
    float* const to = packed + (k - begin) * kTileCols;
    for (int64_t line = 0; line < 4; ++line) __builtin_prefetch(next + line * kLanes);
    for (int64_t panel = kept.next_panel(0); panel < kept.panels(); panel = kept.next_panel(panel + 1)) {
      const float* const from = row + panel * kTileCols;
      Vec<float>::load(from).store(to + panel * depth * kTileCols);
      Vec<float>::load(from + kLanes).store(to + panel * depth * kTileCols + kLanes);
    }
  }
}

// 8 rows of a, of which `rows` are there: `size` of their elements, to rows of kTileStride.
inline void copy_tile(const float* from, int64_t stride, int rows, int64_t size, float* to) {
  for (int r = 0; r < kTileRows; ++r, to += kTileStride) {
    int64_t k = 0;
    for (; k + kLanes <= size; k += kLanes) Vec<float>::load(from + k).store(to + k);
    if (k < size) Vec16<float>::load(from + k, (1u << (size - k)) - 1).store(to + k);
    if (r + 1 < rows) from += stride;
  }
}

// Rows [begin, end) of b in the panels that are kept, to packed[panel][k - begin][32].
template <class T>
void pack_panels(
    const MaskedMatrix& b, int64_t begin, int64_t end, const ProductPart& part, const KeptTiles& kept, int64_t depth,
    float* packed) {
  if (is_plain<T>(b) && (part.col_end - part.col_begin) % kTileCols == 0)
    return pack_lying(b, begin, end, part, kept, depth, packed);
  constexpr int64_t kRows = 16;  // at a time: so many streams of lines
  for (int64_t k = begin; k < end; k += kRows) {
    const int64_t last = k + kRows < end ? k + kRows : end;
    for (int64_t panel = kept.next_panel(0); panel < kept.panels(); panel = kept.next_panel(panel + 1)) {
      const int64_t col = part.col_begin + panel * kTileCols;
      const int cols = at_most(part.col_end - col, static_cast<int>(kTileCols));
      float* const to = packed + (panel * depth + k - begin) * kTileCols;
      if (last < end) prefetch_rows(b, sizeof(T), last, last + kRows < end ? last + kRows : end, col, cols);
      fetch<T>(b, k, last, col, col + cols, to, kTileCols);
      for (int64_t i = 0; i < last - k && cols <= kLanes; ++i) Vec<float>::zero().store(to + i * kTileCols + kLanes);
    }
  }
}

template <class T>
void run_tiles(const MaskedProduct& product, const ProductPart& part, float* memory) {
  const MaskedMatrix &a = product.a, &b = product.b, &dest = product.dest;
  const TilesWorkspace own(memory, part.row_end - part.row_begin, part.col_end - part.col_begin);
  const KeptTiles kept(dest.mask, part, own.kept);
  ZeroCursor<T> zeros(dest, part, kept);
  const int64_t k_end = a.cols, steps = kept.kept() * divided(k_end, kStep);
  const bool is_masked = a.mask.words != nullptr || b.mask.words != nullptr;
  Between<T> between;
  between.a_stride = a.row_stride * static_cast<int64_t>(sizeof(T));
  between.zeros = &zeros;
  between.zero_lines = steps == 0 ? 0 : at_most(divided(zeros.lines(), steps), kMostZeros);
  int64_t begin = 0;
  do {  // once where there is nothing to add
    const int64_t end = begin + own.depth < k_end ? begin + own.depth : k_end;
    pack_panels<T>(b, begin, end, part, kept, own.depth, own.packed);
    float* sums = own.sums;
    for (int64_t tile = kept.next_tile(0), next; tile < kept.tiles(); tile = next) {
      next = kept.next_tile(tile + 1);
      const int64_t row = part.row_begin + tile * kTileRows;
      const int rows = at_most(part.row_end - row, static_cast<int>(kTileRows));
      const bool is_first = begin == 0, is_last = end == k_end;
      if (is_plain<T>(a)) {
        const float* const from = static_cast<const float*>(a.data) + row * a.row_stride + begin;
        copy_tile(from, a.row_stride, rows, end - begin, own.tile);
      } else {
        fetch<T>(a, row, row + rows, begin, end, own.tile, kTileStride);
      }
      if (a.col_stride == 1 && next < kept.tiles())
        between.next_a = static_cast<const char*>(a.data) + (next - tile) * kTileRows * between.a_stride +
                         row * between.a_stride + begin * static_cast<int64_t>(sizeof(T));
      for (int64_t panel = kept.next_panel(tile, 0); panel < kept.panels(); panel = kept.next_panel(tile, panel + 1)) {
        const int64_t col = part.col_begin + panel * kTileCols;
        const float* const of_b = own.packed + panel * own.depth * kTileCols;
        for (int64_t i = 0; i < kTileRows * kTileCols && is_first && (is_masked || k_end == 0); i += kLanes)
          Vec<float>::zero().store(sums + i);
        if (is_masked) {
          const auto is_kept = [&](int64_t k) {
            const int64_t to = k + kRun < end ? k + kRun : end;
            return is_active(a.mask, row, row + rows, k) && is_active(b.mask, k, to, col);
          };
          for (int64_t k = begin; k < end;) {
            const int64_t from = k;
            while (k < end && k < from + kChunk && is_kept(k)) k += kRun;
            const int64_t to = k < end ? k : end;
            if (to > from)
              multiply_rows(
                  own.tile + from - begin, to - from, of_b + (from - begin) * kTileCols, sums, false, between);
            if (k == from) k += kRun;
          }
        } else {
          for (int64_t k = begin; k < end; k += kChunk) {
            const int64_t some = k + kChunk < end ? kChunk : end - k;
            multiply_rows(
                own.tile + k - begin, some, of_b + (k - begin) * kTileCols, sums, is_first && k == 0, between);
            if (between.next_a != nullptr) between.next_a += kChunk * static_cast<int64_t>(sizeof(T));
          }
        }
        between.next_a = nullptr;
        if (is_last)
          put<T>(dest, row, col, rows, at_most(part.col_end - col, static_cast<int>(kTileCols)), sums, kTileCols);
        sums += kTileRows * kTileCols;
      }
    }
    begin = end;
  } while (begin < k_end);
  zeros.finish();
}

}  // namespace
}  // namespace sparsekernels
