// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What one call of max pooling is: pointers and sizes. Knows no torch.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/lanes.h"

namespace sparsekernels {

// Planes of channels of images; rows follow each other without gaps. Along each of two dimensions,
//     dest[p] = max over k of window of source[p * stride - padding + k], where that is inside
// and every place has at least one element inside. NaN is the largest.
struct MaxPool2d {
  const void* source = nullptr;
  void* dest = nullptr;
  DType dtype = DType::kFloat32;  // not float64
  int64_t source_size[2] = {};
  int64_t dest_size[2] = {};
  int64_t window[2] = {};
  int64_t stride[2] = {};
  int64_t padding[2] = {};
  int64_t channels = 1;  // strides, in elements:
  int64_t source_image = 0, source_channel = 0;
  int64_t dest_image = 0, dest_channel = 0;
  int64_t source_vector_stride = kLanes, dest_vector_stride = kLanes;  // from 16 places of a plane to the next 16
  // Interleaved, 1 or 16: then float32, a place of a plane is a vector, channels are 16 apart, and the strides of
  // images are those of all 16.
  int64_t images = 1;

  // Floats that a thread needs beside them: a row, with what its last places may read behind it.
  int64_t row_floats() const { return padding[1] + source_size[1] + window[1] + 32 * stride[1]; }
};

}  // namespace sparsekernels
