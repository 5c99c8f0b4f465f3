// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The index maps of a lattice against the loops of a convolution.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "check.h"
#include "geometries.h"

namespace sparsekernels {
namespace tests {
namespace {

// (destination, source, tap) along one dimension.
using Products = std::set<std::tuple<int64_t, int64_t, int64_t>>;

// y[o] += w[k] * x[o * stride + k * dilation - padding]: with x as the source, or for the gradient of x with y.
Products products_of(const Layer& layer, int d, bool gradient) {
  const ConvGeometry& geometry = layer.geometry;
  Products products;
  for (int64_t o = 0; o < layer.output.size[2 + d]; ++o) {
    for (int64_t k = 0; k < geometry.kernel[d]; ++k) {
      const int64_t i = o * geometry.stride[d] + k * geometry.dilation[d] - geometry.padding[d];
      if (i < 0 || i >= layer.input.size[2 + d]) continue;
      products.insert(gradient ? std::make_tuple(i, o, k) : std::make_tuple(o, i, k));
    }
  }
  return products;
}

// The same by what the lattice says, of taps k in one dimension and the first tap in the other.
Products products_of(const Lattice& lattice, const ConvGeometry& geometry, int d) {
  Products products;
  for (int64_t k = 0; k < geometry.kernel[d]; ++k) {
    for (int64_t other = 0; other < geometry.kernel[1 - d]; ++other) {
      const int64_t index = d == 0 ? k * geometry.kernel[1] + other : other * geometry.kernel[1] + k;
      const Tap& tap = lattice.taps[static_cast<size_t>(index)];
      if (!tap.reaches) continue;
      const int64_t residue = d == 0 ? tap.residue / lattice.dest_step[1] : tap.residue % lattice.dest_step[1];
      for (int64_t m = 0; m < lattice.size[d]; ++m) {
        const int64_t dest = m * lattice.dest_step[d] + residue;
        const int64_t source = (m + tap.shift[d]) * lattice.source_step[d] + lattice.origin[d] +
                               lattice.phases[d][static_cast<size_t>(tap.phase[d])];
        if (dest < lattice.dest.size[2 + d] && source >= 0 && source < lattice.source.size[2 + d])
          products.insert({dest, source, k});
      }
    }
  }
  return products;
}

void check_lattice(const Lattice& lattice, const Layer& layer, bool gradient) {
  const Products wanted[2] = {products_of(layer, 0, gradient), products_of(layer, 1, gradient)};
  const Products got[2] = {products_of(lattice, layer.geometry, 0), products_of(lattice, layer.geometry, 1)};
  // An image of which one dimension is nowhere reached has no products, whatever those of the other dimension are.
  const bool some = !wanted[0].empty() && !wanted[1].empty();
  if (some) CHECK(got[0] == wanted[0] && got[1] == wanted[1]);
  if (!some) CHECK(got[0].empty() || got[1].empty());
  for (int d = 0; d < 2; ++d) {
    CHECK(std::is_sorted(lattice.phases[d].begin(), lattice.phases[d].end()));
    for (const Tap& tap : lattice.taps) CHECK(tap.shift[d] >= 0 && tap.shift[d] <= lattice.most_shift[d]);
  }
  for (const Tap& tap : lattice.taps) CHECK(tap.residue >= 0 && tap.residue < lattice.residues());
}

// jit::Lanes and their positions reach every position of every image, adjacent ones exactly once.
void check_lanes(const Lattice& lattice) {
  const LaneGrid grid = choose_lanes(lattice);
  const int64_t of_image = grid.grid[0] * grid.grid[1];
  std::map<std::tuple<int64_t, int64_t, int64_t>, int> times;
  for (int64_t lane = 0; lane < grid.lanes; ++lane) {
    const int64_t image = lane / of_image, within = lane % of_image;
    for (int64_t y = 0; y < grid.size[0]; ++y)
      for (int64_t x = 0; x < grid.size[1]; ++x)
        ++times[{
            image, within / grid.grid[1] * grid.origin_step[0] + y * grid.position_step[0],
            within % grid.grid[1] * grid.origin_step[1] + x * grid.position_step[1]}];
  }
  for (int64_t image = 0; image < lattice.source.size[0]; ++image)
    for (int64_t y = 0; y < lattice.size[0]; ++y)
      for (int64_t x = 0; x < lattice.size[1]; ++x) CHECK((times[{image, y, x}] == 1));
}

// Positions described as one row, or as single pixels, are the same elements of both tensors.
void check_merged(const Layer& layer) {
  Lattice lattice = forward_lattice(layer.geometry, layer.input, layer.output);
  const auto elements = [](const Activation& tensor) {
    std::set<int64_t> all;
    for (int64_t n = 0; n < tensor.size[0]; ++n)
      for (int64_t y = 0; y < tensor.size[2]; ++y)
        for (int64_t x = 0; x < tensor.size[3]; ++x)
          all.insert(n * tensor.stride[0] + y * tensor.stride[2] + x * tensor.stride[3]);
    return all;
  };
  const std::set<int64_t> source = elements(lattice.source), dest = elements(lattice.dest);
  merge_positions(lattice);
  CHECK(elements(lattice.source) == source);
  CHECK(elements(lattice.dest) == dest);
}

}  // namespace

void test_lattices() {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const Layer layer = random_layer(random);
    const Lattice forward = forward_lattice(layer.geometry, layer.input, layer.output);
    const Lattice gradient = input_gradient_lattice(layer.geometry, layer.output, layer.input);
    check_lattice(forward, layer, false);
    check_lattice(gradient, layer, true);
    check_lanes(forward);
    check_lanes(gradient);
    check_merged(layer);
  }
  for (const bool channels_last : {false, true})
    for (const int64_t size : {1, 4, 7}) check_merged(square_layer(3, 8, 8, size, 1, channels_last));
}

}  // namespace tests
}  // namespace sparsekernels
