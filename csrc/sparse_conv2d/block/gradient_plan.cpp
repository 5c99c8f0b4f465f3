// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/block/gradient_plan.h"

#include <algorithm>

#include "base/caches.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::block {
namespace {

namespace cost_of = cost::block::gradient;

int64_t phases_of(const Lattice& lattice) {
  return static_cast<int64_t>(lattice.phases[0].size() * lattice.phases[1].size());
}

// Places of a lane of so many positions at which the input is read.
int64_t read_places(const Lattice& lattice, int64_t rows, int64_t columns) {
  return phases_of(lattice) * (rows + lattice.most_shift[0]) * (columns + lattice.most_shift[1]);
}

// Parts have sums of their own, so that results would depend on how many there are: by sizes alone.
int64_t parts_of(const BlockPattern& pattern, const GradientLanes& lanes) {
  const int64_t chunks = lanes.sets * lanes.size[0] * lanes.size[1], rows = lanes.sets * lanes.size[0];
  const int64_t bytes = std::max<int64_t>(1, pattern.blocks * pattern.block[0] * pattern.block[1] * 4);
  int64_t most = std::max(chunks / cost_of::kPartChunks, std::min<int64_t>(2, chunks / cost_of::kFewestPartChunks));
  most = std::min({most, cost_of::kMostParts, cost_of::kMostPartBytes / bytes, rows});
  int64_t parts = 1;
  while (parts * 2 <= most) parts *= 2;
  return parts;
}

// The largest strip of at most so many chunks, in even parts.
GradientStrip largest_strip(const GradientPlan& plan, int64_t chunks) {
  const GradientLanes& lanes = plan.lanes;
  const int64_t positions = lanes.size[0] * lanes.size[1];
  GradientStrip strip = {0, 1, 0, lanes.size[0], 0, lanes.size[1]};
  if (chunks >= positions) {
    strip.sets = evened(divide_up(lanes.sets, plan.parts), std::max<int64_t>(1, chunks / positions));
  } else if (chunks >= lanes.size[1]) {
    strip.rows = evened(lanes.size[0], chunks / lanes.size[1]);
  } else {
    strip.rows = 1;
    strip.columns = evened(lanes.size[1], chunks);
  }
  return strip;
}

// Cycles of a call on so many threads, with the strips of `plan`.
struct Estimate {
  double cycles;
  GradientStrip strip;
};

Estimate estimate(const Lattice& lattice, const BlockPattern& pattern, const GradientPlan& plan, int64_t threads) {
  const double regions = static_cast<double>(plan.row_regions * plan.column_regions);
  const double outputs = static_cast<double>(lattice.dest_channels) / static_cast<double>(plan.row_regions);
  const double channels = static_cast<double>(lattice.source_channels) / static_cast<double>(plan.column_regions);
  const bool gathered = pattern.block[1] % kUnit != 0;
  const double block_tiles = static_cast<double>(divide_up(pattern.block[0], kUnit)) *
                             static_cast<double>(std::min(pattern.block[1], pattern.channels)) / kUnit;
  const double tiles =
      static_cast<double>(pattern.blocks) / static_cast<double>(lattice.groups) * block_tiles / regions;
  const double l2 = static_cast<double>(caches().l2_lines) * kLineBytes;
  const double sums = tiles * kTileSums * 4;
  const double positions = static_cast<double>(plan.lanes.size[0] * plan.lanes.size[1]);
  const double all = static_cast<double>(plan.lanes.sets) * positions / static_cast<double>(plan.parts);
  // how much of the input a chunk reads depends on the strip, and the strip on that
  Estimate result = {};
  double reading = 1;
  for (int round = 0; round < 2; ++round) {
    const double bytes = (channels * reading + outputs) * kLineBytes;
    const double room = std::max(l2 * cost_of::kL2Share - sums, l2 * cost_of::kFewestL2Share);
    const double chunks = std::min(all, std::max(1.0, room / bytes));
    result.strip = largest_strip(plan, static_cast<int64_t>(chunks));
    reading = static_cast<double>(read_places(lattice, result.strip.rows, result.strip.columns)) /
              static_cast<double>(result.strip.rows * result.strip.columns);
  }
  const double strips = all / static_cast<double>(std::min<int64_t>(result.strip.chunks(), cost_of::kChunksAtOnce));
  const double move = sums > l2 * cost_of::kSumsShare ? cost_of::kMovedFromL3 : cost_of::kMoved;
  const double products = tiles * (all * (gathered ? cost_of::kGathered : cost_of::kProduct) + strips * move);
  // rows that a strip shares with the next are packed once
  double packed = reading;
  if (result.strip.columns == plan.lanes.size[1] && result.strip.rows < plan.lanes.size[0]) {
    const int64_t rows =
        std::clamp(static_cast<int64_t>(all) / plan.lanes.size[1], result.strip.rows, plan.lanes.size[0]);
    const double once = static_cast<double>(read_places(lattice, rows, plan.lanes.size[1])) /
                        static_cast<double>(rows * plan.lanes.size[1]);
    packed = once + (reading - once) * cost_of::kMovedLine;
  }
  const double packing =
      all * kPositions * (channels * packed * cost_of::kPackedLines + outputs * cost_of::kPackedPairs);
  const int64_t items = plan.items(lattice.groups);
  result.cycles = static_cast<double>(divide_up(items, threads)) * (products + packing + cost_of::kItem);
  return result;
}

// Boundaries of regions with about as many blocks each.
void bound_rows(const BlockPattern& pattern, int64_t groups, GradientPlan& plan) {
  const int64_t rows = pattern.block_rows() / groups;
  plan.row_bounds.clear();
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group * rows;
    const auto weight_before = [&](int64_t row) { return pattern.crow_indices[first + row] + row; };
    const int64_t begin = weight_before(0), all = weight_before(rows) - begin;
    int64_t row = 0;
    for (int64_t region = 0; region < plan.row_regions; ++region) {
      while (row < rows && (weight_before(row) - begin) * plan.row_regions < all * region) ++row;
      plan.row_bounds.push_back(first + row);
    }
    plan.row_bounds.push_back(first + rows);
  }
}

}  // namespace

GradientLanes choose_gradient_lanes(const Lattice& lattice) {
  const int64_t batch = lattice.dest.size[0];
  GradientLanes best = {};
  double best_cost = 0;
  for (int64_t rows = 1; rows <= std::min<int64_t>(kPositions, lattice.size[0]); ++rows) {
    if (lattice.size[0] % rows != 0) continue;
    for (int64_t columns = 1; rows * columns <= kPositions && columns <= lattice.size[1]; ++columns) {
      if (lattice.size[1] % columns != 0) continue;
      GradientLanes one;
      one.grid[0] = rows;
      one.grid[1] = columns;
      one.size[0] = lattice.size[0] / rows;
      one.size[1] = lattice.size[1] / columns;
      one.lanes = batch * rows * columns;
      one.sets = divide_up(one.lanes, kPositions);
      const double cost = static_cast<double>(one.sets) *
                          (static_cast<double>(one.size[0] * one.size[1]) +
                           cost_of::kReadPlace * static_cast<double>(read_places(lattice, one.size[0], one.size[1])));
      if (best.lanes != 0 && cost >= best_cost) continue;
      best = one;
      best_cost = cost;
    }
  }
  return best;
}

GradientPlan plan_gradient(const Lattice& lattice, const BlockPattern& pattern, int64_t threads) {
  GradientPlan best = {};
  double best_cycles = 0;
  GradientPlan plan = {};
  plan.lanes = choose_gradient_lanes(lattice);
  plan.parts = parts_of(pattern, plan.lanes);
  const int64_t rows = pattern.block_rows() / lattice.groups, columns = pattern.block_columns();
  const auto next = [](int64_t regions) { return regions < 4 ? regions + 1 : regions * 3 / 2; };
  for (int64_t r = 1; r <= std::min<int64_t>(rows, cost_of::kMostRegions); r = next(r))
    for (int64_t c = 1; c <= std::min<int64_t>(columns, cost_of::kMostRegions); c = next(c)) {
      plan.row_regions = r;
      plan.column_regions = c;
      const Estimate estimated = estimate(lattice, pattern, plan, threads);
      if (best_cycles != 0 && estimated.cycles >= best_cycles) continue;
      best = plan;
      best.most = estimated.strip;
      best_cycles = estimated.cycles;
    }
  best.chunks_at_once = evened(best.most.chunks(), cost_of::kChunksAtOnce);
  bound_rows(pattern, lattice.groups, best);
  return best;
}

GradientItem gradient_item(const GradientPlan& plan, const BlockPattern& pattern, int64_t index) {
  GradientItem item;
  const int64_t column_region = index % plan.column_regions;
  index /= plan.column_regions;
  const int64_t row_region = index % plan.row_regions;
  index /= plan.row_regions;
  item.part = index % plan.parts;
  item.group = index / plan.parts;
  const size_t bound = static_cast<size_t>(item.group * (plan.row_regions + 1) + row_region);
  item.first_row = plan.row_bounds[bound];
  item.rows = plan.row_bounds[bound + 1] - item.first_row;
  const int64_t columns = pattern.block_columns();
  item.first_column = columns * column_region / plan.column_regions;
  item.columns = columns * (column_region + 1) / plan.column_regions - item.first_column;
  return item;
}

// In the order of lane sets, rows and columns whatever the strips: sums have the same bits.
std::vector<GradientStrip> strips_of(const GradientPlan& plan, int64_t part) {
  const int64_t height = plan.lanes.size[0], rows = plan.lanes.sets * height;
  const int64_t end = rows * (part + 1) / plan.parts;
  std::vector<GradientStrip> strips;
  for (int64_t row = rows * part / plan.parts; row < end;) {
    GradientStrip strip = {row / height, 1, row % height, 0, 0, plan.lanes.size[1]};
    if (strip.row == 0 && plan.most.rows == height && row + height <= end) {
      strip.sets = std::min(plan.most.sets, (end - row) / height);
      strip.rows = height;
    } else {
      strip.rows = std::min({plan.most.rows, height - strip.row, end - row});
    }
    row += strip.sets * strip.rows;
    for (; strip.column < plan.lanes.size[1]; strip.column += plan.most.columns) {
      strip.columns = std::min(plan.most.columns, plan.lanes.size[1] - strip.column);
      strips.push_back(strip);
    }
  }
  return strips;
}

GradientProgram gradient_program(
    const GradientItem& item, const BlockPattern& pattern, const Lattice& lattice, int64_t lines,
    const std::vector<int64_t>& tap_offsets) {
  GradientProgram program = {};
  program.gathered = pattern.block[1] % kUnit != 0;
  const int64_t first_output = item.first_row * pattern.block[0], first_channel = item.first_column * pattern.block[1];
  const int64_t first_index = item.first_column * pattern.taps;
  const int64_t end_index = (item.first_column + item.columns) * pattern.taps;
  int64_t tiles = 0;
  for (int64_t row = item.first_row; row < item.first_row + item.rows; ++row) {
    const int32_t* const begin = pattern.col_indices + pattern.crow_indices[row];
    const int32_t* const end = pattern.col_indices + pattern.crow_indices[row + 1];
    GradientPanel panel = {};
    panel.row = row;
    panel.first_block = std::lower_bound(begin, end, first_index) - pattern.col_indices;
    panel.end_block = std::lower_bound(begin, end, end_index) - pattern.col_indices;
    panel.first_output = row * pattern.block[0] - first_output;
    panel.outputs = std::min(pattern.block[0], pattern.rows - row * pattern.block[0]);
    panel.first_unit = panel.first_output / kUnit;
    panel.units = (panel.first_output + panel.outputs - 1) / kUnit + 1 - panel.first_unit;
    panel.first_tile = tiles;
    panel.sums = program.sums;
    each_piece(
        panel, pattern, lattice, program.gathered,
        [&](int64_t tile, int64_t at, int64_t count, int64_t channel, int64_t block) {
          const int64_t column = pattern.col_indices[block] / pattern.taps;
          const int64_t first = column * pattern.block[1] - first_channel + channel;
          const int64_t tap = tap_offsets[static_cast<size_t>(pattern.col_indices[block] % pattern.taps)];
          const auto line = [&](int64_t c) { return static_cast<int32_t>(c / kUnit * lines + c % kUnit + tap); };
          if (!program.gathered) {
            program.rows.push_back(line(first));
          } else {
            // Rows of a tile that no channel is left for repeat its first one.
            if (at == 0) program.rows.resize(static_cast<size_t>((tiles + tile + 1) * kUnit), line(first));
            for (int64_t i = 0; i < count; ++i)
              program.rows[static_cast<size_t>((tiles + tile) * kUnit + at + i)] = line(first + i);
          }
          panel.tiles = tile + 1;
        });
    if (panel.tiles == 0) continue;
    tiles += panel.tiles;
    program.sums += panel.tiles * panel.units;
    program.panels.push_back(panel);
  }
  return program;
}

}  // namespace sparsekernels::block
