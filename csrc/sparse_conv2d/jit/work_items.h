// The parts that a layout of bundles cuts a lattice into, and how they are read.
#pragma once

#include "sparse_conv2d/jit/layout.h"
#include "sparse_conv2d/jit/pack_calls.h"
#include "base/prefetch.h"

namespace sparsekernels {

// A strip of some bundles.
struct BundleUnit {
  int64_t group;  // of the convolution
  int64_t first_bundle, bundles;
  int64_t first[2], size[2];  // positions
};

// Unit `index` of a group of the convolution, in units of at most so many bundles.
BundleUnit bundle_unit_at(
    const Lattice& lattice, const BundleLayout& layout, int64_t unit_bundles, int64_t group, int64_t index);

// The slice that a part of a group's slices begins with, so that parts have about as many nonzeros. Plan is BundlePlan
// or WeightPlan, whose `parts` parts end at its last slice.
template <class Plan>
int64_t first_slice_of(const Plan& plan, const SparsePattern& pattern, int64_t rows, int64_t group, int64_t part) {
  if (part == plan.parts) return plan.slices;
  const int32_t* const crow = pattern.crow_indices + group * rows;
  const int64_t wanted = 2 * (crow[0] + (int64_t{crow[rows]} - crow[0]) * part / plan.parts);
  int64_t slice = 0;
  while (slice < plan.slices &&
         int64_t{crow[plan.first_row(slice, rows)]} + crow[plan.first_row(slice + 1, rows)] <= wanted)
    ++slice;
  return part == 0 ? 0 : slice;
}

LineOrder bundle_order_of(const Activation& tensor, int64_t channels);

// Pointers to the images of a bundle, at a channel. Call is BundleRead or BundleWrite.
template <class Call>
void set_images(Call& call, const Activation& tensor, const BundleLayout& layout, int64_t bundle, int64_t channel) {
  call.images = layout.images;
  for (int64_t i = 0; i < layout.images; ++i) {
    const int64_t image = bundle * layout.images + i;
    char* const data = static_cast<char*>(tensor.data);
    call.image[i] = image >= tensor.size[0]
                        ? nullptr
                        : data + (image * tensor.stride[0] + channel * tensor.stride[1]) * element_size(tensor.dtype);
  }
}

template <class Call>
void set_strides(Call& call, const Activation& tensor) {
  call.channel_stride = tensor.stride[1];
  call.row_stride = tensor.stride[2];
  call.column_stride = tensor.stride[3];
  call.size[0] = tensor.size[2];
  call.size[1] = tensor.size[3];
}

// What a unit reads of the source, and channels of what it reads or writes of the destination, to bring them up from
// memory beforehand. Nothing, where that is not worth it.
Fetch fetch_source(const Lattice& lattice, const BundleLayout& layout, const BundleUnit& unit);
Fetch fetch_dest(
    const Lattice& lattice, const BundleLayout& layout, const BundleUnit& unit, int64_t channel, int64_t channels);

// As below, from a source whose lines lie `line` floats apart; no tap reaches nothing.
void gather_planes(
    const Lattice& lattice, const BundleLayout& layout, const BundleUnit& unit, int64_t line, float* planes);

// The planes of a unit, bundle after bundle; with some_reach_nothing, zeros behind the channels of each.
void read_planes(const Lattice& lattice, const BundleLayout& layout, const BundleUnit& unit, float* planes);

}  // namespace sparsekernels
