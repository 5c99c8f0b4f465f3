// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What a chain needs of an input's sizes before it runs: where tensors lie, segments, plans, and generated kernels.
#pragma once

#include "base/threads.h"
#include "layer_chain/plan.h"
#include "sparse_conv2d/epilogue.h"
#include "sparse_conv2d/prepared_call.h"

namespace sparsekernels {

// A sparse convolution prepared for a number of images, save for where its tensors lie.
struct PreparedLayer {
  PreparedForward call = {};
  // Then `call` is of one image, by either engine, and runs for each by itself; the rest is not used. The tiled engine
  // plans by the number of images, which here depends on the threads, and bits must not.
  bool image_by_image = false;
  bool residual_is_elsewhere = false;  // than where the result lies: in another layout
  int64_t above = 0;                   // floats from where the planes it reads begin to the source's first element
  std::vector<float> values;
  std::vector<float> epilogue_floats;
  PackedEpilogue epilogue = {};
};

struct PreparedChain {
  int64_t input[4];
  int64_t threads;
  std::vector<ChainTensor> tensors;
  std::vector<ChainSegment> segments;
  // of a layer, for its segment's images, and for those that are left in the end
  std::vector<PreparedLayer> layers[2];
};

// Tensors of a chain for an input of such sizes, all plain. Throws std::invalid_argument where a layer does not fit.
std::vector<ChainTensor> tensors_of(const std::vector<ChainLayer>& layers, const int64_t (&input)[4]);

PreparedChain prepare_chain(
    const std::vector<ChainLayer>& layers, DType dtype, const int64_t (&input)[4], const Threads& threads);

}  // namespace sparsekernels
