// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The parts that a plan cuts a lattice into, and their vectors.
#pragma once

#include <vector>

#include "sparse_conv2d/tiled/pack_calls.h"
#include "sparse_conv2d/tiled/plan.h"

namespace sparsekernels::tiled {

// A part of the lattice: some lane sets, and positions of their lanes.
struct WorkItem {
  int64_t group;  // of the convolution
  int64_t first_lane_set, lane_sets;
  int64_t first[2], size[2];
};

WorkItem work_item_at(const Plan& plan, int64_t group, int64_t index);

// One side of the lattice, as packing and unpacking see it.
struct Side {
  const Activation* tensor;
  bool tensor_is_dest;
  int64_t channels;  // of a group of the convolution
  int64_t step[2], origin[2], margin[2];
  int64_t phase_columns;             // phases that are held, across
  std::vector<int64_t> phase_of[2];  // of each remainder modulo the step: its index, or -1
};

Side source_side(const Lattice& lattice);

Side dest_side(const Lattice& lattice);

// Where the vectors of a work item lie: planes[channel][lane set][phase][row][column].
struct Planes {
  float* vectors;
  int64_t channel, lane_set, phase, row;  // strides, in floats
};

const PackKernels& pack_kernels(DType dtype);

// Packs or unpacks, as `run` does, every channel in [channel, channel + channels) of the work item, one lane set after
// another.
void pack_or_unpack(
    void (*run)(const PackCall&), const Plan& plan, const Side& side, const WorkItem& work_item, int64_t channel,
    int64_t channels, const Planes& planes, const PackedEpilogue& packed);

// The rows of a work item that tiles cover, and where each begins.
struct TileRows {
  int64_t count, columns;
  std::vector<int64_t> planes;

  TileRows(const Plan& plan, const WorkItem& work_item, const Planes& source);
};

Planes source_planes(const Plan& plan, const WorkItem& work_item, float* vectors);

// A work item's sums, or gradients: [pattern row][residue][lane set][row][column], without gaps.
Planes result_planes(const WorkItem& work_item, int64_t residues, float* vectors);

// Calls body(first row, rows, first column, columns) for each tile of a work item.
template <class Body>
void for_each_tile(const Plan& plan, const TileRows& rows, Body body) {
  const int64_t down = divide_up(rows.count, plan.tile_rows), across = divide_up(rows.columns, plan.tile_columns);
  for (int64_t i = 0; i < down; ++i) {
    const int64_t row = rows.count * i / down, height = rows.count * (i + 1) / down - row;
    for (int64_t j = 0; j < across; ++j) {
      const int64_t column = rows.columns * j / across;
      body(row, height, column, rows.columns * (j + 1) / across - column);
    }
  }
}

}  // namespace sparsekernels::tiled
