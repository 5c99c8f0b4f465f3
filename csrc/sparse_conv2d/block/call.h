// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What one call of a block-sparse convolution in bfloat16 is: pointers, sizes and strides. Knows no torch.
#pragma once

#include <cstdint>

#include "sparse_conv2d/call.h"

namespace sparsekernels::block {

// A weight [rows, columns, taps] in blocks. Block b of block row i holds rows i * block[0] and channels
// (col_indices[b] / taps) * block[1] onwards, as far as there are any, at tap col_indices[b] % taps. Channels are those
// of one group.
struct BlockPattern {
  const int32_t* crow_indices = nullptr;  // [block rows + 1]
  const int32_t* col_indices = nullptr;   // ascending in each block row
  const uint16_t* values = nullptr;       // block after block, [rows][channels] each; or null, and then
  const uint16_t* dense = nullptr;        // the weight with its zeros, of which blocks are read
  int64_t dense_strides[3] = {};          // of rows, channels and taps, in elements
  int64_t block[2] = {1, 1};
  int64_t rows = 0, channels = 0, taps = 1;
  int64_t blocks = 0;

  int64_t block_rows() const { return (rows + block[0] - 1) / block[0]; }
  int64_t block_columns() const { return (channels + block[1] - 1) / block[1]; }
};

// Throws std::invalid_argument unless the indices ascend and are within their range.
void check_blocks(const BlockPattern& pattern);

// Elements of all blocks.
int64_t elements_of(const BlockPattern& pattern);

// The kernels that this machine runs such a weight on: "amx", "avx512_bf16" or "portable".
const char* kernels_name();

// Whether the kernels take the pattern: block rows have to lie in one group each.
bool is_supported(const BlockPattern& pattern, int64_t groups);

// Tensors are bfloat16 with neighboring channels. Results have the same bits for any number of threads.

void conv2d(
    const ConvGeometry& geometry, const BlockPattern& pattern, const Activation& input, const Epilogue& epilogue,
    const Activation& output, const Threads& threads);

void input_gradient(
    const ConvGeometry& geometry, const BlockPattern& pattern, const Activation& grad_output,
    const Activation& grad_input, const Threads& threads);

// grad_values: of the elements of all blocks, as they follow each other in values.
void weight_gradient(
    const ConvGeometry& geometry, const BlockPattern& pattern, const Activation& grad_output, const Activation& input,
    uint16_t* grad_values, const Threads& threads);

}  // namespace sparsekernels::block
