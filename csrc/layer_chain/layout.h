// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How the tensors of a chain lie in a thread's memory: where a layer's kernels can store a result as the next layer's
// read it, nothing is copied between the two.
#pragma once

#include "layer_chain/call.h"
#include "sparse_conv2d/jit/forward_plan.h"

namespace sparsekernels {

// Of `images` = n images that are interleaved, position p = row * columns + column of channel c of image i is, with
// f = p * n + i % n, element
//     first + i / n * image + c * channel + f / kLanes * vector_stride + f % kLanes
// of the tensor's place: planar, or interleaved (PlaneOrder), and only then are images interleaved as well.
struct ChainLayout {
  int64_t images = 1;
  int64_t channel = 0, vector_stride = kLanes, image = 0;
  int64_t first = 0;
  int64_t planes = 0;     // where the planes of its readers begin: before `first` are rows of zeros
  int64_t below = 0;      // zeros behind a channel's last position, or of all channels
  int64_t around = 0;     // before and behind all planes, that lanes without a use read
  bool is_plain = false;  // as a tensor

  bool operator==(const ChainLayout& other) const {
    return images == other.images && channel == other.channel && vector_stride == other.vector_stride &&
           image == other.image && first == other.first && planes == other.planes && below == other.below &&
           is_plain == other.is_plain;
  }
};

// One tensor of a chain, of one image.
struct ChainTensor {
  int64_t size[3];          // channels, rows, columns
  int last_use = -1;        // the last layer that reads it; of the chain's result, the number of layers
  ChainLayout layout = {};  // within a segment; what leads from one segment to another is plain

  int64_t elements() const { return size[0] * size[1] * size[2]; }
};

// What is planned for a layer, its tensors plain.
struct ChainLayerPlan {
  bool exchanges_planes = false;  // may_exchange_planes of sparse_conv2d/engine.h
  jit::ForwardPlan plan = {};
  bool gathers = false;  // a source that lies in vectors
  ChainLayout wanted;    // of its source
};

ChainLayout plain_layout(const int64_t (&size)[3]);

// Where vectors lie between each other, rows and columns are those of one channel, without gaps.
Activation activation_of(const ChainTensor& tensor, DType dtype, int64_t images, void* place);

// The planes that a layer reads, as a layout of its source; plain, where they are no copy of it.
ChainLayout planes_as_layout(const Lattice& lattice, const jit::ForwardPlan& plan, const ChainTensor& source);

// Sets the layout of each tensor.
void choose_layouts(
    const std::vector<ChainLayer>& layers, std::vector<ChainLayerPlan>& plans, std::vector<ChainTensor>& tensors);

}  // namespace sparsekernels
