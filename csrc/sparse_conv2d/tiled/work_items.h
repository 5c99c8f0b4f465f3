// The parts that a plan cuts a lattice into, and their lines.
#pragma once

#include <vector>

#include "sparse_conv2d/tiled/pack_calls.h"
#include "sparse_conv2d/tiled/plan.h"

namespace sparsekernels {

// A part of the lattice: some lane groups, and positions of their lanes.
struct TileWorkItem {
  int64_t group;  // of the convolution
  int64_t first_group, groups;
  int64_t first[2], size[2];
};

TileWorkItem tile_work_item_at(const TilePlan& plan, int64_t group, int64_t index);

// One side of the lattice, as the transfers between tensor and lines see it.
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

// Where the lines of a work item lie: planes[channel][lane group][phase][row][column].
struct Planes {
  float* lines;
  int64_t channel, group, phase, row;  // strides, in floats
};

const LineKernels& line_kernels(DType dtype);

// Every channel in [channel, channel + channels) of the work item, one lane group after another.
void transfer(
    void (*run)(const LineTransfer&), const TilePlan& plan, const Side& side, const TileWorkItem& work_item,
    int64_t channel, int64_t channels, const Planes& planes, const PackedEpilogue& packed);

// The rows of a work item that tiles walk over, and where each begins.
struct TileRows {
  int64_t count, columns;
  std::vector<int64_t> planes;

  TileRows(const TilePlan& plan, const TileWorkItem& work_item, const Planes& source);
};

Planes source_planes(const TilePlan& plan, const TileWorkItem& work_item, float* lines);

// A work item's sums, or gradients: [pattern row][residue][lane group][row][column], without gaps.
Planes result_planes(const TileWorkItem& work_item, int64_t residues, float* lines);

// Calls body(first row, rows, first column, columns) for each tile of a work_item.
template <class Body>
void for_each_tile(const TilePlan& plan, const TileRows& rows, Body body) {
  const int64_t down = divide_up(rows.count, plan.tile_rows), across = divide_up(rows.columns, plan.tile_columns);
  for (int64_t i = 0; i < down; ++i) {
    const int64_t row = rows.count * i / down, height = rows.count * (i + 1) / down - row;
    for (int64_t j = 0; j < across; ++j) {
      const int64_t column = rows.columns * j / across;
      body(row, height, column, rows.columns * (j + 1) / across - column);
    }
  }
}

}  // namespace sparsekernels
