// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The epilogue of a convolution as kernels read it.
#pragma once

#include <cstdint>

#include "sparse_conv2d/call.h"

namespace sparsekernels {

// What beside the bias there is to be done, as bits.
constexpr int kAddsResidual = 1, kHasLow = 2, kHasHigh = 4;

// Result = min(max(sum + bias[row] + residual, low), high), what is not there left out.
struct PackedEpilogue {
  const float* bias;       // of every row, or null; behind kEpilogueHeader floats that kernels read, see pack_epilogue
  int64_t residual_bytes;  // from an element of the destination to that of the residual
  float low, high;
  int flags;  // of the bits above
  // Where the residual lies in another way than the destination (layer_chain/layout.h): its first element, and the
  // header, where jit::run_items says for each vector how far it is. Else null.
  const float* residual;
  float* header;
};

// Before the first row's bias: 8 bytes of residual_bytes, low, high.
constexpr int64_t kEpilogueHeader = 4;
constexpr int32_t kResidualAt = -16, kLowAt = -8, kHighAt = -4;  // in bytes, from the first row's bias

// The epilogue of a call as kernels read it; `floats` [kEpilogueHeader + rows] is filled. `dest`: the residual is as
// far from there as it is from the destination. dtype: of the bias.
PackedEpilogue pack_epilogue(const Epilogue& epilogue, int64_t rows, DType dtype, const void* dest, float* floats);

// The same, in memory that the thread keeps until its next call.
PackedEpilogue packed_epilogue(const Epilogue& epilogue, int64_t rows, DType dtype, const void* dest);

// In bytes, from `from` to `to`.
inline int64_t distance(const void* to, const void* from) {
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(to) - reinterpret_cast<intptr_t>(from));
}

}  // namespace sparsekernels
