// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Between a tensor and vectors: a vector holds the same place of 16 translates of an image, so packing is a
// transposition, and so is writing results back. What a translate is (an image, a region of one, a pixel) is the
// caller's business: here it is a base address and a range of rows and columns that lie inside the image.
#pragma once

#include <cstdint>

#include "base/lanes.h"
#include "sparse_conv2d/epilogue.h"
#include "sparse_conv2d/vector_order.h"

namespace sparsekernels::tiled {

// Planes of vectors, one a channel, against the part of a tensor that they hold. Rows and columns are those of the
// tensor; with a step s (a strided convolution) row y of the tensor is row y / s of the plane's phase y % s, columns
// alike.
struct PackCall {
  void* data;
  int64_t lane[kLanes];  // elements to channel, row and column 0
  int32_t row_begin[kLanes], row_end[kLanes], column_begin[kLanes],
      column_end[kLanes];  // inside the image; zeros are read outside
  int64_t channels, rows, columns;
  int64_t channel_stride, row_stride, column_stride;  // of the tensor, in elements
  VectorOrder order;

  float* vectors;
  int64_t plane_channel, plane_row;  // strides, in floats
  int32_t row_step, column_step;
  const int64_t* row_phase;  // of each phase, in floats; negative: not held
  const int64_t* column_phase;
  PackedEpilogue epilogue;  // where vectors are written to a tensor; its bias is that of the first channel
};

// Of one dtype of the tensor.
struct PackKernels {
  void (*pack)(const PackCall&);    // tensor to vectors
  void (*unpack)(const PackCall&);  // vectors to tensor
};

}  // namespace sparsekernels::tiled
