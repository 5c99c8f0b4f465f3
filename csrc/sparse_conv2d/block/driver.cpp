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
#include "sparse_conv2d/block/items.h"

namespace sparsekernels::block {
namespace {

thread_local Workspace call_workspace, worker_workspace;

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
  if (program.has_neighbors() && !program.is_scattered) {
    if (lattice.taps.size() == 1) return cost::block::kFlatPercentOfL2;
    return program.columns == Columns::kPanels ? cost::block::kPanelsPercentOfL2 : cost::block::kPlanesPercentOfL2;
  }
  return of_weights < 50 ? cost::block::kFewGatheredPercentOfL2 : cost::block::kGatheredPercentOfL2;
}

// Weights that L2 does not hold are read from L3 for each work item. So an item takes a share of them, and its planes
// are packed for each share, where that is less.
int64_t shares_of_weights(const Program& program, int64_t groups, int64_t items, int64_t packed_elements) {
  const int64_t lines = program.chunks * program.chunk_bytes() / groups / kVectorBytes;
  const int64_t shares = divide_up(lines * 100, caches().l2_lines * cost::block::kWeightsPercentOfL2);
  const double saved = static_cast<double>(items * lines) * cost::block::kLineFromL3;
  const double packed = static_cast<double>((shares - 1) * items * packed_elements / kLanes) * cost::block::kPackedLine;
  return saved > packed ? std::max<int64_t>(1, shares) : 1;
}

void run(
    const Lattice& lattice, const Program& program, const BlockPattern& pattern, const Epilogue& epilogue,
    const Threads& threads) {
  const Kernels& kernels = block::kernels();
  const int64_t planes = planes_of(program, lattice);
  const bool panels = program.columns == Columns::kPanels;
  const PlaneLayout layout =
      lay_out_planes(lattice, planes * program.position(), panels, threads.count, percent_for_planes(program, lattice));
  const int64_t pitch = panels ? layout.panel_pitch(program.position()) : layout.pitch();
  const int64_t plane_elements = planes * pitch;
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
  if (!is_shared) shares = std::min(products, shares_of_weights(program, groups, items, plane_elements));

  char* weights;
  int32_t* offsets;
  float* bias;
  uint32_t* shared_planes;
  WorkspaceLayout own;
  float* weight_floats;
  const int64_t filled_bytes = program.in_place ? 0 : program.chunks * program.chunk_bytes();
  own.add(&weight_floats, filled_bytes / 4 + kLanes);
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
        program, lattice, pattern, kernels, layout.tap_offsets, pitch, (planes - 1) * pitch, begin, end, weights,
        offsets);
  };
  const int64_t all_products = groups * products;
  if (filled_bytes < cost::block::kFewestFilledBytes) {
    fill(0, all_products);
  } else {
    const int64_t parts = std::min(all_products, 8 * threads.count);
    threads.run(
        parts, [&](int64_t begin, int64_t end) { fill(all_products * begin / parts, all_products * end / parts); });
  }
  const Items shared = {
      lattice,
      program,
      layout,
      kernels,
      planes,
      pitch,
      program.in_place ? reinterpret_cast<const char*>(pattern.values) : weights,
      offsets,
      epilogue,
      bias};

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
            shared, index / items, from, used * part / parts * kLanes, used * (part + 1) / parts * kLanes,
            shared_planes + index * plane_elements);
      }
    });
  }
  // Units of work: an item with each share of the products. Where these share the planes, one after the other; else all
  // items with one share before the next one.
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
      const int64_t group = i / (items * shares), of_group = i % (items * shares);
      const int64_t index = is_shared ? of_group / shares : of_group % items;
      const int64_t share = is_shared ? of_group % shares : of_group / items;
      const PlaneItem item = plane_item(lattice, layout, index);
      const uint32_t* item_planes = own_planes;
      if (is_shared) {
        item_planes = shared_planes + (group * items + index) * plane_elements;
      } else {
        source_places(lattice, layout, item, from);
        pack_item(shared, group, from, 0, item.microbatches * layout.positions, own_planes);
      }
      const int64_t first = first_product_of(program, group, groups, share, shares);
      const int64_t last = first_product_of(program, group, groups, share + 1, shares);
      if (program.is_scattered)
        run_scatters(shared, item, first, last, item_planes, results);
      else
        run_products(shared, item, first, last, item_planes, results);
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
