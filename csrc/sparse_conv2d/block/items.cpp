// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/block/items.h"

#include <algorithm>
#include <limits>

namespace sparsekernels::block {
namespace {

uint16_t* at_channel(const Activation& tensor, int64_t channel) {
  return static_cast<uint16_t*>(tensor.data) + channel * tensor.stride[1];
}

UnpackCall unpack_call(const Epilogue& epilogue) {
  UnpackCall unpack = {};
  unpack.low = epilogue.low;
  unpack.high = epilogue.high;
  unpack.has_low = unpack.low > -std::numeric_limits<float>::infinity();
  unpack.has_high = unpack.high < std::numeric_limits<float>::infinity();
  return unpack;
}

// Products of neighboring rows whose results lie side by side, and are stored as whole lines.
struct Band {
  int64_t first, last;    // products
  int64_t rows, channel;  // the first one, from that of all of them
};

// Those of the products [begin, end) that have the residue of the first one; begin becomes the first one that has not.
std::vector<Band> bands_of(const Program& program, int64_t& begin, int64_t end) {
  // A product of panels may write 16 rows where it has fewer.
  const int64_t most = program.columns == Columns::kPanels ? kTileRows + program.rows : kMostRows;
  const int64_t residue = program.products[static_cast<size_t>(begin)].residue;
  std::vector<Band> bands;
  int64_t channel = 0;
  for (; begin < end && program.products[static_cast<size_t>(begin)].residue == residue; ++begin) {
    const int64_t rows = program.products[static_cast<size_t>(begin)].rows;
    if (!bands.empty() && bands.back().rows + program.rows <= std::min<int64_t>(kMostRows, most)) {
      bands.back().last = begin + 1;
      bands.back().rows += rows;
    } else {
      bands.push_back({begin, begin + 1, rows, channel});
    }
    channel += rows;
  }
  return bands;
}

}  // namespace

void pack_item(
    const Items& items, int64_t group, const std::vector<int64_t>& from, int64_t begin, int64_t end, uint32_t* planes) {
  if (items.program.columns == Columns::kPanels) {
    PanelCall panel = {};
    panel.source = at_channel(items.lattice.source, group * items.lattice.source_channels);
    panel.from = from.data() + begin;
    panel.positions = end - begin;
    panel.channels = items.lattice.source_channels;
    panel.panels = static_cast<int64_t>(items.program.panels.size());
    panel.which = items.program.panels.data();
    panel.pairs = static_cast<int>(items.program.pairs);
    panel.planes = planes + begin * items.program.position();
    panel.pitch = items.pitch;
    return items.kernels.panels->pack(panel);
  }
  PackCall pack = {};
  pack.source = at_channel(items.lattice.source, group * items.lattice.source_channels);
  pack.channels = items.lattice.source_channels;
  pack.pairs = items.planes;
  pack.pitch = items.pitch;
  for (int64_t at = begin; at < end; at += kLanes) {
    pack.from = from.data() + at;
    pack.planes = planes + at;
    items.kernels.pack(pack);
  }
}

void run_products(
    const Items& items, const PlaneItem& item, int64_t begin, int64_t end, const uint32_t* planes, float* results) {
  const Program& program = items.program;
  std::vector<int64_t> at, to;
  tile_places(items.lattice, items.layout, item, at);
  const bool panels = program.columns == Columns::kPanels;
  const auto run_product = panels ? items.kernels.panels->product : items.kernels.product;
  const auto run_unpack = panels ? items.kernels.panels->unpack : items.kernels.unpack;
  const int64_t tiles = static_cast<int64_t>(at.size()), at_once = tiles_of(static_cast<int>(program.rows));
  ProductCall product = {};
  product.rows = static_cast<int>(program.rows);
  product.pairs = static_cast<int>(program.pairs);
  product.columns = program.columns;
  product.planes = planes;
  product.pitch = items.pitch;
  UnpackCall unpack = unpack_call(items.epilogue);
  (panels ? items.kernels.panels->begin : items.kernels.begin)(product.rows, product.pairs);
  while (begin < end) {
    const ProductRows& first = program.products[static_cast<size_t>(begin)];
    const int64_t first_channel = first.group * items.lattice.dest_channels + first.first_row;
    dest_places(items.lattice, items.layout, item, first.residue, to);
    bool waits = false;
    const auto run_band = [&](const Band& band, int64_t tile) {
      const int64_t channel = first_channel + band.channel;
      product.tiles = static_cast<int>(std::min(at_once, tiles - tile));
      for (int i = 0; i < product.tiles; ++i) product.at[i] = at[static_cast<size_t>(tile + i)] * program.position();
      // Results are stored one product later, while tiles are multiplied: neither waits for the other.
      float* const into = waits && unpack.results == results ? results + kResultFloats : results;
      product.results = into;
      for (int64_t i = band.first; i < band.last; ++i) {
        const ProductRows& of = program.products[static_cast<size_t>(i)];
        product.chunks = of.chunks;
        product.weights = items.weights + of.first_chunk * program.chunk_bytes();
        product.offsets = items.offsets + of.first_chunk * program.offsets_of_chunk();
        run_product(product);
        product.results += panels ? of.rows : of.rows * kLanes;
        if (i == band.first && waits) run_unpack(unpack);
      }
      waits = true;
      unpack.results = into;
      unpack.rows = static_cast<int>(band.rows);
      unpack.dest = at_channel(items.lattice.dest, channel);
      if (items.epilogue.residual != nullptr)
        unpack.residual = static_cast<const uint16_t*>(items.epilogue.residual) + channel;
      unpack.bias = items.bias + channel;
      unpack.tiles = product.tiles;
      unpack.to = to.data() + tile * kLanes;
      unpack.next = tile + 2 * at_once <= tiles ? unpack.to + at_once * kLanes : nullptr;
    };
    const std::vector<Band> bands = bands_of(program, begin, end);
    // With panels all results of few positions are stored one after another, whose lines share pages. The other way
    // round, each band of rows would take a line from every page of the item, most of which had left L2 by then.
    const int64_t tiles_at_a_time = panels ? at_once : tiles;
    for (int64_t first_tile = 0; first_tile < tiles; first_tile += tiles_at_a_time)
      for (const Band& band : bands)
        for (int64_t tile = first_tile; tile < std::min(tiles, first_tile + tiles_at_a_time); tile += at_once)
          run_band(band, tile);
    run_unpack(unpack);
  }
  items.kernels.end();
}

void run_scatters(
    const Items& items, const PlaneItem& item, int64_t begin, int64_t end, const uint32_t* planes, float* sums) {
  const Program& program = items.program;
  std::vector<int64_t> at, to;
  tile_places(items.lattice, items.layout, item, at);
  const int64_t tiles = static_cast<int64_t>(at.size());
  ScatterCall scatter = {};
  scatter.pairs = static_cast<int>(program.pairs);
  scatter.planes = planes;
  scatter.pitch = items.pitch;
  scatter.sums = sums;
  UnpackCall unpack = unpack_call(items.epilogue);
  int64_t residue = -1;
  for (int64_t p = begin; p < end; ++p) {
    const ProductRows& rows = program.products[static_cast<size_t>(p)];
    if (rows.residue != residue) dest_places(items.lattice, items.layout, item, rows.residue, to);
    residue = rows.residue;
    scatter.chunks = rows.chunks;
    scatter.weights = items.weights + rows.first_chunk * program.chunk_bytes();
    scatter.offsets = items.offsets + rows.first_chunk * kScatterOffsets;
    for (int64_t tile = 0; tile < tiles; tile += kScatterTiles) {
      scatter.tiles = static_cast<int>(std::min<int64_t>(kScatterTiles, tiles - tile));
      for (int i = 0; i < scatter.tiles; ++i) scatter.at[i] = at[static_cast<size_t>(tile + i)];
      std::fill_n(sums, divide_up(rows.rows, kMostRows) * kScatterTiles * kMostRows * kLanes, 0.0f);
      items.kernels.scatter(scatter);
      unpack.tiles = scatter.tiles;
      unpack.to = to.data() + tile * kLanes;
      unpack.next = tile + 2 * kScatterTiles <= tiles ? unpack.to + kScatterTiles * kLanes : nullptr;
      for (int64_t row = 0; row < rows.rows; row += kMostRows) {
        const int64_t channel = rows.group * items.lattice.dest_channels + rows.first_row + row;
        unpack.results = sums + row * kScatterTiles * kLanes;
        unpack.rows = static_cast<int>(std::min<int64_t>(kMostRows, rows.rows - row));
        unpack.dest = at_channel(items.lattice.dest, channel);
        if (items.epilogue.residual != nullptr)
          unpack.residual = static_cast<const uint16_t*>(items.epilogue.residual) + channel;
        unpack.bias = items.bias + channel;
        items.kernels.unpack(unpack);
      }
    }
  }
  items.kernels.end();
}

}  // namespace sparsekernels::block
