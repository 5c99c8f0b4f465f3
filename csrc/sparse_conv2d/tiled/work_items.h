// The parts that a plan cuts a lattice into, and their lines.
#pragma once

#include <vector>

#include "sparse_conv2d/tiled/pack_calls.h"
#include "sparse_conv2d/tiled/plan.h"

namespace sparsekernels {

// A part of the lattice: some lane groups, and positions of their lanes.
struct Unit {
  int64_t group;  // of the convolution
  int64_t first_group, groups;
  int64_t first[2], size[2];
};

Unit unit_at(const Plan& plan, int64_t group, int64_t index);

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

// Where the lines of a unit lie: planes[channel][lane group][phase][row][column].
struct Planes {
  float* lines;
  int64_t channel, group, phase, row;  // strides, in floats
};

const LineKernels& line_kernels(DType dtype);

// Every channel in [channel, channel + channels) of the unit, one lane group after another.
void transfer(
    void (*run)(const LineTransfer&), const Plan& plan, const Side& side, const Unit& unit, int64_t channel,
    int64_t channels, const Planes& planes, const Ending& ending);

// The rows of a unit that tiles walk over, and where each begins.
struct TileRows {
  int64_t count, columns;
  std::vector<int64_t> planes;

  TileRows(const Plan& plan, const Unit& unit, const Planes& source);
};

Planes source_planes(const Plan& plan, const Unit& unit, float* lines);

// A unit's sums, or gradients: [pattern row][residue][lane group][row][column], without gaps.
Planes result_planes(const Unit& unit, int64_t residues, float* lines);

// Calls body(first row, rows, first column, columns) for each tile of a unit.
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

}  // namespace sparsekernels
