// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/tiled/plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "base/caches.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::tiled {
namespace {

struct TileChoice {
  int64_t rows, columns, panel_channels;
  double cost;
};

// Load slots for each multiply-add, of which a processor has two in a cycle. A run is the nonzeros that one pattern row
// has in one panel of channels: each of them costs a vector for each of the tile's, and two loads of its own; the run
// brings the tile's sums up from L2 and sends them back. A panel comes up into L1 once for all rows.
double tile_cost(double vectors, double nonzeros, double panel_vectors, double rows, TileKind kind) {
  using namespace cost::tiled;
  const double fma = nonzeros * vectors, l2_loads = kL2Load * panel_vectors / rows;
  if (kind == TileKind::kForward)
    return (nonzeros * (vectors + kForwardNonzero) + kForwardRunVector * vectors + kForwardRun + l2_loads) / fma;
  return (nonzeros * (vectors + kWeightGradientNonzero) + kWeightGradientRunVector * vectors + kWeightGradientRun +
          l2_loads) /
         fma;
}

TileChoice choose_tile(const Lattice& lattice, const Plan& plan, double density, int64_t most_vectors) {
  const int64_t phases = static_cast<int64_t>(lattice.phases[0].size() * lattice.phases[1].size());
  const int64_t rows_there = plan.flat ? 1 : plan.lanes.lane_sets() * plan.lanes.size[0];
  const int64_t columns_there =
      plan.flat ? plan.lanes.lane_sets() * plan.lanes.size[0] * plan.lanes.size[1] : plan.lanes.size[1];
  const double taps = static_cast<double>(lattice.taps.size()) / static_cast<double>(lattice.residues());
  const double budget = cost::tiled::kVectorsOfL1 * static_cast<double>(caches().l1_lines);
  TileChoice best = {.rows = 1, .columns = 1, .panel_channels = 1, .cost = 0};
  for (int64_t rows = 1; rows <= std::min<int64_t>(kMostTileRows, rows_there); ++rows) {
    for (int64_t columns = std::min(columns_there, most_vectors / rows); columns >= 1; --columns) {
      if (columns < columns_there && evened(columns_there, columns) != columns && columns_there < 64) continue;
      const int64_t images = divide_up(rows, plan.lanes.size[0]);
      const int64_t vectors =
          plan.flat ? columns : (rows + lattice.most_shift[0] * images) * (columns + lattice.most_shift[1]) * phases;
      int64_t panel = static_cast<int64_t>(budget / static_cast<double>(vectors));
      panel = evened(lattice.source_channels, std::max<int64_t>(1, std::min(panel, lattice.source_channels)));
      const double tiles_across = static_cast<double>(divide_up(columns_there, columns));
      const double average = static_cast<double>(rows * columns_there) / tiles_across;
      const double nonzeros = std::max(1e-3, static_cast<double>(panel) * taps * density);
      const double rows_of_pattern = static_cast<double>(lattice.dest_channels * lattice.residues());
      const double cost =
          tile_cost(average, nonzeros, static_cast<double>(vectors * panel), rows_of_pattern, plan.kind);
      if (best.cost == 0 || cost < best.cost)
        best = {.rows = rows, .columns = columns, .panel_channels = panel, .cost = cost};
    }
  }
  return best;
}

// A work item's vectors, for a slice of the pattern's rows, are to stay in L2 while all channels go by.
void choose_work_item(const Lattice& lattice, Plan& plan) {
  const int64_t budget = caches().l2_lines * cost::tiled::kVectorsPercentOfL2 / 100;
  const int64_t height = plan.lanes.size[0], width = plan.lanes.size[1], lane_sets = plan.lanes.lane_sets();
  const int64_t residues = lattice.residues(), channels = lattice.dest_channels;
  const int64_t tile = std::max<int64_t>(1, plan.tile_rows * plan.tile_columns);
  plan.slice_rows = std::max<int64_t>(1, std::min(channels, budget / (tile * residues)));
  plan.slice_rows = evened(channels, plan.slice_rows);
  // a panel's planes are there as well, with a halo of their own
  const int64_t vectors = std::max(tile, budget / (plan.slice_rows * residues + plan.panel_channels));
  // even parts, so that threads get equal work
  const int64_t rows = plan.flat ? 1 : plan.tile_rows;
  plan.item_lane_sets =
      vectors < height * width ? 1 : evened(lane_sets, std::min(lane_sets, vectors / (height * width)));
  plan.item_rows = evened(height, std::min(height, std::max(rows, vectors / width)));
  plan.item_columns = evened(width, std::min(width, std::max(plan.tile_columns, vectors / plan.item_rows)));
}

// Channels that are a multiple of a large power of two apart would share a few sets of L1. The smallest
// padding that spreads a tile's vectors evenly over its sets.
int64_t spread_channels(const Lattice& lattice, const Plan& plan, int64_t vectors) {
  constexpr int64_t kSets = 64;
  const int64_t rows = plan.flat ? 1 : std::min(plan.tile_rows, plan.item_rows) + lattice.most_shift[0];
  const int64_t columns = plan.flat ? plan.tile_columns : plan.tile_columns + lattice.most_shift[1];
  const int64_t phases = plan.flat ? 1 : static_cast<int64_t>(lattice.phases[0].size() * lattice.phases[1].size());
  int64_t best = vectors, best_ways = -1;
  const int64_t touched = plan.panel_channels * rows * columns * phases;
  if (touched > 4096) return vectors | 1;  // more than any L1 holds
  const int64_t even = divide_up(touched, kSets) + 1;
  for (int64_t padded = vectors; padded < vectors + kSets; ++padded) {
    int64_t used[kSets] = {}, ways = 0;
    for (int64_t c = 0; c < plan.panel_channels; ++c)
      for (int64_t p = 0; p < phases; ++p)
        for (int64_t y = 0; y < rows; ++y)
          for (int64_t x = 0; x < columns; ++x)
            ways = std::max(ways, ++used[(c * padded + p * plan.phase_vectors + y * plan.plane_columns + x) % kSets]);
    if (best_ways < 0 || ways < best_ways) {
      best = padded;
      best_ways = ways;
    }
    if (ways <= even) break;
  }
  return best;
}

}  // namespace

int64_t Plan::items_of(int d) const {
  if (d == 0) return divide_up(lanes.lane_sets(), item_lane_sets);
  return d == 1 ? divide_up(lanes.size[0], item_rows) : divide_up(lanes.size[1], item_columns);
}

Plan make_plan(const Lattice& lattice, int64_t nonzeros, TileKind kind, int64_t most_vectors) {
  Plan plan = {};
  plan.kind = kind;
  plan.lanes = choose_lanes(lattice);
  plan.flat = lattice.is_flat();
  const double weights = static_cast<double>(lattice.groups * lattice.dest_channels * lattice.source_channels) *
                         static_cast<double>(lattice.taps.size());
  const TileChoice tile = choose_tile(lattice, plan, static_cast<double>(nonzeros) / weights, most_vectors);
  plan.tile_rows = tile.rows;
  plan.tile_columns = tile.columns;
  plan.panel_channels = tile.panel_channels;
  plan.panels = divide_up(lattice.source_channels, plan.panel_channels);
  choose_work_item(lattice, plan);
  plan.plane_rows = plan.item_rows + lattice.most_shift[0];
  plan.plane_columns = plan.item_columns + lattice.most_shift[1];
  plan.phase_vectors = plan.plane_rows * plan.plane_columns;
  plan.plane_vectors = plan.phase_vectors * static_cast<int64_t>(lattice.phases[0].size() * lattice.phases[1].size());
  plan.channel_vectors = spread_channels(lattice, plan, plan.plane_vectors * plan.item_lane_sets);
  if ((plan.panel_channels + 1) * plan.channel_vectors * kLanes > std::numeric_limits<int32_t>::max())
    throw std::length_error("sparse_conv2d: expected tiles of less than 8 GB, got more: the kernel reaches too far");
  return plan;
}

}  // namespace sparsekernels::tiled
