// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The kernels of one instruction set, as the bindings see them.
#pragma once

#include <cstdint>

#include "batch_norm/call.h"
#include "masked_attention/call.h"
#include "masked_matmul/call.h"
#include "max_pool2d/call.h"
#include "packed_linear/call.h"
#include "rms_norm/call.h"
#include "sparse_conv2d/element_kernels.h"
#include "sparse_conv2d/jit/pack_calls.h"
#include "sparse_conv2d/tiled/microkernel_calls.h"
#include "sparse_conv2d/tiled/pack_calls.h"

namespace sparsekernels {

// For one dtype of the input. Sizes are in elements; "arranged" buffers hold float (double for float64), their length
// rounded up to kArrangedMultiple.
struct RmsNormKernels {
  // unit_offset: 1 + weight, for a weight that is there.
  void (*arrange_weight)(const void* weight, DType weight_dtype, bool unit_offset, int64_t cols, void* arranged);
  // Rows [begin, end). arranged == nullptr: the weight is read as it is stored, in the dtype of the input.
  void (*forward)(const RmsNormForward& call, const void* arranged, int64_t begin, int64_t end);
  // The same for the backward; adds to partial, an arranged weight gradient, unless that is null.
  void (*backward)(const RmsNormBackward& call, const void* arranged, void* partial, int64_t begin, int64_t end);
  // Columns [begin, end) of the weight gradient; begin is a multiple of kArrangedMultiple.
  void (*sum_partials)(
      DType weight_dtype, const void* partials, int64_t parts, int64_t stride, int64_t begin, int64_t end,
      void* grad_weight);
};

constexpr int64_t kArrangedMultiple = 32;

struct CpuKernels {
  const char* isa;
  bool has_jit;                      // whether the machine code of patterns (sparse_conv2d/jit) runs on it
  RmsNormKernels rms_norm[4];        // by DType
  tiled::PackKernels tiled_pack[3];  // by DType, without float64
  jit::PackKernels jit_pack[3];      // by DType, without float64; null where there is no JIT
  tiled::TileKernels tiles;
  // By DType: how many nonzeros are in the words begin, begin + step, ... below end, of 64 elements each, whose bit is
  // not set in that word of `except`; null: none is.
  int64_t (*count_nonzeros[4])(const void* elements, const uint64_t* except, int64_t begin, int64_t end, int64_t step);
  ElementKernels elements[4];  // by DType
  // [0, count) of a dtype other than float64, widened, and narrowed into to[at...].
  void (*widen)(const void* from, int64_t count, DType dtype, float* to);
  void (*narrow)(const float* from, int64_t count, DType dtype, void* to, int64_t at);
  PackedLinearKernels packed_linear[3];  // by DType, without float64
  // Planes [begin, end); row: MaxPool2d::row_floats.
  void (*max_pool2d)(const MaxPool2d& call, float* row, int64_t begin, int64_t end);
  void (*max_pool2d_lines)(const MaxPool2d& call, int64_t begin, int64_t end);
  // The same of float32 without gaps, and the place of each result in the plane that it comes from.
  void (*max_pool2d_places)(const MaxPool2d& call, int32_t* places, int64_t begin, int64_t end);
  // Of bytes, whatever they are.
  uint64_t (*hash64)(const void* data, int64_t bytes, uint64_t seed);
  // Channels [begin, end).
  void (*batch_norm_forward)(const BatchNormForward& call, int64_t begin, int64_t end);
  void (*batch_norm_backward)(const BatchNormBackward& call, int64_t begin, int64_t end);
  MaskedKernels masked;
  AttentionKernels attention;
};

extern const CpuKernels kAvx512Kernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kPortableKernels;

// Picked once, by what the processor has, or by SPARSEKERNELS_CPU_ISA.
const CpuKernels& cpu_kernels();

}  // namespace sparsekernels
