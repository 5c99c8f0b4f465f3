// Between a tensor and lines: a line holds the same place of 16 translates of an image, so packing is a transposition,
// and so is writing results back. What a translate is (an image, a region of one, a pixel) is the caller's business:
// here it is a base address and a range of rows and columns that lie inside the image.
#pragma once

#include <cstdint>

#include "sparse_conv2d/epilogue.h"

namespace sparsekernels {

// How 16 neighbouring elements of a tensor lie to be read at once.
enum class LineOrder { kColumns, kChannels, kLanes, kScattered };

// Planes of lines, one a channel, against the part of a tensor that they hold. Rows and columns are those of the
// tensor; with a step s (a strided convolution) row y of the tensor is row y / s of the plane's phase y % s, columns
// alike.
struct LineTransfer {
  void* data;
  int64_t lane[16];                                                      // elements to channel, row and column 0
  int32_t row_begin[16], row_end[16], column_begin[16], column_end[16];  // inside the image; zeros are read outside
  int64_t channels, rows, columns;
  int64_t channel_stride, row_stride, column_stride;  // of the tensor, in elements
  LineOrder order;

  float* lines;
  int64_t plane_channel, plane_row;  // strides, in floats
  int32_t row_step, column_step;
  const int64_t* row_phase;  // of each phase, in floats; negative: not held
  const int64_t* column_phase;
  PackedEpilogue epilogue;  // where lines are written to a tensor; its bias is that of the first channel
};

// Of one dtype of the tensor.
struct LineKernels {
  void (*read)(const LineTransfer&);   // tensor to lines
  void (*write)(const LineTransfer&);  // lines to tensor
};

}  // namespace sparsekernels
