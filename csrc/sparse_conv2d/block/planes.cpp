// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/block/planes.h"

#include <algorithm>

#include "base/caches.h"
#include "sparse_conv2d/block/kernels.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::block {
namespace {

int64_t rounded_up(int64_t count) {
  return divide_up(count, kLanes) * kLanes;
}

// Elements of a strip that tiles begin in.
int64_t reach(const Lattice& lattice, const PlaneLayout& layout, int64_t rows) {
  return ((rows - 1) * layout.columns + lattice.size[1]) * layout.images;
}

void cut(const Lattice& lattice, int64_t strip, PlaneLayout& layout) {
  layout.strip = strip;
  layout.strips = divide_up(lattice.size[0], strip);
  layout.rows = strip + lattice.most_shift[0];
  layout.columns = lattice.size[1] + lattice.most_shift[1];
  layout.by_rows =
      strip * divide_up(lattice.size[1] * layout.images, kLanes) <= divide_up(reach(lattice, layout, strip), kLanes);
  layout.tap_offsets.clear();
  int64_t farthest = 0;
  for (const Tap& tap : lattice.taps) {
    const int64_t phase = tap.phase[0] * static_cast<int64_t>(lattice.phases[1].size()) + tap.phase[1];
    const int64_t offset = ((phase * layout.rows + tap.shift[0]) * layout.columns + tap.shift[1]) * layout.images;
    layout.tap_offsets.push_back(offset);
    if (tap.reaches) farthest = std::max(farthest, offset);
  }
  const int64_t row = layout.columns * layout.images;  // where tiles of one row may end behind it
  const int64_t last = layout.by_rows ? (strip - 1) * row + rounded_up(lattice.size[1] * layout.images)
                                      : rounded_up(reach(lattice, layout, strip));
  layout.positions = rounded_up(std::max(layout.phases * layout.rows * row, farthest + last));
}

// Tiles at all positions, with what it costs to read and write them in units of a tile.
double cost_of(const Lattice& lattice, const PlaneLayout& layout, bool panels) {
  bool aligned = layout.columns * layout.images % kLanes == 0 || layout.rows == 1;
  for (const Tap& tap : lattice.taps) aligned = aligned && tap.shift[1] * layout.images % kLanes == 0;
  const double strips = static_cast<double>(layout.microbatches * layout.strips);
  const double tiles = strips * static_cast<double>(layout.tiles(lattice, layout.strip));
  const double read = strips * static_cast<double>(layout.positions) / kLanes;
  return tiles * (panels || aligned ? cost::block::kTile : cost::block::kSplitTile) + read * cost::block::kPackedTile;
}

}  // namespace

int64_t PlaneLayout::items() const {
  return divide_up(microbatches, item_microbatches) * strips;
}

int64_t PlaneLayout::tiles(const Lattice& lattice, int64_t strip_rows) const {
  if (by_rows) return strip_rows * divide_up(lattice.size[1] * images, kLanes);
  return divide_up(((strip_rows - 1) * columns + lattice.size[1]) * images, kLanes);
}

int64_t PlaneLayout::pitch() const {
  const int64_t lines = item_microbatches * positions / kLanes;
  return (lines <= kMostTiles ? lines : lines | 1) * kLanes;
}

int64_t PlaneLayout::panel_pitch(int64_t position) const {
  const int64_t lines = divide_up(item_microbatches * positions * position, kLanes);
  return (lines | 1) * kLanes;
}

PlaneLayout lay_out_planes(const Lattice& lattice, int64_t pairs, bool panels, int64_t threads, int64_t percent_of_l2) {
  PlaneLayout best = {};
  double best_cost = 0;
  const int64_t batch = lattice.source.size[0];
  const int64_t budget = caches().l2_lines * kLanes * percent_of_l2 / 100;
  for (int64_t images = 1; images <= kLanes; images *= 2) {
    if (images > 1 && images / 2 >= batch) break;
    PlaneLayout layout = {};
    layout.images = images;
    layout.microbatches = divide_up(batch, images);
    layout.phases = static_cast<int64_t>(lattice.phases[0].size() * lattice.phases[1].size());
    layout.item_microbatches = 1;
    int64_t strip = lattice.size[0];
    cut(lattice, strip, layout);
    for (int64_t strips = 2; layout.positions * pairs > budget && strip > 1; ++strips) {
      strip = divide_up(lattice.size[0], std::min(strips, lattice.size[0]));
      cut(lattice, strip, layout);
    }
    const double cost = cost_of(lattice, layout, panels);
    if (best_cost != 0 && cost >= best_cost) continue;
    best = layout;
    best_cost = cost;
  }
  // As much work as fits, in even parts, and a whole number of them for each thread where there is enough.
  const int64_t fits = std::max<int64_t>(1, budget / (best.positions * pairs));
  int64_t most = std::min(best.microbatches, fits);
  const int64_t fair = divide_up(best.microbatches * best.strips, threads * cost::block::kItemsPerThread);
  most = std::min(most, std::max<int64_t>(fair, std::min(most, cost::block::kFewestItemTiles)));
  best.item_microbatches = evened(best.microbatches, std::max<int64_t>(1, most));
  if (best.positions == kLanes && most >= kMostTiles)  // whole products
    best.item_microbatches = std::min(most / kMostTiles, divide_up(best.item_microbatches, kMostTiles)) * kMostTiles;
  return best;
}

PlaneItem plane_item(const Lattice& lattice, const PlaneLayout& layout, int64_t index) {
  PlaneItem item;
  item.first_microbatch = index / layout.strips * layout.item_microbatches;
  item.microbatches = std::min(layout.item_microbatches, layout.microbatches - item.first_microbatch);
  item.first_row = index % layout.strips * layout.strip;
  item.rows = std::min(layout.strip, lattice.size[0] - item.first_row);
  return item;
}

void source_places(
    const Lattice& lattice, const PlaneLayout& layout, const PlaneItem& item, std::vector<int64_t>& from) {
  const Activation& source = lattice.source;
  from.assign(static_cast<size_t>(item.microbatches * layout.positions), -1);
  for (int64_t b = 0; b < item.microbatches; ++b) {
    const int64_t first_image = (item.first_microbatch + b) * layout.images;
    const int64_t images = std::min(layout.images, source.size[0] - first_image);
    int64_t* at = from.data() + b * layout.positions;
    for (const int64_t row_phase : lattice.phases[0])
      for (const int64_t column_phase : lattice.phases[1])
        for (int64_t row = 0; row < layout.rows; ++row) {
          const int64_t y = lattice.origin[0] + row_phase + (item.first_row + row) * lattice.source_step[0];
          for (int64_t column = 0; column < layout.columns; ++column, at += layout.images) {
            const int64_t x = lattice.origin[1] + column_phase + column * lattice.source_step[1];
            if (y < 0 || y >= source.size[2] || x < 0 || x >= source.size[3]) continue;
            const int64_t place = first_image * source.stride[0] + y * source.stride[2] + x * source.stride[3];
            for (int64_t image = 0; image < images; ++image) at[image] = place + image * source.stride[0];
          }
        }
  }
}

void tile_places(const Lattice& lattice, const PlaneLayout& layout, const PlaneItem& item, std::vector<int64_t>& at) {
  const int64_t rows = layout.by_rows ? item.rows : 1, tiles = layout.tiles(lattice, item.rows) / rows;
  at.clear();
  for (int64_t b = 0; b < item.microbatches; ++b)
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t tile = 0; tile < tiles; ++tile)
        at.push_back(b * layout.positions + y * layout.columns * layout.images + tile * kLanes);
}

void dest_places(
    const Lattice& lattice, const PlaneLayout& layout, const PlaneItem& item, int64_t residue,
    std::vector<int64_t>& to) {
  const Activation& dest = lattice.dest;
  const int64_t tiles = layout.tiles(lattice, item.rows);
  const int64_t first_y = residue / lattice.dest_step[1], first_x = residue % lattice.dest_step[1];
  to.assign(static_cast<size_t>(item.microbatches * tiles * kLanes), -1);
  for (int64_t b = 0; b < item.microbatches; ++b) {
    const int64_t first_image = (item.first_microbatch + b) * layout.images;
    const int64_t images = std::min(layout.images, dest.size[0] - first_image);
    int64_t* const of_batch = to.data() + b * tiles * kLanes;
    for (int64_t y = 0; y < item.rows; ++y) {
      const int64_t dest_y = (item.first_row + y) * lattice.dest_step[0] + first_y;
      if (dest_y >= dest.size[2]) break;
      int64_t* lanes = of_batch + y * (layout.by_rows ? tiles / item.rows * kLanes : layout.columns * layout.images);
      int64_t place = first_image * dest.stride[0] + dest_y * dest.stride[2] + first_x * dest.stride[3];
      for (int64_t x = first_x; x < dest.size[3] && x < first_x + lattice.size[1] * lattice.dest_step[1];
           x += lattice.dest_step[1], lanes += layout.images, place += lattice.dest_step[1] * dest.stride[3])
        for (int64_t image = 0; image < images; ++image) lanes[image] = place + image * dest.stride[0];
    }
  }
}

}  // namespace sparsekernels::block
