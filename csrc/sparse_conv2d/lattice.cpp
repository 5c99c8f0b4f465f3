// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/lattice.h"

#include <algorithm>

#include "sparse_conv2d/cost_model.h"

namespace sparsekernels {
namespace {

int64_t floor_modulo(int64_t a, int64_t b) {
  const int64_t rest = a % b;
  return rest < 0 ? rest + b : rest;
}

// One dimension of a tap: the residue that it belongs to, and the source coordinate under position 0.
struct Reach {
  int64_t residue, source;
};

// Fills in what follows from the taps' reach: origin, phases, shifts.
void place_taps(Lattice& lattice, const std::vector<Reach> (&reach)[2]) {
  const int64_t rows = static_cast<int64_t>(reach[0].size()), columns = static_cast<int64_t>(reach[1].size());
  lattice.taps.resize(static_cast<size_t>(rows * columns));
  for (int d = 0; d < 2; ++d) {
    const int64_t step = lattice.source_step[d];
    // Taps that see nothing but padding do not count: a kernel that reaches far beyond a small image stays small.
    const auto reaches = [&](const Reach& one) {
      return one.source + (lattice.size[d] - 1) * step >= 0 && one.source < lattice.source.size[2 + d];
    };
    int64_t origin = 0;
    bool any = false;
    for (const Reach& one : reach[d]) {
      if (!reaches(one)) continue;
      origin = any ? std::min(origin, one.source) : one.source;
      any = true;
    }
    lattice.origin[d] = origin;
    lattice.most_shift[d] = 0;
    std::vector<int64_t>& phases = lattice.phases[d];
    for (const Reach& one : reach[d])
      if (reaches(one)) phases.push_back((one.source - origin) % step);
    if (!any) phases.push_back(0);
    std::sort(phases.begin(), phases.end());
    phases.erase(std::unique(phases.begin(), phases.end()), phases.end());
    for (int64_t k = 0; k < static_cast<int64_t>(reach[d].size()); ++k) {
      const Reach& one = reach[d][static_cast<size_t>(k)];
      const bool seen = reaches(one);
      const int64_t phase = seen ? (one.source - origin) % step : 0, shift = seen ? (one.source - origin) / step : 0;
      const int64_t index = std::lower_bound(phases.begin(), phases.end(), phase) - phases.begin();
      lattice.most_shift[d] = std::max(lattice.most_shift[d], shift);
      for (int64_t other = 0; other < (d == 0 ? columns : rows); ++other) {
        Tap& tap = lattice.taps[static_cast<size_t>(d == 0 ? k * columns + other : other * columns + k)];
        tap.phase[d] = index;
        tap.shift[d] = shift;
        tap.residue = d == 0 ? one.residue * lattice.dest_step[1] : tap.residue + one.residue;
        tap.reaches = seen && (d == 0 || tap.reaches);
        lattice.some_reach_nothing = lattice.some_reach_nothing || !seen;
      }
    }
  }
}

// Strides that nothing depends on, in the form that most can be done with.
Activation plain(Activation tensor) {
  if (tensor.size[3] == 1) tensor.stride[3] = 1;
  return tensor;
}

}  // namespace

bool transposes_channels(const Activation& tensor, int64_t channels) {
  return tensor.stride[1] == 1 && channels >= cost::kFewestTransposedChannels &&
         (tensor.stride[3] != 1 || tensor.size[3] == 1);
}

Lattice forward_lattice(const ConvGeometry& geometry, const Activation& input, const Activation& output) {
  Lattice lattice = {};
  lattice.source = plain(input);
  lattice.dest = plain(output);
  lattice.groups = geometry.groups;
  lattice.source_channels = input.size[1] / geometry.groups;
  lattice.dest_channels = output.size[1] / geometry.groups;
  std::vector<Reach> reach[2];
  for (int d = 0; d < 2; ++d) {
    lattice.size[d] = output.size[2 + d];
    lattice.source_step[d] = geometry.stride[d];
    lattice.dest_step[d] = 1;
    for (int64_t k = 0; k < geometry.kernel[d]; ++k)
      reach[d].push_back({0, k * geometry.dilation[d] - geometry.padding[d]});
  }
  place_taps(lattice, reach);
  return lattice;
}

// Output row y' reads input row y = y' * stride + k * dilation - padding, so that y takes its gradient from
// y' = (y + padding - k * dilation) / stride where that is whole: for one residue of y modulo the stride.
Lattice input_gradient_lattice(
    const ConvGeometry& geometry, const Activation& grad_output, const Activation& grad_input) {
  Lattice lattice = {};
  lattice.source = plain(grad_output);
  lattice.dest = plain(grad_input);
  lattice.groups = geometry.groups;
  lattice.source_channels = grad_output.size[1] / geometry.groups;
  lattice.dest_channels = grad_input.size[1] / geometry.groups;
  std::vector<Reach> reach[2];
  for (int d = 0; d < 2; ++d) {
    const int64_t stride = geometry.stride[d];
    lattice.size[d] = divide_up(grad_input.size[2 + d], stride);
    lattice.source_step[d] = 1;
    lattice.dest_step[d] = stride;
    for (int64_t k = 0; k < geometry.kernel[d]; ++k) {
      const int64_t back = k * geometry.dilation[d] - geometry.padding[d], residue = floor_modulo(back, stride);
      reach[d].push_back({residue, (residue - back) / stride});
    }
  }
  place_taps(lattice, reach);
  return lattice;
}

void merge_positions(Lattice& lattice) {
  if (!lattice.is_flat() || lattice.origin[0] != 0 || lattice.origin[1] != 0) return;
  Activation* const both[] = {&lattice.source, &lattice.dest};
  for (int d = 2; d < 4; ++d)
    if (lattice.source.size[d] != lattice.dest.size[d]) return;
  bool pixels = true, rows = true;
  for (const Activation* tensor : both) {
    const int64_t height = tensor->size[2], width = tensor->size[3];
    const bool row = height == 1 || width == 1 || tensor->stride[2] == width * tensor->stride[3];
    const int64_t pixel = width == 1 ? tensor->stride[2] : tensor->stride[3];
    const bool batch = tensor->size[0] == 1 || height * width == 1 || tensor->stride[0] == height * width * pixel;
    const bool by_channel = tensor->size[1] == 1 || tensor->stride[1] == 1;
    rows = rows && row;
    pixels = pixels && row && batch && by_channel;
  }
  if (!rows) return;
  for (Activation* tensor : both) {
    const int64_t count = tensor->size[2] * tensor->size[3];
    const int64_t pixel = count == 1 ? tensor->stride[0] : tensor->size[3] == 1 ? tensor->stride[2] : tensor->stride[3];
    tensor->size[2] = 1;
    tensor->stride[2] = 0;
    tensor->size[3] = count;
    tensor->stride[3] = count == 1 ? 1 : pixel;
    if (pixels) {
      tensor->size[0] *= count;
      tensor->stride[0] = pixel;
      tensor->size[3] = 1;
      tensor->stride[3] = 1;
    }
  }
  lattice.size[0] = 1;
  lattice.size[1] = lattice.dest.size[3];
}

// A lane may be an image, a region of one, or every kLanes-th pixel. All of them compute the same; what differs is how
// many lanes stay empty, and what packing costs.
LaneGrid choose_lanes(const Lattice& lattice) {
  const int64_t batch = lattice.source.size[0], height = lattice.size[0], width = lattice.size[1];
  LaneGrid best = {};
  double best_cost = 0;
  for (int64_t rows = 1; rows <= std::min<int64_t>(height, kLanes); ++rows) {
    for (int64_t columns = 1; columns <= std::min<int64_t>(width, kLanes) && rows * columns <= kLanes; ++columns) {
      LaneGrid one = {};
      one.size[0] = divide_up(height, rows);
      one.size[1] = divide_up(width, columns);
      // as few as cover the image with regions of this size
      one.grid[0] = divide_up(height, one.size[0]);
      one.grid[1] = divide_up(width, one.size[1]);
      one.lanes = batch * one.grid[0] * one.grid[1];
      for (int d = 0; d < 2; ++d) {
        one.origin_step[d] = one.size[d];
        one.position_step[d] = 1;
        one.total[d] = lattice.size[d];
      }
      // Vectors that are computed, and, at a fraction of that, vectors that are packed, with the rest of a row that is
      // read for 16 columns at a time.
      const double halo = static_cast<double>(
          (one.size[0] + lattice.most_shift[0]) * divide_up(one.size[1] + lattice.most_shift[1], 4) * 4);
      const double lane_sets = static_cast<double>(one.lane_sets());
      const double cost = lane_sets * (static_cast<double>(one.size[0] * one.size[1]) + cost::tiled::kPacking * halo);
      if (best.lanes == 0 || cost < best_cost) {
        best = one;
        best_cost = cost;
      }
    }
  }
  const bool neighbors = lattice.is_flat() && lattice.origin[0] == 0 && lattice.origin[1] == 0 && height == 1 &&
                         lattice.source.size[3] == lattice.dest.size[3] && lattice.source.stride[3] == 1 &&
                         lattice.dest.stride[3] == 1 && width >= kLanes;
  const int64_t pixel_vectors = batch * divide_up(width, kLanes);
  if (neighbors && static_cast<double>(pixel_vectors) <= cost::tiled::kPixelTolerance * best_cost) {
    best.grid[0] = 1;
    best.grid[1] = kLanes;
    best.size[0] = 1;
    best.size[1] = divide_up(width, kLanes);
    best.origin_step[0] = best.origin_step[1] = 1;
    best.position_step[0] = 1;
    best.position_step[1] = kLanes;
    best.lanes = batch * kLanes;
    best.adjacent = true;
  }
  return best;
}

}  // namespace sparsekernels
