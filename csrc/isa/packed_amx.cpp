// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Up to 16 rows in bfloat16 by packed weights on the tiles of AMX; compiled with the flags that CMakeLists.txt gives to
// this file. 32 outputs at a time: 32 columns of their nonzeros are expanded to two tiles of 16 x 32 weights, which are
// multiplied by one of 16 pairs of columns x rows of the input, from L2 where there are many. Expanding takes the time,
// so it is about the same for any number of rows.
#define SPARSEKERNELS_AVX512
#define SPARSEKERNELS_VBMI2_KERNELS
#include "base/amx_tiles.h"
#include "packed_linear/cpu/kernel.h"

namespace sparsekernels {
namespace {

constexpr int kTileOutputs = 16;
constexpr int kOutputs = 2 * kTileOutputs;
constexpr int kStepWords = 2;  // of a row, expanded at once: a row has a whole number of such
constexpr int kStepTiles = 2 * kStepWords;
constexpr int kTilePairs = kHalf / 2;  // of columns

// [32 columns][16 pairs][row]: the tiles of the input.
int64_t amx_arranged_floats(const PackedLinear& call) {
  return call.padded_columns() / 2 * call.rows;
}

// 16 pairs of columns of up to 16 rows: transposed.
void amx_arrange(const PackedLinear& call, float* arranged) {
  const auto* const input = static_cast<const BFloat16*>(call.input);
  const auto rows = static_cast<__mmask16>((1u << call.rows) - 1);
  for (int64_t k = 0; k < call.padded_columns(); k += kHalf) {
    const int64_t left = call.columns - k;
    const auto there = static_cast<__mmask32>(left >= kHalf ? ~0u : left > 0 ? (1u << left) - 1 : 0u);
    Vec<float> pairs[kLanes];
    for (int64_t row = 0; row < kLanes; ++row)
      pairs[row].v = row < call.rows
                         ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(there, input + row * call.columns + k))
                         : _mm512_setzero_ps();
    transpose(pairs);
    for (int64_t pair = 0; pair < kTilePairs; ++pair)
      _mm512_mask_storeu_ps(arranged + (k / 2 + pair) * call.rows, rows, pairs[pair].v);
  }
}

using Tiles = BFloat16[kOutputs][kHalf];  // two, one below the other

inline int at_most(int64_t count, int most) {
  return static_cast<int>(count < most ? count : most);
}

// sums: [16 outputs][row], of `count` outputs from `first` on.
void store_results(const PackedLinear& call, const float* sums, int64_t first, int count) {
  const auto outputs = static_cast<__mmask16>((1u << count) - 1), rows = static_cast<__mmask16>((1u << call.rows) - 1);
  const auto* const bias = static_cast<const BFloat16*>(call.bias);
  const Vec<float> own = bias == nullptr ? Vec<float>::zero() : Vec16<BFloat16>::load(bias + first, outputs);
  Vec<float> vectors[kLanes];
  for (int i = 0; i < kTileOutputs; ++i) vectors[i].v = _mm512_maskz_loadu_ps(rows, sums + i * call.rows);
  transpose(vectors);
  for (int64_t row = 0; row < call.rows; ++row)
    Vec16<BFloat16>::store(
        vectors[row] + own, static_cast<BFloat16*>(call.output) + row * call.outputs + first, outputs);
}

// 32 outputs from `first` on, as far as they are there.
void amx_outputs(const PackedLinear& call, const float* input, int64_t first, int count) {
  alignas(64) Tiles tiles[2][kStepTiles];
  if (count < kOutputs) std::memset(static_cast<void*>(tiles), 0, sizeof tiles);
  const BFloat16* values[kOutputs];
  for (int i = 0; i < count; ++i) values[i] = Values<BFloat16>(call, first + i).at;
  const BFloat16* const last = static_cast<const BFloat16*>(call.values) + call.count - kPackedSlack;
  const int64_t steps = call.row_words / kStepWords, stride = call.rows * 4, tile_floats = kTilePairs * call.rows;
  const auto expand = [&](int64_t step, Tiles* to) {
    for (int i = 0; i < count; ++i) {
      const BFloat16* at = values[i];
      const uint64_t* const words = call.words + (first + i) * call.row_words + step * kStepWords;
#pragma GCC unroll 2
      for (int word = 0; word < kStepWords; ++word) {
        _mm512_store_si512(to[2 * word][i], expanded_half(at, words[word], 0));
        _mm512_store_si512(to[2 * word + 1][i], expanded_half(at, words[word], 1));
        at += __builtin_popcountll(words[word]);
        at = at < last ? at : last;
      }
      values[i] = at;
    }
  };
  const auto multiply = [&](int64_t step, const Tiles* from) {
    const float* const pairs = input + step * kStepTiles * tile_floats;
#pragma GCC unroll 4
    for (int tile = 0; tile < kStepTiles; ++tile) {
      load_tile<4>(pairs + tile * tile_floats, stride);
      load_tile<2>(from[tile], kVectorBytes);
      _tile_dpbf16ps(0, 2, 4);
      load_tile<3>(from[tile] + kTileOutputs, kVectorBytes);
      _tile_dpbf16ps(1, 3, 4);
    }
  };
  // the next outputs, whose words and values lie one after another as 32 streams do not
  const int64_t next = first + kOutputs < call.outputs ? first + kOutputs : call.outputs;
  const int64_t after = next + kOutputs < call.outputs ? next + kOutputs : call.outputs;
  const auto value_of = [&](int64_t output) {
    return static_cast<const BFloat16*>(call.values) + call.first_value(output);
  };
  Ahead ahead[2] = {
      {value_of(next), value_of(after), steps},
      {call.words + next * call.row_words, call.words + after * call.row_words, steps}};
  _tile_zero(0);
  _tile_zero(1);
  expand(0, tiles[0]);
  for (int64_t step = 0; step < steps; ++step) {  // tiles are loaded when their stores are long done
    for (Ahead& one : ahead) one.prefetch();
    if (step + 1 < steps) expand(step + 1, tiles[(step + 1) % 2]);
    multiply(step, tiles[step % 2]);
  }
  alignas(64) float sums[2][kTileOutputs * kLanes];
  store_tile<0>(sums[0], stride);
  store_tile<1>(sums[1], stride);
  for (int tile = 0; tile < 2 && tile * kTileOutputs < count; ++tile)
    store_results(call, sums[tile], first + tile * kTileOutputs, at_most(count - tile * kTileOutputs, kTileOutputs));
}

void amx_run(const PackedLinear& call, const float* arranged, int64_t begin, int64_t end) {
  TileConfig config;
  for (int tile = 0; tile < 5; ++tile) {
    const bool is_weights = tile == 2 || tile == 3;
    config.set(tile, kTileOutputs, is_weights ? kVectorBytes : static_cast<int>(call.rows) * 4);
  }
  config.load();
  for (int64_t output = begin; output < end; output += kOutputs)
    amx_outputs(call, arranged, output, at_most(end - output, kOutputs));
  _tile_release();
}

}  // namespace

const PackedLinearKernels kPackedAmx = {kOutputs, amx_arranged_floats, amx_arrange, amx_run, packed_unpack<BFloat16>};

}  // namespace sparsekernels
