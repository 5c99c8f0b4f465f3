// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A linear layer with fine-grained weights for few rows, on CUDA devices. Knows no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace sparsekernels {

// output[m, o] = bias[o] + sum over k, where bit k of row o is set, of w[o, k] * input[m, k]
//
// All contiguous. A row of `words` has 2 * ceil(in / 128) of them, so that each starts at a multiple of 16 bytes: bit
// k % 64 of word k / 64 says whether w[o, k] is stored; those from `in` on are 0. Row o has the values from
// crow_indices[o] up to crow_indices[o + 1], one for each bit, columns ascending: those of `Unstructured`. Where bits
// and crow_indices disagree, nothing outside of values is read, and the result means nothing.
struct BitmapLinear {
  const void* input = nullptr;  // rows x in
  const uint64_t* words = nullptr;
  const int32_t* crow_indices = nullptr;  // out + 1
  const void* values = nullptr;           // nnz
  const void* bias = nullptr;             // out, or none
  void* output = nullptr;                 // rows x out
  int64_t rows = 0, in = 0, out = 0, nnz = 0;
  DType dtype = DType::kFloat32;  // of input, values, bias and output; not float64
};

namespace cuda {

constexpr int64_t kMaxBitmapRows = 16;

// Sums in float32 in an order that depends on dtype, in, nnz, out and rows (rounded up to a power of two) alone.
cudaError_t bitmap_linear(const BitmapLinear& call, cudaStream_t stream);

}  // namespace cuda
}  // namespace sparsekernels
