// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Where taps find their elements in the planes of a micro-batch, and the masks of vectors at ragged ends, against the
// image.
#include <cstdint>
#include <map>

#include "check.h"
#include "geometries.h"
#include "sparse_conv2d/jit/layout.h"
#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels {
namespace tests {
namespace {

// The planes of the first strip of a micro-batch and one channel: for each float the tensor's row, column and image
// that it holds. What is no element of the tensor is zero, and not in the map.
struct Element {
  int64_t row, column, image;
  bool operator==(const Element& other) const {
    return row == other.row && column == other.column && image == other.image;
  }
};
using Plane = std::map<int64_t, Element>;

Plane pack(const Lattice& lattice, const jit::Layout& layout) {
  Plane plane;
  const int64_t columns_of_phases = static_cast<int64_t>(layout.first_column.size());
  for (int64_t phase = 0; phase < layout.phases; ++phase) {
    const int64_t first_row = lattice.origin[0] + lattice.phases[0][static_cast<size_t>(phase / columns_of_phases)];
    const int64_t first_column = layout.first_column[static_cast<size_t>(phase % columns_of_phases)];
    for (int64_t y = 0; y < layout.strip[0] + lattice.most_shift[0]; ++y) {
      for (int64_t x = 0; x < layout.pitch; ++x) {
        const int64_t row = first_row + y * lattice.source_step[0];
        const int64_t column = first_column + x * lattice.source_step[1];
        const bool inside = row >= 0 && row < lattice.source.size[2] && column >= 0 && column < lattice.source.size[3];
        for (int64_t i = 0; inside && i < layout.images; ++i) {
          const int64_t at = phase * layout.phase_floats + (y * layout.pitch + x) * layout.images + i;
          plane[layout.spread(at / 16 * 16) + at % 16] = {row, column, i};
        }
      }
    }
  }
  return plane;
}

// Each lane of each vector of the first strip loads, for each tap, the element that the convolution multiplies.
void check_layout(const Lattice& lattice, const jit::Layout& layout) {
  const Plane plane = pack(lattice, layout);
  const std::vector<jit::Column> columns = jit::columns_of(lattice, layout, lattice.source_channels);
  const std::vector<uint16_t> masks = jit::vector_masks(layout, layout.strip[0]);
  const int64_t vectors = layout.vectors(layout.strip[0], layout.strip[1]);
  CHECK_EQUAL(masks.size(), layout.masks.empty() ? size_t{0} : static_cast<size_t>(vectors * jit::kMaskStride));
  for (size_t t = 0; t < lattice.taps.size(); ++t) {
    const Tap& tap = lattice.taps[t];
    if (!tap.reaches) continue;
    for (int64_t f = 0; f < vectors * 16; ++f) {
      const int64_t image = f % layout.images, position = f / layout.images;
      const int64_t y = position / layout.pitch, x = position % layout.pitch;
      if (y >= layout.strip[0] || x >= layout.strip[1]) continue;  // a lane without a use
      const int mask = columns[t].mask;
      const bool loads = mask == 0 || masks[static_cast<size_t>(f / 16 * jit::kMaskStride + mask - 1)] >> (f % 16) & 1;
      const int64_t at = layout.spread(f / 16 * 16) + f % 16;
      // Displacements are whole vectors where planes are interleaved.
      const int64_t shifted = columns[t].displacement / 4;
      const auto found = loads ? plane.find(at + shifted) : plane.end();
      const Element wanted = {
          (y + tap.shift[0]) * lattice.source_step[0] + lattice.origin[0] +
              lattice.phases[0][static_cast<size_t>(tap.phase[0])],
          (x + tap.shift[1]) * lattice.source_step[1] + lattice.origin[1] +
              lattice.phases[1][static_cast<size_t>(tap.phase[1])],
          image};
      const bool inside = wanted.row >= 0 && wanted.row < lattice.source.size[2] && wanted.column >= 0 &&
                          wanted.column < lattice.source.size[3];
      CHECK_EQUAL(found != plane.end(), inside);
      if (inside && found != plane.end()) CHECK(found->second == wanted);
    }
  }
}

}  // namespace

void test_layouts() {
  std::mt19937 random(2);
  int with_masks = 0, interleaved = 0;
  for (int i = 0; i < 150; ++i) {
    const Layer layer = random_layer(random);
    for (const bool gradient : {false, true}) {
      const Lattice lattice = gradient ? input_gradient_lattice(layer.geometry, layer.output, layer.input)
                                       : forward_lattice(layer.geometry, layer.input, layer.output);
      for (int64_t images = 1; images <= 16; images *= 4) {
        jit::Layout layout = {};
        jit::lay_out_microbatches(lattice, images, jit::Lanes::kAnything, layout);
        check_layout(lattice, layout);
        with_masks += !layout.masks.empty();
        interleaved += plane_order(layout.vector_stride) == PlaneOrder::kInterleaved;
        jit::cut_microbatches(lattice, 0, 2, 1, jit::Lanes::kAnything, layout);
        check_layout(lattice, layout);
      }
    }
  }
  CHECK(with_masks > 20);
  CHECK(interleaved > 20);
}

}  // namespace tests
}  // namespace sparsekernels
