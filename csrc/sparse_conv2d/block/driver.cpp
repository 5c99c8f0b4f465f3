// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Runs the products of a block-sparse convolution: weights laid out for all threads, then work items, each with planes
// of its own, or with planes that threads share where there are few.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/caches.h"
#include "base/workspace.h"
#include "isa/kernels.h"
#include "sparse_conv2d/block/call.h"
#include "sparse_conv2d/block/planes.h"
#include "sparse_conv2d/block/program.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::block {
namespace {

constexpr int64_t kResultFloats = kMostTiles * kMostRows * kLanes;

constexpr int64_t kSumFloats = (cost::block::kScatterRows + kMostRows) * kScatterTiles * kLanes;

thread_local Workspace call_workspace, worker_workspace;

struct Call {
  const Lattice& lattice;
  const Program& program;
  const PlaneLayout& layout;
  const Kernels& kernels;
  int64_t pairs, pitch;
  const char* weights;
  const int32_t* offsets;
  const Epilogue& epilogue;
  const float* bias;  // of every row
};

uint16_t* at_channel(const Activation& tensor, int64_t channel) {
  return static_cast<uint16_t*>(tensor.data) + channel * tensor.stride[1];
}

// Elements [begin, end) of a work item's planes, multiples of kLanes.
void pack_item(
    const Call& call, int64_t group, const std::vector<int64_t>& from, int64_t begin, int64_t end, uint32_t* planes) {
  PackCall pack = {};
  pack.source = at_channel(call.lattice.source, group * call.lattice.source_channels);
  pack.channels = call.lattice.source_channels;
  pack.pairs = call.pairs;
  pack.pitch = call.pitch;
  for (int64_t at = begin; at < end; at += kLanes) {
    pack.from = from.data() + at;
    pack.planes = planes + at;
    call.kernels.pack(pack);
  }
}

UnpackCall unpack_call(const Epilogue& epilogue) {
  UnpackCall unpack = {};
  unpack.low = epilogue.low;
  unpack.high = epilogue.high;
  unpack.has_low = unpack.low > -std::numeric_limits<float>::infinity();
  unpack.has_high = unpack.high < std::numeric_limits<float>::infinity();
  return unpack;
}

// Products [begin, end) of a group at all positions of an item.
void run_products(
    const Call& call, const PlaneItem& item, int64_t begin, int64_t end, const uint32_t* planes, float* results) {
  const Program& program = call.program;
  std::vector<int64_t> at, to;
  tile_places(call.lattice, call.layout, item, at);
  const int64_t tiles = static_cast<int64_t>(at.size()), at_once = tiles_of(static_cast<int>(program.rows));
  ProductCall product = {};
  product.rows = static_cast<int>(program.rows);
  product.pairs = static_cast<int>(program.pairs);
  product.columns = program.columns;
  product.planes = planes;
  product.pitch = call.pitch;
  UnpackCall unpack = unpack_call(call.epilogue);
  int64_t residue = -1;
  bool waits = false;
  call.kernels.begin(product.rows, product.pairs);
  for (int64_t p = begin; p < end;) {
    const ProductRows& first = program.products[static_cast<size_t>(p)];
    if (first.residue != residue) {
      if (waits) call.kernels.unpack(unpack);
      waits = false;
      residue = first.residue;
      dest_places(call.lattice, call.layout, item, residue, to);
    }
    // Products of neighboring rows whose results are stored together, lines of them whole.
    int64_t last = p + 1, rows = first.rows;
    for (; last < end; ++last) {
      const ProductRows& next = program.products[static_cast<size_t>(last)];
      if (next.group != first.group || next.residue != residue || next.first_row != first.first_row + rows ||
          rows + program.rows > kMostRows)
        break;
      rows += next.rows;
    }
    const int64_t channel = first.group * call.lattice.dest_channels + first.first_row;
    uint16_t* const dest = at_channel(call.lattice.dest, channel);
    const uint16_t* const residual =
        call.epilogue.residual == nullptr ? nullptr : static_cast<const uint16_t*>(call.epilogue.residual) + channel;
    for (int64_t tile = 0; tile < tiles; tile += at_once) {
      product.tiles = static_cast<int>(std::min(at_once, tiles - tile));
      for (int i = 0; i < product.tiles; ++i) product.at[i] = at[static_cast<size_t>(tile + i)];
      const int64_t* const lanes = to.data() + tile * kLanes;
      for (int i = 0; i < product.tiles * kLanes; ++i)
        if (lanes[i] >= 0) __builtin_prefetch(dest + lanes[i], 1);
      // Results are stored one product later, while tiles are multiplied: neither waits for the other.
      float* const into = waits && unpack.results == results ? results + kResultFloats : results;
      product.results = into;
      for (int64_t i = p; i < last; ++i) {
        const ProductRows& of = program.products[static_cast<size_t>(i)];
        product.chunks = of.chunks;
        product.weights = call.weights + of.first_chunk * program.chunk_bytes();
        product.offsets = call.offsets + of.first_chunk * program.offsets_of_chunk();
        call.kernels.product(product);
        product.results += of.rows * kLanes;
        if (i == p && waits) call.kernels.unpack(unpack);
      }
      waits = true;
      unpack.results = into;
      unpack.rows = static_cast<int>(rows);
      unpack.dest = dest;
      unpack.residual = residual;
      unpack.bias = call.bias + channel;
      unpack.tiles = product.tiles;
      unpack.to = lanes;
    }
    p = last;
  }
  if (waits) call.kernels.unpack(unpack);
  call.kernels.end();
}

// The same of products whose rows are scattered.
void run_scatters(
    const Call& call, const PlaneItem& item, int64_t begin, int64_t end, const uint32_t* planes, float* sums) {
  const Program& program = call.program;
  std::vector<int64_t> at, to;
  tile_places(call.lattice, call.layout, item, at);
  const int64_t tiles = static_cast<int64_t>(at.size());
  ScatterCall scatter = {};
  scatter.pairs = static_cast<int>(program.pairs);
  scatter.planes = planes;
  scatter.pitch = call.pitch;
  scatter.sums = sums;
  UnpackCall unpack = unpack_call(call.epilogue);
  int64_t residue = -1;
  for (int64_t p = begin; p < end; ++p) {
    const ProductRows& rows = program.products[static_cast<size_t>(p)];
    if (rows.residue != residue) dest_places(call.lattice, call.layout, item, rows.residue, to);
    residue = rows.residue;
    scatter.chunks = rows.chunks;
    scatter.weights = call.weights + rows.first_chunk * program.chunk_bytes();
    scatter.offsets = call.offsets + rows.first_chunk * kScatterOffsets;
    for (int64_t tile = 0; tile < tiles; tile += kScatterTiles) {
      scatter.tiles = static_cast<int>(std::min<int64_t>(kScatterTiles, tiles - tile));
      for (int i = 0; i < scatter.tiles; ++i) scatter.at[i] = at[static_cast<size_t>(tile + i)];
      std::fill_n(sums, divide_up(rows.rows, kMostRows) * kScatterTiles * kMostRows * kLanes, 0.0f);
      call.kernels.scatter(scatter);
      unpack.tiles = scatter.tiles;
      unpack.to = to.data() + tile * kLanes;
      for (int64_t row = 0; row < rows.rows; row += kMostRows) {
        const int64_t channel = rows.group * call.lattice.dest_channels + rows.first_row + row;
        unpack.results = sums + row * kScatterTiles * kLanes;
        unpack.rows = static_cast<int>(std::min<int64_t>(kMostRows, rows.rows - row));
        unpack.dest = at_channel(call.lattice.dest, channel);
        if (call.epilogue.residual != nullptr)
          unpack.residual = static_cast<const uint16_t*>(call.epilogue.residual) + channel;
        unpack.bias = call.bias + channel;
        call.kernels.unpack(unpack);
      }
    }
  }
  call.kernels.end();
}

// The products of a group, or a share of them that has about as many chunks as the others.
int64_t first_product_of(const Program& program, int64_t group, int64_t groups, int64_t share, int64_t shares) {
  const int64_t count = static_cast<int64_t>(program.products.size()) / groups;
  const int64_t first = group * count;
  if (share == shares) return first + count;
  const auto weight_before = [&](int64_t p) {  // a product without chunks has results to store as well
    const int64_t chunk = p < static_cast<int64_t>(program.products.size())
                              ? program.products[static_cast<size_t>(p)].first_chunk
                              : program.chunks;
    return chunk + p;
  };
  const int64_t begin = weight_before(first), end = weight_before(first + count);
  const int64_t wanted = begin + (end - begin) * share / shares;
  int64_t low = first, high = first + count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (weight_before(middle) < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

int64_t percent_for_planes(const Program& program, const Lattice& lattice) {
  const int64_t of_weights = 100 * program.chunks * program.chunk_bytes() / (caches().l2_lines * kVectorBytes);
  if (program.columns == Columns::kPlanes && !program.is_scattered) {
    if (lattice.taps.size() == 1) return cost::block::kFewestPlanesPercent;
    return std::clamp(
        cost::block::kPercentOfL2 - of_weights, cost::block::kFewestPlanesPercent, cost::block::kMostPlanesPercent);
  }
  return of_weights < 50 ? cost::block::kFewGatheredPercentOfL2 : cost::block::kGatheredPercentOfL2;
}

void run(
    const Lattice& lattice, const Program& program, const BlockPattern& pattern, const Epilogue& epilogue,
    const Threads& threads) {
  const Kernels& kernels = block::kernels();
  const int64_t pairs = pairs_of(program, lattice);
  const PlaneLayout layout = lay_out_planes(lattice, pairs, threads.count, percent_for_planes(program, lattice));
  const int64_t pitch = layout.pitch(), plane_elements = pairs * pitch;
  if (plane_elements > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument(
        "sparse_conv2d: "
        "expected rows of an image whose channels take less than 8 GB in blocks");
  const int64_t items = layout.items(), groups = lattice.groups;
  const int64_t products = static_cast<int64_t>(program.products.size()) / groups;
  // Few items: threads share the planes of each, and its products.
  int64_t shares = 1;
  if (groups * items < cost::block::kItemsPerThread * threads.count && groups * items % threads.count != 0)
    shares = std::min(products, divide_up(cost::block::kItemsPerThread * threads.count, groups * items));
  const bool is_shared = shares > 1;

  char* weights;
  int32_t* offsets;
  float* bias;
  uint32_t* shared_planes;
  WorkspaceLayout own;
  float* weight_floats;
  own.add(&weight_floats, program.chunks * program.chunk_bytes() / 4 + kLanes);
  own.add(&offsets, program.chunks * program.offsets_of_chunk() + kLanes);
  own.add(&bias, groups * lattice.dest_channels + kMostRows);
  own.add(&shared_planes, is_shared ? groups * items * plane_elements : 0);
  own.allocate(call_workspace);
  const TrimWorkspace trim{call_workspace};
  weights = reinterpret_cast<char*>(weight_floats);
  const int64_t rows = groups * lattice.dest_channels;
  if (epilogue.bias != nullptr) {
    cpu_kernels().widen(epilogue.bias, rows, DType::kBFloat16, bias);
  } else {
    std::fill_n(bias, rows, 0.0f);
  }
  const auto fill = [&](int64_t begin, int64_t end) {
    fill_program(
        program, lattice, pattern, kernels, layout.tap_offsets, pitch, (pairs - 1) * pitch, begin, end, weights,
        offsets);
  };
  const int64_t all_products = groups * products;
  if (program.chunks * program.chunk_bytes() < cost::block::kFewestFilledBytes) {
    fill(0, all_products);
  } else {
    const int64_t parts = std::min(all_products, 8 * threads.count);
    threads.run(
        parts, [&](int64_t begin, int64_t end) { fill(all_products * begin / parts, all_products * end / parts); });
  }
  const Call call = {lattice, program, layout, kernels, pairs, pitch, weights, offsets, epilogue, bias};

  if (is_shared) {
    const int64_t lines = layout.item_microbatches * layout.positions / kLanes;
    const int64_t parts = std::min<int64_t>(lines, cost::block::kItemsPerThread * threads.count);
    threads.run(groups * items * parts, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> from;
      int64_t last = -1;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t index = i / parts, part = i % parts;
        const PlaneItem item = plane_item(lattice, layout, index % items);
        if (index != last) source_places(lattice, layout, item, from);
        last = index;
        const int64_t used = item.microbatches * layout.positions / kLanes;
        pack_item(
            call, index / items, from, used * part / parts * kLanes, used * (part + 1) / parts * kLanes,
            shared_planes + index * plane_elements);
      }
    });
  }
  threads.run(groups * items * shares, [&](int64_t begin, int64_t end) {
    uint32_t* own_planes;
    float* results;
    WorkspaceLayout buffers;
    buffers.add(&own_planes, is_shared ? 0 : plane_elements);
    buffers.add(&results, program.is_scattered ? kSumFloats : 2 * kResultFloats);
    buffers.allocate(worker_workspace);
    const TrimWorkspace trim_worker{worker_workspace};
    std::vector<int64_t> from;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = i / shares, share = i % shares, group = index / items;
      const PlaneItem item = plane_item(lattice, layout, index % items);
      const uint32_t* planes = own_planes;
      if (is_shared) {
        planes = shared_planes + index * plane_elements;
      } else {
        source_places(lattice, layout, item, from);
        pack_item(call, group, from, 0, item.microbatches * layout.positions, own_planes);
      }
      (program.is_scattered ? run_scatters : run_products)(
          call, item, first_product_of(program, group, groups, share, shares),
          first_product_of(program, group, groups, share + 1, shares), planes, results);
    }
  });
}

}  // namespace

void conv2d(
    const ConvGeometry& geometry, const BlockPattern& pattern, const Activation& input, const Epilogue& epilogue,
    const Activation& output, const Threads& threads) {
  check_blocks(pattern);
  if (is_empty(output)) return;
  Lattice lattice = forward_lattice(geometry, input, output);
  merge_positions(lattice);
  run(lattice, make_program(pattern, lattice, false, kernels()), pattern, epilogue, threads);
}

void input_gradient(
    const ConvGeometry& geometry, const BlockPattern& pattern, const Activation& grad_output,
    const Activation& grad_input, const Threads& threads) {
  check_blocks(pattern);
  if (is_empty(grad_input)) return;
  Lattice lattice = input_gradient_lattice(geometry, grad_output, grad_input);
  merge_positions(lattice);
  run(lattice, make_program(pattern, lattice, true, kernels()), pattern, Epilogue(), threads);
}

bool is_supported(const BlockPattern& pattern, int64_t groups) {
  return groups == 1 || pattern.rows / groups % pattern.block[0] == 0;
}

int64_t elements_of(const BlockPattern& pattern) {
  const int64_t last = pattern.block_columns() - 1, missing = (last + 1) * pattern.block[1] - pattern.channels;
  int64_t elements = 0;
  for (int64_t row = 0; row < pattern.block_rows(); ++row) {
    const int64_t rows = std::min(pattern.block[0], pattern.rows - row * pattern.block[0]);
    int64_t channels = (pattern.crow_indices[row + 1] - pattern.crow_indices[row]) * pattern.block[1];
    // Those of the last column are the last of each row.
    for (int32_t b = pattern.crow_indices[row + 1] - 1; missing > 0 && b >= pattern.crow_indices[row]; --b) {
      if (pattern.col_indices[b] < last * pattern.taps) break;
      channels -= missing;
    }
    elements += rows * channels;
  }
  return elements;
}

void check_blocks(const BlockPattern& pattern) {
  SparsePattern rows;
  rows.crow_indices = pattern.crow_indices;
  rows.col_indices = pattern.col_indices;
  rows.rows = pattern.block_rows();
  rows.nonzeros = pattern.blocks;
  check_rows(rows);
  check_indices(rows, pattern.block_columns() * pattern.taps);
}

const char* kernels_name() {
  return kernels().name;
}

}  // namespace sparsekernels::block
