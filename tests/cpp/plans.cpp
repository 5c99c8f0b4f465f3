// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the planners choose, as docs/sparse_kernels.md says they do, on the machine that it was measured on
// (documented_machine.cpp). A change of a fitted constant that moves a choice fails here, and the documentation
// follows.
#include <algorithm>

#include "check.h"
#include "geometries.h"
#include "layer_chain/plan.h"
#include "sparse_conv2d/engine.h"
#include "sparse_conv2d/tiled/plan.h"

namespace sparsekernels {
namespace tests {
namespace {

int64_t nonzeros_of(const Layer& layer, double density) {
  const ConvGeometry& geometry = layer.geometry;
  const int64_t weights = layer.output.size[1] * layer.input.size[1] * geometry.kernel[0] * geometry.kernel[1];
  return static_cast<int64_t>(static_cast<double>(weights / geometry.groups) * density);
}

SparsePattern pattern_of(int64_t nonzeros) {
  SparsePattern pattern;
  pattern.nonzeros = nonzeros;
  return pattern;
}

Lattice lattice_of(const Layer& layer) {
  Lattice lattice = forward_lattice(layer.geometry, layer.input, layer.output);
  merge_positions(lattice);
  return lattice;
}

// The table "How many images".
void check_images() {
  const struct {
    int64_t kernel, channels, outputs, size, batch;
    int64_t images, strips;  // at 90%
    bool direct;
    int64_t images_at_98;
  } rows[] = {
      {3, 128, 128, 16, 64, 1, 1, true, 1},  {3, 64, 64, 56, 16, 1, 1, true, 1},
      {3, 256, 256, 14, 64, 1, 1, true, 1},  {3, 256, 256, 8, 64, 16, 2, false, 1},
      {3, 512, 512, 7, 64, 16, 4, false, 4}, {1, 512, 512, 7, 64, 1, 1, true, 1},
      {1, 512, 2048, 7, 64, 1, 1, true, 1},  {1, 512, 512, 1, 512, 16, 1, false, 16},
  };
  for (const auto& row : rows) {
    const Layer layer = square_layer(row.batch, row.channels, row.outputs, row.size, row.kernel);
    const Lattice lattice = lattice_of(layer);
    for (const int64_t threads : {1, 2, 16}) {
      const int64_t nonzeros = nonzeros_of(layer, 0.1);
      const jit::ForwardPlan plan = jit::make_forward_plan(lattice, {nonzeros}, 0, threads);
      CHECK(forward_engine(lattice, pattern_of(nonzeros), plan) == Engine::kJit);
      CHECK_EQUAL(plan.images, row.images);
      CHECK_EQUAL(plan.direct, row.direct);
      if (threads == 1) CHECK_EQUAL(plan.strips[0], row.strips);
      CHECK_EQUAL(jit::make_forward_plan(lattice, {nonzeros_of(layer, 0.02)}, 0, threads).images, row.images_at_98);
    }
  }
}

// "At 90% and above 2x4 to 4x4 beat 6x4": small tiles, the smaller the sparser, and a width cut into even tiles.
void check_tiles() {
  constexpr int64_t kMostVectors = 28;  // AVX-512
  for (const int64_t channels : {64, 128, 256}) {
    for (const int64_t size : {14, 16, 28, 56}) {
      const Layer layer = square_layer(64, channels, channels, size, 3);
      const Lattice lattice = lattice_of(layer);
      int64_t before = kMostVectors;
      for (const double density : {0.2, 0.1, 0.05, 0.02}) {
        const tiled::Plan plan =
            tiled::make_plan(lattice, nonzeros_of(layer, density), tiled::TileKind::kForward, kMostVectors);
        const int64_t vectors = plan.tile_rows * plan.tile_columns;
        if (density == 0.1 && size >= 16) CHECK(vectors >= 8 && vectors <= 16);
        CHECK(vectors <= 24);
        CHECK(vectors <= before);
        before = vectors;
        CHECK_EQUAL(evened(plan.lanes.size[1], plan.tile_columns), plan.tile_columns);
        // a panel's vectors fit L1, a work item's L2
        const int64_t panel = plan.panel_channels * (plan.tile_rows + 2) * (plan.tile_columns + 2);
        CHECK(panel <= 768 * 8 / 10);
        CHECK(tiled::item_vectors(plan) * plan.slice_rows <= 32768);
      }
    }
  }
}

// Every nonzero and vector is someone's, whatever a layer is: slices, panels and work items cover what there is.
void check_cover() {
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    const Layer layer = random_layer(random);
    const Lattice lattice = lattice_of(layer);
    const int64_t nonzeros = std::max<int64_t>(1, nonzeros_of(layer, 0.1)), rows = lattice.dest_channels;
    jit::ForwardPlan plans[4];
    for (int64_t threads = 1; threads <= 4; ++threads) {
      const jit::ForwardPlan plan = plans[threads - 1] = jit::make_forward_plan(lattice, {nonzeros}, 0, threads);
      CHECK_EQUAL(plan.first_row(0, rows), 0);
      CHECK_EQUAL(plan.first_row(plan.slices, rows), rows);
      for (int64_t slice = 0; slice < plan.slices; ++slice) {
        const int64_t count = plan.first_row(slice + 1, rows) - plan.first_row(slice, rows);
        CHECK(count >= 0 && count <= jit::kMostSliceRows);
      }
      CHECK(plan.panels * plan.panel_channels >= lattice.source_channels);
      CHECK((plan.panels - 1) * plan.panel_channels < lattice.source_channels);
      CHECK(plan.microbatches * plan.images >= lattice.source.size[0]);
      for (int d = 0; d < 2; ++d) CHECK(plan.strips[d] * plan.strip[d] >= lattice.size[d]);
      CHECK(plan.thread_shares >= 1 && plan.thread_shares <= plan.slices);
      // what an output is summed from does not depend on threads
      CHECK_EQUAL(plan.panel_channels, plans[0].panel_channels);
      CHECK_EQUAL(plan.images, plans[0].images);
    }
    const jit::WeightGradientPlan one = jit::make_weight_gradient_plan(lattice, {nonzeros}, 1),
                                  many = jit::make_weight_gradient_plan(lattice, {nonzeros}, 4);
    const Engine engine = weight_gradient_engine(lattice, pattern_of(nonzeros), one);
    CHECK(engine == weight_gradient_engine(lattice, pattern_of(nonzeros), many));
    if (engine == Engine::kTiled) continue;
    CHECK_EQUAL(one.chunks, many.chunks);
    CHECK_EQUAL(one.run_vectors, many.run_vectors);
    CHECK_EQUAL(one.item_microbatches, many.item_microbatches);
    CHECK_EQUAL(one.first_row(one.slices, rows), rows);
  }
}

// A weight gradient: runs of 4 to 16 vectors, four chunks where there is work for them, more vectors a run the denser.
void check_weight_gradient_plans() {
  for (const int64_t channels : {64, 128, 256, 512}) {
    const Layer layer = square_layer(64, channels, channels, 14, 3);
    const Lattice lattice = lattice_of(layer);
    int64_t before = 16;
    for (const double density : {0.2, 0.1, 0.02}) {
      const int64_t nonzeros = nonzeros_of(layer, density);
      const jit::WeightGradientPlan plan = jit::make_weight_gradient_plan(lattice, {nonzeros}, 1);
      CHECK(weight_gradient_engine(lattice, pattern_of(nonzeros), plan) == Engine::kJit);
      CHECK(plan.run_vectors >= 1 && plan.run_vectors <= 16);
      CHECK_EQUAL(plan.chunks, 4);
      CHECK(plan.slice_rows * 4 <= 768);  // gradients of a run of the fewest vectors fit L1
      CHECK(plan.slices == 1 || plan.run_vectors <= before);
      before = plan.slices == 1 ? 16 : plan.run_vectors;
    }
  }
}

// A row of 1x1 layers, of which layer `skips` adds the chain's input: segments follow each other, cut nowhere
// within that.
void check_chain(int count, int skips, int64_t batch, int64_t threads) {
  std::vector<ChainLayer> layers(static_cast<size_t>(count));
  std::vector<ChainLayerPlan> plans(layers.size());
  std::vector<ChainTensor> tensors(layers.size() + 1);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t size[3] = {64, 28, 28};
    std::copy(size, size + 3, tensors[i].size);
    tensors[i].last_use = static_cast<int>(i);
    tensors[i].layout = plain_layout(size);
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].source = static_cast<int>(i);
    ChainConvolution convolution;
    if (static_cast<int>(i) == skips) convolution.residual = 0;
    convolution.pattern.nonzeros = 4096;
    layers[i].operation = convolution;
    plans[i].plan.images = 1;
  }
  if (skips >= 0) tensors[0].last_use = skips;
  const std::vector<ChainSegment> segments = plan_chain(layers, plans, tensors, DType::kFloat32, batch, threads);
  int at = 0;
  for (const ChainSegment& segment : segments) {
    CHECK_EQUAL(segment.first, at);
    CHECK(segment.last > segment.first);
    CHECK(segment.images >= 1);
    CHECK(skips <= 0 || segment.first == 0 || segment.first > skips);
    CHECK_EQUAL(segment.places.size(), static_cast<size_t>(segment.last - segment.first));
    // neighbors are read and written at once: their places do not meet
    for (size_t i = 0; i + 2 < segment.places.size(); ++i) {
      const int64_t apart = segment.places[i + 1] - segment.places[i], elements = tensors[i + 1].elements();
      CHECK(apart >= elements || -apart >= elements);
    }
    at = segment.last;
  }
  CHECK_EQUAL(at, count);
}

}  // namespace

void test_plans() {
  check_images();
  check_tiles();
  check_cover();
  check_weight_gradient_plans();
  for (const int64_t batch : {1, 16, 64})
    for (const int64_t threads : {1, 4})
      for (const int skips : {-1, 2, 7}) check_chain(8, skips, batch, threads);
}

}  // namespace tests
}  // namespace sparsekernels
