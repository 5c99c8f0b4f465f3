// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/layout.h"

#include <algorithm>

namespace sparsekernels::jit {
namespace {

// Planes that hold the image's columns and nothing else: copies of the image.
void lay_out_copies(const Lattice& lattice, Layout& layout) {
  const int64_t step = lattice.source_step[1];
  std::vector<int64_t> more_shift;  // of each phase
  layout.pitch = layout.strip[1];
  for (const int64_t phase : lattice.phases[1]) {
    const int64_t first = lattice.origin[1] + phase;
    more_shift.push_back(first >= 0 ? first / step : -divide_up(-first, step));
    layout.first_column.push_back(first - more_shift.back() * step);
    layout.pitch = std::max(layout.pitch, divide_up(lattice.source.size[3] - layout.first_column.back(), step));
  }
  for (const Tap& tap : lattice.taps)
    layout.taps.push_back({tap.phase[1], tap.shift[1] + more_shift[static_cast<size_t>(tap.phase[1])], 0});
}

// Planes with zeros at both ends of a row.
void lay_out_padded(const Lattice& lattice, Layout& layout) {
  layout.pitch = layout.strip[1] + lattice.most_shift[1];
  for (const int64_t phase : lattice.phases[1]) layout.first_column.push_back(lattice.origin[1] + phase);
  for (const Tap& tap : lattice.taps) layout.taps.push_back({tap.phase[1], tap.shift[1], 0});
}

// Whether rows begin at whole vectors, and whether shifts are such.
bool has_whole_vectors(const Lattice& lattice, const Layout& layout) {
  const int64_t rows = layout.strip[0] + lattice.most_shift[0];
  if (layout.pitch * layout.images % kLanes != 0 && rows > 1) return false;
  for (size_t t = 0; t < layout.taps.size(); ++t)
    if (lattice.taps[t].reaches && layout.taps[t].shift * layout.images % kLanes != 0) return false;
  return true;
}

// Masks for the taps some of whose lanes leave the image, or the lattice if that matters. False where that takes more
// masks than there are.
bool mask_taps(const Lattice& lattice, Lanes lanes, Layout& layout) {
  bool all_used = true;
  if (lanes == Lanes::kZeros) {
    const int64_t last = lattice.size[0] - (layout.strips[0] - 1) * layout.strip[0];
    const int64_t row = layout.pitch * layout.images;
    const bool full =
        (layout.strip[0] * row % kLanes == 0 && last * row % kLanes == 0) || has_whole_vectors(lattice, layout);
    all_used = layout.pitch == lattice.size[1] && full;
  }
  for (size_t t = 0; t < layout.taps.size(); ++t) {
    TapColumns& tap = layout.taps[t];
    const int64_t first = layout.first_column[static_cast<size_t>(tap.plane)];
    const int64_t columns = std::max<int64_t>(0, divide_up(lattice.source.size[3] - first, lattice.source_step[1]));
    const bool inside = tap.shift >= 0 && lattice.size[1] + tap.shift <= columns;
    if (!lattice.taps[t].reaches || (inside && all_used)) continue;
    const MaskedShift mask = {tap.shift, columns};
    const auto found = std::find(layout.masks.begin(), layout.masks.end(), mask);
    tap.mask = static_cast<int>(found - layout.masks.begin()) + 1;
    if (found != layout.masks.end()) continue;
    if (layout.masks.size() == static_cast<size_t>(kMostMasks)) return false;
    layout.masks.push_back(mask);
  }
  return true;
}

// The layout of a strip's planes and vectors; images and strips are set.
bool lay_out(const Lattice& lattice, Lanes lanes, Layout& layout) {
  const auto clear = [&] {
    layout.first_column.clear();
    layout.taps.clear();
    layout.masks.clear();
  };
  clear();
  bool masked = false;
  if (layout.strips[1] == 1 && lanes != Lanes::kNone) {
    lay_out_copies(lattice, layout);
    masked = mask_taps(lattice, lanes, layout);
  }
  if (!masked) {
    clear();
    lay_out_padded(lattice, layout);
  }
  layout.phases = static_cast<int64_t>(lattice.phases[0].size() * layout.first_column.size());
  const int64_t rows = layout.strip[0] + lattice.most_shift[0];
  const int64_t channels = lattice.source_channels + (lattice.some_reach_nothing ? 1 : 0);
  const int64_t last_vector = layout.vectors(layout.strip[0], layout.strip[1]) * kLanes;
  layout.phase_floats = rows * layout.pitch * layout.images;
  // what the last vector reads behind the last row
  layout.behind_floats = std::max<int64_t>(0, last_vector - layout.strip[0] * layout.pitch * layout.images);
  if (layout.masks.empty()) layout.behind_floats += lattice.most_shift[1] * layout.images;
  const bool whole_vectors = lanes != Lanes::kNone && has_whole_vectors(lattice, layout);
  int64_t front = 0, back = kLanes;
  for (size_t t = 0; t < layout.taps.size(); ++t) {
    if (!lattice.taps[t].reaches) continue;
    front = std::max(front, -layout.taps[t].shift * layout.images);
    back = std::max(back, kLanes + layout.taps[t].shift * layout.images);
  }
  // An odd number of vectors from channel to channel, or from vector to vector, falls on all sets of L1.
  if (whole_vectors) {
    layout.phase_floats = divide_up(layout.phase_floats, kLanes) * kLanes;
    layout.behind_floats = 0;
    layout.channel_floats = kLanes;
    layout.vector_stride =
        (std::max<int64_t>(channels, 2) | 1) * kLanes;  // more than one vector: else planes would be planar
    layout.microbatch_floats = layout.phases * layout.phase_floats / kLanes * layout.vector_stride;
  } else {
    layout.vector_stride = kLanes;
    layout.channel_floats =
        (divide_up(layout.phases * layout.phase_floats + layout.behind_floats, kLanes) | 1) * kLanes;
    layout.microbatch_floats = channels * layout.channel_floats;
  }
  layout.front_floats = layout.spread(divide_up(front, kLanes) * kLanes);
  layout.back_floats = layout.spread(divide_up(back, kLanes) * kLanes);
  // strips across lie between each other's columns: of those, lanes of one row are zeros where they are not used
  return masked || lanes != Lanes::kZeros || (lattice.is_flat() && whole_vectors);
}

}  // namespace

bool lay_out_microbatches(const Lattice& lattice, int64_t images, Lanes lanes, Layout& layout) {
  layout.images = images;
  layout.microbatches = divide_up(lattice.source.size[0], images);
  for (int d = 0; d < 2; ++d) {
    layout.strip[d] = lattice.size[d];
    layout.strips[d] = 1;
  }
  return lay_out(lattice, lanes, layout);
}

bool cut_microbatches(const Lattice& lattice, int d, int64_t strips, int64_t multiple, Lanes lanes, Layout& layout) {
  layout.strip[d] = divide_up(divide_up(lattice.size[d], strips), multiple) * multiple;
  layout.strips[d] = divide_up(lattice.size[d], layout.strip[d]);
  return lay_out(lattice, lanes, layout);
}

std::vector<uint16_t> vector_masks(const Layout& layout, int64_t rows) {
  if (layout.masks.empty()) return {};
  const int64_t vectors = layout.vectors(rows, layout.strip[1]);
  std::vector<uint16_t> result(static_cast<size_t>(vectors * kMaskStride));
  int64_t column = 0, image = 0, left = rows * layout.pitch * layout.images;
  for (int64_t vector = 0; vector < vectors; ++vector) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (size_t m = 0; m < layout.masks.size(); ++m) {
        const int64_t at = column + layout.masks[m].shift;
        const bool inside = left > 0 && column < layout.strip[1] && at >= 0 && at < layout.masks[m].columns;
        result[static_cast<size_t>(vector * kMaskStride) + m] |= static_cast<uint16_t>(inside << lane);
      }
      --left;
      if (++image < layout.images) continue;
      image = 0;
      if (++column == layout.pitch) column = 0;
    }
  }
  return result;
}

std::vector<uint64_t> vector_reaches(
    const Lattice& lattice, const Layout& layout, const int64_t (&first)[2], const int64_t (&size)[2]) {
  std::vector<uint64_t> of_place[2];  // of each row and column, the taps that read the image in this dimension
  for (size_t d = 0; d < 2; ++d) {
    of_place[d].resize(static_cast<size_t>(size[d]));
    for (size_t t = 0; t < lattice.taps.size(); ++t) {
      const Tap& tap = lattice.taps[t];
      const int64_t from = lattice.origin[d] + lattice.phases[d][static_cast<size_t>(tap.phase[d])] +
                           (first[d] + tap.shift[d]) * lattice.source_step[d];
      for (int64_t place = 0; place < size[d]; ++place) {
        const int64_t at = from + place * lattice.source_step[d];
        const bool inside = tap.reaches && at >= 0 && at < lattice.source.size[2 + d];
        of_place[d][static_cast<size_t>(place)] |= static_cast<uint64_t>(inside) << t;
      }
    }
  }
  std::vector<uint64_t> result(static_cast<size_t>(layout.vectors(size[0], size[1])));
  for (int64_t row = 0; row < size[0]; ++row)
    for (int64_t column = 0; column < size[1]; ++column) {
      const int64_t begin = (row * layout.pitch + column) * layout.images;
      const uint64_t reaches = of_place[0][static_cast<size_t>(row)] & of_place[1][static_cast<size_t>(column)];
      // images that are interleaved never lie on both sides of a border, as their number divides kLanes
      result[static_cast<size_t>(begin / kLanes)] |= reaches;
    }
  return result;
}

}  // namespace sparsekernels::jit
