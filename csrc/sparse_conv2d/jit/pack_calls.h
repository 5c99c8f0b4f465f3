// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Between a tensor and the planes that kernels read, and between the vectors that kernels write and a tensor.
//
// A micro-batch is 1, 2, 4, 8 or 16 images whose pixels are interleaved: float (row * pitch + column) * images + image
// of a plane. A vector is 16 consecutive floats, so that a shift by rows and columns is a shift by floats, the same for
// all of its lanes, whatever the number of images. Vectors run on from row to row.
#pragma once

#include <cstdint>

#include "base/lanes.h"
#include "sparse_conv2d/epilogue.h"
#include "sparse_conv2d/vector_order.h"

namespace sparsekernels::jit {

constexpr int kMostImages = 16;

// A strip of a micro-batch, rows of halo included. Zeros where a plane sticks out of the image. Float f of phase p of
// a channel's plane is at (p * phase_floats + f) / kLanes * vector_stride + f % kLanes from the plane's first: planes
// are planar or, where all shifts are whole vectors, interleaved, see PlaneOrder.
struct PackCall {
  const void* image[kMostImages];  // element (channel, 0, 0); null: none
  int64_t images;
  int64_t channels, channel_stride, row_stride, column_stride;  // of the tensor, in elements
  int64_t size[2];                                              // of an image
  VectorOrder order;

  float* planes;
  int64_t channel_floats, phase_floats, vector_stride;
  int64_t behind_floats;  // that are cleared behind the last phase
  int64_t rows, pitch;
  // Row y of phase p is the tensor's row first[0][p] + y * step[0]; columns alike.
  int64_t step[2];
  int64_t phases[2];
  const int64_t* first[2];
};

// The positions of a strip, from vectors[vector][channel].
struct UnpackCall {
  void* image[kMostImages];
  int64_t images;
  int64_t channels, channel_stride, row_stride, column_stride;
  int64_t size[2];
  VectorOrder order;

  const float* vectors;
  const float* odd_vectors;  // with step[1] == 2: those of the columns between, or null
  PackedEpilogue epilogue;   // its bias is that of the first channel
  int64_t rows, columns, pitch;
  int64_t first[2], step[2];  // position y is the tensor's row first[0] + y * step[0]
};

// From a tensor whose planes are interleaved (layer_chain/layout.h) into planes: float f of a channel's
// planes is source[places[f] + channel * source_channel], or zero where places[f] is negative.
struct GatherCall {
  const float* source;
  const int32_t* places;  // [floats], rounded up to kLanes
  int64_t floats, channels, source_channel;
  float* planes;
  int64_t channel_floats, vector_stride;  // as in PackCall
};

// Of one dtype of the tensor; null where the instruction set has no JIT kernels.
struct PackKernels {
  void (*pack)(const PackCall&) = nullptr;
  void (*unpack)(const UnpackCall&) = nullptr;
  void (*gather)(const GatherCall&) = nullptr;  // float32 only
};

}  // namespace sparsekernels::jit
