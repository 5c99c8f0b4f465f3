// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A sparse convolution, or its input gradient, as one thing: a correlation over a lattice of positions.
//
// For every position m of the lattice and every tap t that belongs to a residue r,
//
//     dest[m * dest_step + r]  gets its share from  source[m * source_step + origin + phase(t) + shift(t) *
//     source_step]
//
// in each of two dimensions. A convolution with stride s has source_step = s: its source is split by phases, rows and
// columns modulo s. Its input gradient has dest_step = s: every residue of the destination has its own taps. All that a
// kernel sees are vectors at shifts of whole vectors.
#pragma once

#include <cstdint>
#include <vector>

#include "base/lanes.h"
#include "sparse_conv2d/call.h"

namespace sparsekernels {

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Even parts: 16 in parts of at most 7 is 3 of at most 6.
inline int64_t evened(int64_t count, int64_t most) {
  return divide_up(count, divide_up(count, most));
}

// Whether a tensor is better read 16 channels at once than 16 columns.
bool transposes_channels(const Activation& tensor, int64_t channels);

struct Tap {
  int64_t phase[2];  // index into the lattice's phases
  int64_t shift[2];
  int64_t residue;  // row residue * dest_step[1] + column residue
  bool reaches;     // the image, from some position
};

struct Lattice {
  Activation source, dest;
  int64_t groups, source_channels, dest_channels;  // channels of one group
  int64_t size[2];
  int64_t source_step[2], dest_step[2];
  int64_t origin[2];
  std::vector<int64_t> phases[2];  // those that a tap uses, ascending
  int64_t most_shift[2];
  std::vector<Tap> taps;  // kernel height x kernel width
  bool some_reach_nothing;

  int64_t residues() const { return dest_step[0] * dest_step[1]; }
  // One tap that neither shifts nor skips: a matrix product over positions.
  bool is_flat() const {
    return taps.size() == 1 && !some_reach_nothing && source_step[0] * source_step[1] * residues() == 1;
  }
};

Lattice forward_lattice(const ConvGeometry& geometry, const Activation& input, const Activation& output);
Lattice input_gradient_lattice(
    const ConvGeometry& geometry, const Activation& grad_output, const Activation& grad_input);

// Where the positions lie side by side in memory, describes them as one row of pixels, or as single pixels.
void merge_positions(Lattice& lattice);

// 16 translates of the lattice make a lane set. Lane v is image v / (grid rows * grid columns); its first
// position is (row of the grid) * origin_step[0], (column) * origin_step[1]; its next ones follow at position_step.
struct LaneGrid {
  int64_t grid[2];
  int64_t size[2];   // positions of a lane
  int64_t total[2];  // positions of the lattice
  int64_t origin_step[2];
  int64_t position_step[2];
  int64_t lanes;
  bool adjacent;  // neighboring lanes are neighboring pixels

  int64_t lane_sets() const { return (lanes + kLanes - 1) / kLanes; }
};

LaneGrid choose_lanes(const Lattice& lattice);

}  // namespace sparsekernels
