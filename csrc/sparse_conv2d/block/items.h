// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Packs the planes or panels of a work item, and runs products on them.
#pragma once

#include <cstdint>
#include <vector>

#include "sparse_conv2d/block/planes.h"
#include "sparse_conv2d/block/program.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::block {

// What all work items of a call share.
struct Items {
  const Lattice& lattice;
  const Program& program;
  const PlaneLayout& layout;
  const Kernels& kernels;
  int64_t planes, pitch;
  const char* weights;
  const int32_t* offsets;
  const Epilogue& epilogue;
  const float* bias;  // of every row
};

// Of the buffers of a thread.
constexpr int64_t kResultFloats = kMostTiles * kMostRows * kLanes;  // of one product, of which two are under way
constexpr int64_t kSumFloats = (cost::block::kScatterRows + kMostRows) * kScatterTiles * kLanes;

// Elements [begin, end) of a work item's planes, or positions of its panels, multiples of kLanes. `from`: see
// source_places.
void pack_item(
    const Items& items, int64_t group, const std::vector<int64_t>& from, int64_t begin, int64_t end, uint32_t* planes);

// Products [begin, end) of a group at all positions of an item; `results`: two of kResultFloats.
void run_products(
    const Items& items, const PlaneItem& item, int64_t begin, int64_t end, const uint32_t* planes, float* results);

// The same of products whose rows are scattered; `sums`: kSumFloats.
void run_scatters(
    const Items& items, const PlaneItem& item, int64_t begin, int64_t end, const uint32_t* planes, float* sums);

}  // namespace sparsekernels::block
