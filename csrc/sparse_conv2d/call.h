// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What one call of a fine-grained sparse convolution is: pointers, sizes and strides. Knows no torch.
#pragma once

#include <cstdint>
#include <limits>

#include "base/tensor.h"
#include "base/threads.h"

namespace sparsekernels {

// The weight's nonzeros by rows. Forward and weight gradient: a row is an output channel, a column is
// (i * kh + ky) * kw + kx with i the input channel within its group. Input gradient: a row is an input channel, a
// column is (o * kh + ky) * kw + kx with o the output channel within its group, and `permutation` gives the place of
// the nonzero in `values`.
struct SparsePattern {
  const int32_t* crow_indices = nullptr;  // [rows + 1]
  const int32_t* col_indices = nullptr;
  const int32_t* permutation = nullptr;  // or null: in order
  const void* values = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t nonzeros = 0;
};

struct ConvGeometry {
  int64_t kernel[2] = {1, 1};
  int64_t stride[2] = {1, 1};
  int64_t padding[2] = {0, 0};  // before the first row and column
  int64_t dilation[2] = {1, 1};
  int64_t groups = 1;
};

// What becomes of a forward's sums before they are stored: min(max(sum + bias + residual, low), high). NaN stays NaN.
struct Epilogue {
  const void* bias = nullptr;      // of each output channel, in the dtype of the input; or null
  const void* residual = nullptr;  // in the dtype, sizes and strides of the output; or null
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::infinity();
};

// Throws std::invalid_argument unless crow_indices ascend from 0 to the nonzeros.
void check_rows(const SparsePattern& pattern);
// And unless col_indices ascend within each row, from 0 to below `columns`.
void check_indices(const SparsePattern& pattern, int64_t columns);

// Every function throws std::invalid_argument where an index of the pattern is out of its range, before it is used.
// Results have the same bits for any number of threads.

// output = convolution of input with the pattern's values, and the epilogue. output has no gaps.
void sparse_conv2d(
    const ConvGeometry& geometry, const SparsePattern& pattern, const Activation& input, const Epilogue& epilogue,
    const Activation& output, const Threads& threads);

void sparse_conv2d_input_gradient(
    const ConvGeometry& geometry, const SparsePattern& transposed, const Activation& grad_output,
    const Activation& grad_input, const Threads& threads);

// grad_values [nonzeros], in the dtype of input.
void sparse_conv2d_weight_gradient(
    const ConvGeometry& geometry, const SparsePattern& pattern, const Activation& grad_output, const Activation& input,
    void* grad_values, const Threads& threads);

}  // namespace sparsekernels
