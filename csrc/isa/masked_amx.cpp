// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked products in bfloat16 on the tiles of AMX, compiled with the flags that CMakeLists.txt gives to this file.
//
// 32 x 32 sums are 2 x 2 tile registers, so that four tile products of 16 cycles share four loads: of 16 rows of a, as
// they lie, and of 32 rows of b in pairs, packed. docs/masked_products.md has the rest.
#define SPARSEKERNELS_AVX512
#include "base/amx_tiles.h"
#include "masked_matmul/cpu/parts.h"

#include "masked_matmul/amx.h"

namespace sparsekernels {
namespace {

constexpr int64_t kSide = 32;  // of the sums, and of a run
constexpr int64_t kPackedFloats = kSide * kSide / 2;

void configure() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, kVectorBytes);
  config.load();
}

// Two rows of 16 columns as pairs: the lower half of a lane is of the first row. Both are floats that bfloat16 holds.
inline __m512i pairs_of(Vec<float> first, Vec<float> second) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first.v), 16);
  const __m512i high =
      _mm512_and_si512(_mm512_castps_si512(second.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  return _mm512_or_si512(low, high);
}

// Rows [k, k_end) of b, at most 32, at `cols` columns from col on: two tiles [16 pairs of rows][16 columns][2].
void pack_run(const MaskedMatrix& b, int64_t k, int64_t k_end, int64_t col, int64_t cols, float* rows, float* to) {
  for (int64_t i = 0; i < kSide * kSide; i += kLanes) Vec<float>::zero().store(rows + i);
  fetch<BFloat16>(b, k, k_end, col, col + cols, rows, kSide);
  for (int half = 0; half < 2; ++half)
    for (int pair = 0; pair < 16; ++pair) {
      const float* const from = rows + 2 * pair * kSide + half * kLanes;
      const __m512i both = pairs_of(Vec<float>::load(from), Vec<float>::load(from + kSide));
      _mm512_storeu_si512(to + (half * 16 + pair) * kLanes, both);
    }
}

// Which of the four tiles of 16 x 16 of a block are kept: bit 2 * (lower) + (right).
inline unsigned kept_tiles(uint32_t upper, uint32_t lower) {
  return ((upper & 0xffffu) != 0 ? 1u : 0u) | (upper >> 16 != 0 ? 2u : 0u) | ((lower & 0xffffu) != 0 ? 4u : 0u) |
         (lower >> 16 != 0 ? 8u : 0u);
}

int64_t amx_workspace(const MaskedProduct& product, int64_t cols) {
  const int64_t runs = divided(product.a.cols, kSide), panels = divided(cols, kSide);
  const int64_t packed = (panels + 1) * runs * kPackedFloats, flags = (panels + 1) * (padded(runs, kLanes) + 4);
  return packed + flags + kLanes * runs * kSide + 2 * kSide * kSide;
}

// The operands of one block of sums: rows of a, and b packed.
struct Block {
  const BFloat16* a;
  int64_t a_stride;  // in elements
  const float* b;
  const float *a_flags, *b_flags;  // by run
  int64_t runs;

  template <class Step>
  void for_runs(Step step) const {
    for (int64_t run = 0; run < runs; ++run)
      if (a_flags[run] != 0.0f && b_flags[run] != 0.0f) step(a + run * kSide, b + run * kPackedFloats);
  }
};

void multiply_four(const Block& block, float* sums) {
  const int64_t stride = block.a_stride * 2, lower = 16 * block.a_stride;
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
  const int64_t stride = block.a_stride * 2, from_a = lower * 16 * block.a_stride, from_b = right * kPackedFloats / 2;
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
  BFloat16* const own_block = reinterpret_cast<BFloat16*>(block_floats);  // [32][k], as far as a cannot be read
  float* const flags = block_floats + runs * kPackedFloats;               // as in run_tiles
  float* const a_flags = flags + panels * run_stride;
  uint64_t* const upper = reinterpret_cast<uint64_t*>(a_flags + run_stride);  // of rows 0-15, a word for two panels
  uint64_t* const lower = upper + panels / 2 + 1;
  float* const rows = a_flags + run_stride + 4 * (panels + 1);
  float* const sums = rows + kLanes * runs * kSide + kSide * kSide;
  const auto col_of = [&](int64_t panel) { return part.col_begin + panel * kSide; };
  const auto cols_of = [&](int64_t panel) -> int64_t { return at_most(part.col_end - col_of(panel), kSide); };

  find_runs(product, part, upper, flags, run_stride);
  for (int64_t run = 0; run < runs; ++run)
    for (int64_t panel = 0; panel < panels; ++panel)
      if (flags[panel * run_stride + run] != 0.0f) {
        const int64_t k = run * kSide;
        float* const to = packed + (panel * runs + run) * kPackedFloats;
        if (run + 1 < runs)
          prefetch_rows(b, 2, k + kSide, k + kSide + at_most(k_end - k - kSide, kSide), col_of(panel), cols_of(panel));
        pack_run(b, k, k + at_most(k_end - k, kSide), col_of(panel), cols_of(panel), rows, to);
      }

  configure();
  for (int64_t row = part.row_begin; row < part.row_end; row += kSide) {
    const int count = at_most(part.row_end - row, kSide);
    Block block{
        static_cast<const BFloat16*>(a.data) + row * a.row_stride, a.row_stride, nullptr, a_flags, nullptr, runs};
    bool fetched = false;
    const int first_rows = at_most(count, 16);
    any_of_rows(dest.mask, row, row + first_rows, part.col_begin, part.col_end, upper);
    any_of_rows(dest.mask, row + first_rows, row + count, part.col_begin, part.col_end, lower);
    const auto kept_at = [&](int64_t panel) { return kept_tiles(panel_bits(upper, panel), panel_bits(lower, panel)); };
    for (int64_t panel = 0; panel < panels; ++panel) {
      const unsigned kept = kept_at(panel);
      if (kept == 0) {
        const int64_t first = panel;
        while (panel + 1 < panels && kept_at(panel + 1) == 0) ++panel;
        const int64_t cols = (panel - first) * kSide + cols_of(panel);
        for (int64_t half = 0; half < count; half += kLanes)
          put_zeros<BFloat16>(dest, row + half, col_of(first), at_most(count - half, kLanes), cols);
        continue;
      }
      if (!fetched) {
        fetched = true;
        for (int64_t run = 0; run < runs; ++run)
          a_flags[run] = is_active(a.mask, row, row + count, run * kSide) ? 1.0f : 0.0f;
        if (a.col_stride != 1 || a.mask.words != nullptr || count < kSide || k_end % kSide != 0) {
          block.a = own_block, block.a_stride = runs * kSide;
          for (int64_t half = 0; half < kSide; half += kLanes) {
            std::memset(rows, 0, static_cast<size_t>(kLanes * runs * kSide) * sizeof(float));
            const int there = at_most(count - half, kLanes);
            if (there > 0) fetch<BFloat16>(a, row + half, row + half + there, 0, k_end, rows, runs * kSide);
            for (int64_t i = 0; i < kLanes * runs * kSide; i += kLanes)
              Vec16<BFloat16>::store(Vec<float>::load(rows + i), own_block + half * runs * kSide + i);
          }
        }
      }
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
  }
  _tile_release();
}

}  // namespace

const MaskedAmxKernels kMaskedAmx = {amx_workspace, run_amx};

}  // namespace sparsekernels
