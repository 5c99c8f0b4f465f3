// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How a chain of layers is cut up: into segments, and how many images go through a segment at a time.
#pragma once

#include "layer_chain/layout.h"

namespace sparsekernels {

// Layers [first, last), which one tensor leads into and one out of.
struct ChainSegment {
  int first, last;
  int64_t images;               // at a time
  std::vector<int64_t> places;  // of the results of its layers but the last, for one image, in elements
  int64_t elements;             // of all of them
};

// A segment's images are a multiple of those that each of its layers interleaves.
std::vector<ChainSegment> plan_chain(
    const std::vector<ChainLayer>& layers, const std::vector<ChainLayerPlan>& plans,
    const std::vector<ChainTensor>& tensors, DType dtype, int64_t batch, int64_t threads);

}  // namespace sparsekernels
