// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked products in bfloat16 on the tiles of AMX, compiled with the flags that CMakeLists.txt gives to this file.
//
// 32 x 32 sums are 2 x 2 tile registers, so that four tile products of 16 cycles share four loads: of 16 rows of a, as
// they lie, and of 32 rows of b in pairs, packed. docs/masked_products.md has the rest.
#define SPARSEKERNELS_AVX512
#include "base/amx_tiles.h"
#include "masked_matmul/cpu/beside.h"

#include "masked_matmul/amx.h"

namespace sparsekernels {
namespace {

constexpr int64_t kSide = 32;  // of the sums, and of a run
constexpr int64_t kPackedFloats = kSide * kSide / 2;
constexpr int64_t kTimesInPlace = 4;  // panels that rows of a are read for where they lie

void configure() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, kVectorBytes);
  config.load();
}

// `count` lowest bits, at most 32.
inline uint32_t first_bits(int64_t count) {
  return count >= 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
}

// The bits of 32 columns in a row of a mask, of which `cols` are there.
inline uint32_t kept_of(MaskBits mask, int64_t row, int64_t col, int64_t cols) {
  return first_bits(cols) & (mask.words == nullptr ? ~uint32_t{0} : half_word(mask, row, col));
}

inline const BFloat16* place_of(const MaskedMatrix& m, int64_t row, int64_t col) {
  return static_cast<const BFloat16*>(m.data) + row * m.row_stride + col * m.col_stride;
}

// 16 x 16 pairs of elements.
using Pairs = __m512i[kLanes];

inline void transpose_pairs(Pairs& pairs) {
  Vec<float> rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i].v = _mm512_castsi512_ps(pairs[i]);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) pairs[i] = _mm512_castps_si512(rows[i].v);
}

// Two rows of b, k and k + 1 as far as they are there, at 32 columns: their pairs to the two tiles of a panel.
inline void pack_pair(const MaskedMatrix& b, int64_t k, int64_t col, int64_t cols, float* to) {
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  const auto row = [&](int64_t at) {
    if (at >= b.rows) return _mm512_setzero_si512();
    const uint32_t kept = kept_of(b.mask, at, col, cols);
    const __m512i there = kept == ~uint32_t{0} ? _mm512_loadu_si512(place_of(b, at, col))
                                               : _mm512_maskz_loadu_epi16(kept, place_of(b, at, col));
    return _mm512_permutexvar_epi64(order, there);
  };
  const __m512i first = row(k), second = row(k + 1);
  constexpr int64_t kRowsAhead = 4;
  if (k + kRowsAhead + 1 < b.rows) {
    __builtin_prefetch(place_of(b, k + kRowsAhead, col));
    __builtin_prefetch(place_of(b, k + kRowsAhead + 1, col));
  }
  _mm512_storeu_si512(to, _mm512_unpacklo_epi16(first, second));
  _mm512_storeu_si512(to + kPackedFloats / 2, _mm512_unpackhi_epi16(first, second));
}

// 32 rows of b from k on at 32 columns, whose columns lie side by side: two tiles [16 pairs of rows][16 columns][2].
void pack_columns(const MaskedMatrix& b, int64_t k, int64_t col, int64_t cols, float* to) {
  const uint32_t there = first_bits(b.rows - k);
  for (int64_t c = 0; c < cols && k + kSide < b.rows; ++c) __builtin_prefetch(place_of(b, k + kSide, col + c));
  for (int half = 0; half < 2; ++half, to += kPackedFloats / 2) {
    Pairs pairs;
    for (int c = 0; c < kLanes; ++c)
      pairs[c] = half * kLanes + c < cols ? _mm512_maskz_loadu_epi16(there, place_of(b, k, col + half * kLanes + c))
                                          : _mm512_setzero_si512();
    transpose_pairs(pairs);
    for (int64_t i = 0; i < kLanes; ++i) {
      __m512i pair = pairs[i];
      if (b.mask.words != nullptr) {
        const auto kept = [&](int64_t at) {
          return static_cast<__mmask16>(at < b.rows ? kept_of(b.mask, at, col, cols) >> (half * kLanes) : 0);
        };
        const __m512i low = _mm512_maskz_and_epi32(kept(k + 2 * i), pair, _mm512_set1_epi32(0xffff));
        const __m512i high = _mm512_maskz_and_epi32(kept(k + 2 * i + 1), pair, _mm512_set1_epi32(~0xffff));
        pair = _mm512_or_si512(low, high);
      }
      _mm512_storeu_si512(to + i * kLanes, pair);
    }
  }
}

// 32 rows of b from k on at `cols` columns of any strides. rows: [32][32], to work in.
void pack_any(const MaskedMatrix& b, int64_t k, int64_t col, int64_t cols, float* rows, float* to) {
  for (int64_t i = 0; i < kSide * kSide; i += kLanes) Vec<float>::zero().store(rows + i);
  fetch<BFloat16>(b, k, k + at_most(b.rows - k, kSide), col, col + cols, rows, kSide);
  const auto bits = [&](int64_t row, int half) {
    return _mm512_srli_epi32(_mm512_castps_si512(Vec<float>::load(rows + row * kSide + half * kLanes).v), 16);
  };
  for (int half = 0; half < 2; ++half)
    for (int pair = 0; pair < kLanes; ++pair)
      _mm512_storeu_si512(
          to + (half * kLanes + pair) * kLanes,
          _mm512_or_si512(bits(2 * pair, half), _mm512_slli_epi32(bits(2 * pair + 1, half), 16)));
}

// What of b the flags ask for, of panels of a part: [panel][run][2 tiles].
void pack_panels(
    const MaskedMatrix& b, const ProductPart& part, const float* flags, int64_t run_stride, float* rows,
    float* packed) {
  const int64_t runs = divided(b.rows, kSide), panels = divided(part.col_end - part.col_begin, kSide);
  for (int64_t run = 0; run < runs; ++run) {
    // rows that lie as such are read from end to end, two at a time
    const int64_t times = b.col_stride == 1 ? kLanes : 1;
    for (int64_t i = 0; i < times; ++i)
      for (int64_t panel = 0; panel < panels; ++panel) {
        if (flags[panel * run_stride + run] == 0.0f) continue;
        const int64_t k = run * kSide, col = part.col_begin + panel * kSide;
        const int64_t cols = at_most(part.col_end - col, kSide);
        float* const to = packed + (panel * runs + run) * kPackedFloats;
        if (b.col_stride == 1) {
          pack_pair(b, k + 2 * i, col, cols, to + i * kLanes);
        } else if (b.row_stride == 1) {
          pack_columns(b, k, col, cols, to);
        } else {
          pack_any(b, k, col, cols, rows, to);
        }
      }
  }
}

// 16 rows of a from `row` on, of which `count` are there, zeros behind them: to[run][row][32], tiles that lie one
// behind the other. As they lie in a rows share sets of the caches.
void fetch_rows(const MaskedMatrix& a, int64_t row, int count, float* rows, BFloat16* to) {
  const int64_t runs = divided(a.cols, kSide), stride = runs * kSide;
  if (a.col_stride == 1) {
    for (int r = 0; r < kLanes; ++r)
      for (int64_t run = 0; run < runs; ++run) {
        const uint32_t kept = r < count ? kept_of(a.mask, row + r, run * kSide, a.cols - run * kSide) : 0;
        const __m512i there = kept == ~uint32_t{0} ? _mm512_loadu_si512(place_of(a, row + r, run * kSide))
                                                   : _mm512_maskz_loadu_epi16(
                                                         kept, place_of(a, row + at_most(r, count - 1), run * kSide));
        _mm512_storeu_si512(to + run * kSide * kSide + r * kSide, there);
      }
    return;
  }
  if (a.row_stride != 1) {
    std::memset(rows, 0, static_cast<size_t>(kLanes * stride) * sizeof(float));
    if (count > 0) fetch<BFloat16>(a, row, row + count, 0, a.cols, rows, stride);
    for (int64_t r = 0; r < kLanes; ++r)
      for (int64_t k = 0; k < stride; k += kLanes)
        Vec16<BFloat16>::store(
            Vec<float>::load(rows + r * stride + k), to + k / kSide * kSide * kSide + r * kSide + k % kSide);
    return;
  }
  for (int64_t run = 0; run < runs; ++run) {  // its columns lie side by side
    const auto column = [&](int64_t at) {
      if (at >= a.cols || count <= 0) return _mm512_setzero_si512();
      const __mmask16 there = static_cast<__mmask16>(first_bits(count));
      return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, place_of(a, row, at)));
    };
    const int64_t k = run * kSide;
    // lines of columns lie far apart, where the processor does not guess the next ones
    for (int64_t i = k + kSide; i < k + 2 * kSide && i < a.cols; ++i) __builtin_prefetch(place_of(a, row, i));
    Pairs pairs;
    for (int64_t i = 0; i < kLanes; ++i)
      pairs[i] = _mm512_or_si512(column(k + 2 * i), _mm512_slli_epi32(column(k + 2 * i + 1), 16));
    transpose_pairs(pairs);
    for (int r = 0; r < kLanes; ++r) {
      const uint32_t kept = r < count ? kept_of(a.mask, row + r, k, a.cols - k) : 0;
      _mm512_storeu_si512(to + run * kSide * kSide + r * kSide, _mm512_maskz_mov_epi16(kept, pairs[r]));
    }
  }
}

// Which of the four tiles of 16 x 16 of 32 x 32 elements of a mask are kept: bit 2 * (lower) + (right).
inline unsigned kept_tiles(MaskBits mask, int64_t row, int count, int64_t col) {
  if (mask.words == nullptr) return 15;
  uint32_t upper = 0, lower = 0;
  for (int r = 0; r < count; ++r) (r < kLanes ? upper : lower) |= half_word(mask, row + r, col);
  return ((upper & 0xffffu) != 0 ? 1u : 0u) | (upper >> 16 != 0 ? 2u : 0u) | ((lower & 0xffffu) != 0 ? 4u : 0u) |
         (lower >> 16 != 0 ? 8u : 0u);
}

int64_t amx_workspace(const MaskedProduct& product, int64_t, int64_t cols) {
  const int64_t runs = divided(product.a.cols, kSide), panels = divided(cols, kSide);
  const int64_t packed = (panels + 1) * runs * kPackedFloats, flags = (panels + 1) * (padded(runs, kLanes) + 2);
  return packed + flags + kLanes * runs * kSide + 2 * kSide * kSide;
}

// The operands of one block of sums: rows of a, and b packed.
struct Block {
  const BFloat16* a;
  int64_t a_stride, a_run;         // in elements, from row to row and from run to run
  const float* b;                  // [run][2 tiles]
  const float *a_flags, *b_flags;  // by run
  int64_t runs;

  Beside* beside;

  template <class Step>
  void for_runs(Step step) const {
    for (int64_t run = 0; run < runs; ++run) {
      beside->step();
      if (a_flags[run] != 0.0f && b_flags[run] != 0.0f) step(a + run * a_run, b + run * kPackedFloats);
    }
  }
};

void multiply_four(const Block& block, float* sums) {
  const int64_t stride = 2 * block.a_stride, lower = kLanes * block.a_stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  block.for_runs([&](const BFloat16* a, const float* b) {
    load_tile<4>(a, stride);
    load_tile<6>(b, kVectorBytes);
    load_tile<7>(b + kPackedFloats / 2, kVectorBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    load_tile<5>(a + lower, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  });
  constexpr int64_t kBytes = kSide * sizeof(float);
  store_tile<0>(sums, kBytes);
  store_tile<1>(sums + kLanes, kBytes);
  store_tile<2>(sums + 16 * kSide, kBytes);
  store_tile<3>(sums + 16 * kSide + kLanes, kBytes);
}

void multiply_one(const Block& block, int lower, int right, float* sums) {
  const int64_t stride = 2 * block.a_stride, from_a = lower * kLanes * block.a_stride,
                from_b = right * kPackedFloats / 2;
  _tile_zero(0);
  block.for_runs([&](const BFloat16* a, const float* b) {
    load_tile<4>(a + from_a, stride);
    load_tile<6>(b + from_b, kVectorBytes);
    _tile_dpbf16ps(0, 4, 6);
  });
  store_tile<0>(sums + lower * 16 * kSide + right * kLanes, kSide * sizeof(float));
}

void run_amx(const MaskedProduct& product, const ProductPart& part, float* workspace) {
  const MaskedMatrix &a = product.a, &b = product.b, &dest = product.dest;
  const int64_t k_end = a.cols, runs = divided(k_end, kSide), run_stride = padded(runs, kLanes);
  const int64_t panels = divided(part.col_end - part.col_begin, kSide);
  float* const packed = workspace;  // [panel][run]
  float* const block_floats = packed + panels * runs * kPackedFloats;
  BFloat16* const own_block = reinterpret_cast<BFloat16*>(block_floats);  // [run][32][32]: rows of a
  float* const flags = block_floats + runs * kPackedFloats;               // as in run_tiles
  float* const a_flags = flags + panels * run_stride;
  uint64_t* const any = reinterpret_cast<uint64_t*>(a_flags + run_stride);
  float* const rows = a_flags + run_stride + 2 * (panels + 1);
  float* const sums = rows + kLanes * runs * kSide + kSide * kSide;
  const auto col_of = [&](int64_t panel) { return part.col_begin + panel * kSide; };
  const auto cols_of = [&](int64_t panel) -> int64_t { return at_most(part.col_end - col_of(panel), kSide); };

  find_runs(product, part, any, flags, run_stride);
  pack_panels(b, part, flags, run_stride, rows, packed);
  const bool a_lies = a.col_stride == 1 && a.mask.words == nullptr && k_end % kSide == 0;
  const KeptTiles kept_panels(product, part.col_begin, part.col_end);
  const auto panels_of = [&](int64_t row) {
    const int64_t end = row + kSide < part.row_end ? row + kSide : part.row_end;
    return kept_panels.of_rows(row / kTileRows, divided(end, kTileRows));
  };
  Beside beside;

  configure();
  for (int64_t row = part.row_begin; row < part.row_end; row += kSide) {
    const int count = at_most(part.row_end - row, kSide);
    const uint64_t kept_here = panels_of(row);
    const int64_t times = __builtin_popcountll(kept_here);
    Block block{place_of(a, row, 0), a.row_stride, kSide, nullptr, a_flags, nullptr, runs, &beside};
    beside = {};
    beside.zeros.start(dest, row, part.col_begin, part.col_end, count, sizeof(BFloat16));
    for (uint64_t& empty : beside.zeros.empty) empty = kept_panels.all() & ~kept_here;
    beside.zeros.rate = rate_of((panels - times) * count * kSide * 2 / kLineBytes, times * runs);
    if (kept_here != 0) {
      for (int64_t run = 0; run < runs; ++run)
        a_flags[run] = is_active(a.mask, row, row + count, run * kSide) ? 1.0f : 0.0f;
      if (!a_lies || count < kSide || times > kTimesInPlace) {
        block.a = own_block, block.a_stride = kSide, block.a_run = kSide * kSide;
        for (int64_t half = 0; half < kSide; half += kLanes)
          fetch_rows(a, row + half, at_most(count - half, kLanes), rows, own_block + half * kSide);
      }
      int64_t next = row + kSide;
      while (next < part.row_end && panels_of(next) == 0) next += kSide;
      if (a.col_stride == 1 && next < part.row_end)
        beside.a.start(a, next, at_most(part.row_end - next, kSide), k_end, sizeof(BFloat16), times * runs);
    }
    for (uint64_t left = kept_here; left != 0; left &= left - 1) {
      const int64_t panel = lowest(left);
      const unsigned kept = kept_tiles(dest.mask, row, count, col_of(panel));
      block.b = packed + panel * runs * kPackedFloats;
      block.b_flags = flags + panel * run_stride;
      if ((kept & (kept - 1)) != 0) {
        multiply_four(block, sums);
      } else {
        for (int64_t i = 0; i < kSide * kSide; i += kLanes) Vec<float>::zero().store(sums + i);
        multiply_one(block, kept >= 4 ? 1 : 0, (kept & 10u) != 0 ? 1 : 0, sums);
      }
      for (int64_t half = 0; half < count; half += kLanes)
        put<BFloat16>(
            dest, row + half, col_of(panel), at_most(count - half, kLanes), cols_of(panel), sums + half * kSide, kSide);
    }
    beside.zeros.finish();
  }
  _tile_release();
}

}  // namespace

const MaskedAmxKernels kMaskedAmx = {amx_workspace, run_amx};

}  // namespace sparsekernels
