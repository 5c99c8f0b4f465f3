// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which rows of a pattern are alike, which taps a vector reads the image by, and the plans that follow, against their
// definitions.
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "geometries.h"
#include "sparse_conv2d/jit/forward_plan.h"
#include "sparse_conv2d/jit/weight_gradient_plan.h"

namespace sparsekernels {
namespace tests {
namespace {

struct Rows {
  std::vector<int32_t> crow{0}, col;
  void add(const std::vector<int32_t>& columns) {
    col.insert(col.end(), columns.begin(), columns.end());
    crow.push_back(static_cast<int32_t>(col.size()));
  }
  SparsePattern pattern() const {
    SparsePattern result;
    result.crow_indices = crow.data();
    result.col_indices = col.data();
    result.rows = static_cast<int64_t>(crow.size()) - 1;
    result.nonzeros = static_cast<int64_t>(col.size());
    return result;
  }
};

// Whether blocks of `size` rows of each group have the same columns.
bool are_alike(const Rows& rows, int64_t group_rows, int64_t size) {
  const auto columns = [&](int64_t row) {
    return std::vector<int32_t>(
        rows.col.begin() + rows.crow[static_cast<size_t>(row)],
        rows.col.begin() + rows.crow[static_cast<size_t>(row) + 1]);
  };
  for (int64_t row = 0; row + 1 < static_cast<int64_t>(rows.crow.size()); ++row)
    if (columns(row) != columns(row - row % group_rows % size)) return false;
  return true;
}

void check_rows_alike() {
  std::mt19937 random(1);
  const auto pick = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<uint64_t>(most)) + 1; };
  for (int i = 0; i < 500; ++i) {
    const int64_t block = pick(9), group_rows = pick(30), groups = pick(3), kinds = pick(4);
    Rows rows;
    for (int64_t row = 0; row < groups * group_rows; ++row) {
      if (row % group_rows % block != 0) {
        rows.add(std::vector<int32_t>(rows.col.begin() + rows.crow[rows.crow.size() - 2], rows.col.end()));
        continue;
      }
      std::vector<int32_t> columns;  // few kinds of rows, so that blocks are alike by chance, and some are empty
      const int64_t kind = pick(kinds);
      for (int32_t column = 0; column < 5; ++column)
        if ((kind * 7 + 3) >> column & 1 && kind > 1) columns.push_back(column);
      rows.add(columns);
    }
    int64_t most = group_rows;
    while (!are_alike(rows, group_rows, most)) --most;
    CHECK_EQUAL(jit::rows_alike(rows.pattern(), group_rows), most);
    CHECK_EQUAL(jit::traits_of(rows.pattern(), group_rows).rows_alike, most);
  }
}

// Blocks of channels that occur in the same rows at each tap, against the definition.
void check_channels_alike() {
  std::mt19937 random(3);
  const auto pick = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<uint64_t>(most)) + 1; };
  for (int i = 0; i < 500; ++i) {
    const int64_t taps = pick(4), block = pick(6), channels = pick(20), row_count = pick(5), kinds = pick(6);
    Rows rows;
    std::vector<std::vector<bool>> has;  // of each row, channel x tap
    for (int64_t row = 0; row < row_count; ++row) {
      std::vector<bool> own(static_cast<size_t>(channels * taps));
      std::vector<int32_t> columns;
      for (int64_t channel = 0; channel < channels; ++channel)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t kind = (channel / block * 31 + tap * 7 + row * 13) % (kinds + 1);
          if (kind % 2 == 0) continue;
          own[static_cast<size_t>(channel * taps + tap)] = true;
          columns.push_back(static_cast<int32_t>(channel * taps + tap));
        }
      rows.add(columns);
      has.push_back(own);
    }
    const auto are_alike = [&](int64_t size) {
      for (const std::vector<bool>& own : has)
        for (int64_t column = 0; column < channels * taps; ++column) {
          const int64_t channel = column / taps, first = channel - channel % size;
          if (own[static_cast<size_t>(column)] != own[static_cast<size_t>(first * taps + column % taps)]) return false;
        }
      return true;
    };
    int64_t most = channels;
    while (!are_alike(most)) --most;
    CHECK_EQUAL(jit::channels_alike(rows.pattern(), channels, taps), most);
  }
}

// The vectors of channels that are alike stay in registers, unless results are better stored directly.
void check_scatter_plans() {
  const struct {
    int64_t size, alike, rows_alike, scatter_channels;
  } table[] = {{8, 16, 1, 16}, {8, 7, 1, 0}, {8, 16, 16, 0}, {7, 32, 2, 32}, {16, 24, 1, 24}};
  for (const auto& row : table) {
    const Layer layer = square_layer(64, 256, 256, row.size, 3);
    const Lattice lattice = forward_lattice(layer.geometry, layer.input, layer.output);
    const jit::PatternTraits traits = {256 * 256 * 9 / 10, row.rows_alike, row.alike};
    for (const int64_t threads : {1, 2, 16}) {
      const jit::ForwardPlan plan = jit::make_forward_plan(lattice, traits, 0, threads);
      CHECK_EQUAL(plan.scatter_channels, row.scatter_channels);
      if (plan.scatter_channels == 0) continue;
      CHECK_EQUAL(plan.block_rows, 0);
      CHECK_EQUAL(plan.panels, 1);
      CHECK_EQUAL(plan.first_row(plan.slices, 256), 256);
      CHECK(plan.first_row(plan.slices - 1, 256) < 256);
      CHECK(plan.thread_shares <= plan.slices && !plan.direct && !plan.gapless);
    }
  }
  const Layer layer = square_layer(64, 256, 1024, 14, 1);
  Lattice lattice = forward_lattice(layer.geometry, layer.input, layer.output);
  merge_positions(lattice);
  CHECK_EQUAL(jit::make_forward_plan(lattice, {256 * 1024 / 10, 1, 16}, 0, 2).scatter_channels, 0);
}

// Every tap that reads the image from some position of a vector is there, and no other.
void check_reaches() {
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    const Layer layer = random_layer(random);
    for (const Lattice& lattice :
         {forward_lattice(layer.geometry, layer.input, layer.output),
          input_gradient_lattice(layer.geometry, layer.output, layer.input)})
      for (const int64_t images : {1, 4, 16}) {
        jit::Layout layout = {};
        jit::lay_out_microbatches(lattice, images, jit::Lanes::kAnything, layout);
        const int64_t first[2] = {lattice.size[0] / 2, 0}, size[2] = {lattice.size[0] - first[0], lattice.size[1]};
        const std::vector<uint64_t> found = jit::vector_reaches(lattice, layout, first, size);
        std::vector<uint64_t> wanted(static_cast<size_t>(layout.vectors(size[0], size[1])));
        for (int64_t row = 0; row < size[0]; ++row)
          for (int64_t column = 0; column < size[1]; ++column)
            for (size_t t = 0; t < lattice.taps.size(); ++t) {
              const Tap& tap = lattice.taps[t];
              const int64_t position[2] = {first[0] + row, column};
              bool inside = true;
              for (size_t d = 0; d < 2; ++d) {
                const int64_t at = (position[d] + tap.shift[d]) * lattice.source_step[d] + lattice.origin[d] +
                                   lattice.phases[d][static_cast<size_t>(tap.phase[d])];
                inside = inside && at >= 0 && at < lattice.source.size[2 + d];
              }
              const size_t vector = static_cast<size_t>((row * layout.pitch + column) * images / 16);
              if (inside && tap.reaches) wanted[vector] |= uint64_t{1} << t;
            }
        CHECK(found == wanted);
      }
  }
}

void check_plans() {
  struct Row {
    int64_t alike, rows, block_rows, tile_vectors, row_lanes;
  };
  const Row table[] = {
      // of planar planes
      {1, 128, 0, 0, 0},    {2, 128, 0, 0, 0},     {4, 128, 0, 0, 0},    {8, 128, 8, 3, 0},
      {10, 128, 10, 5, 16}, {16, 128, 16, 3, 16},  {24, 120, 24, 4, 32}, {32, 128, 32, 3, 32},
      {64, 128, 32, 3, 32}, {128, 128, 32, 3, 32}, {129, 258, 0, 0, 0},  {258, 258, 32, 3, 32},
  };
  for (const Row& row : table) {
    const Layer layer = square_layer(64, 64, row.rows, 16, 3);
    const Lattice lattice = forward_lattice(layer.geometry, layer.input, layer.output);
    const jit::PatternTraits traits = {row.rows * 64 * 9 / 10, row.alike};
    for (const int64_t threads : {1, 2, 16}) {
      const jit::ForwardPlan plan = jit::make_forward_plan(lattice, traits, 0, threads);
      CHECK_EQUAL(plan.block_rows, row.block_rows);
      if (row.block_rows != 0) CHECK_EQUAL(plan.tile_vectors, row.tile_vectors);
      if (plan.block_rows != 0) {
        CHECK_EQUAL(plan.slice_rows % plan.block_rows, 0);
        CHECK_EQUAL(plan.first_row(plan.slices, row.rows), row.rows);
        CHECK(plan.first_row(plan.slices - 1, row.rows) < row.rows);
        CHECK(plan.thread_shares <= plan.slices);
        for (int64_t vectors = 1; vectors <= plan.tile_vectors; ++vectors) {
          const int64_t rows = jit::most_tile_rows(vectors);
          CHECK(rows * vectors + std::min(rows, vectors) + (vectors > 1 ? 1 : 0) <= 32);
        }
      }
      const jit::WeightGradientPlan gradient = jit::make_weight_gradient_plan(lattice, traits, threads);
      CHECK_EQUAL(gradient.row_lanes, row.row_lanes);
      if (gradient.row_lanes != 0) {
        CHECK(gradient.slice_rows <= gradient.row_lanes);
        CHECK(traits.rows_alike % gradient.slice_rows == 0 || traits.rows_alike >= row.rows);
        CHECK_EQUAL(gradient.first_row(gradient.slices, row.rows), row.rows);
        CHECK(gradient.masks.empty());
      }
    }
  }
}

// A few rows are enough where vectors are aligned.
void check_interleaved_plans() {
  const struct {
    int64_t alike, block_rows, tile_vectors;
  } table[] = {{1, 0, 0}, {3, 0, 0}, {4, 4, 6}, {5, 5, 5}, {6, 6, 4}, {7, 7, 3}, {16, 16, 3}};
  for (const auto& row : table) {
    const Layer layer = square_layer(512, 256, 256, 1, 1, true);
    Lattice lattice = forward_lattice(layer.geometry, layer.input, layer.output);
    merge_positions(lattice);
    const jit::ForwardPlan plan = jit::make_forward_plan(lattice, {256 * 256 / 10, row.alike}, 0, 2);
    CHECK_EQUAL(plan.block_rows, row.block_rows);
    if (row.block_rows != 0) CHECK_EQUAL(plan.tile_vectors, row.tile_vectors);
  }
}

}  // namespace

void test_rows_alike() {
  check_rows_alike();
  check_channels_alike();
  check_scatter_plans();
  check_reaches();
  check_plans();
  check_interleaved_plans();
}

}  // namespace tests
}  // namespace sparsekernels
