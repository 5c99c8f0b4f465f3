// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The entry of the three operations for calls without a plan: checks the pattern, says what the call is as a lattice,
// prepares that and runs it (prepared_call.h), by the engine that engine.h picks: jit/, which has the pattern as
// machine code, or tiled/, which has it as data.
//
// An output element is summed within each panel of channels, then over the panels. A weight's gradient is summed within
// a tile, then over tiles, then over the plan's chunks of work items. These depend on shapes, density, instruction set
// and cache sizes, never on the threads: on one machine, results have the same bits for any number of them.
#include <stdexcept>
#include <string>
#include <utility>

#include "sparse_conv2d/prepared_call.h"

namespace sparsekernels {
namespace {

// dest = correlation of source with the pattern, and the epilogue: a forward or an input gradient.
void run_forward(Lattice lattice, const SparsePattern& pattern, const Epilogue& epilogue, const Threads& threads) {
  check_rows(pattern);
  const PackedEpilogue packed = packed_epilogue(epilogue, pattern.rows, lattice.source.dtype, lattice.dest.data);
  run(prepare_forward(std::move(lattice), pattern, packed.flags, threads), pattern, packed, threads);
}

}  // namespace

void check_rows(const SparsePattern& pattern) {
  const int32_t* const crow = pattern.crow_indices;
  bool ascend = crow[0] == 0 && crow[pattern.rows] == pattern.nonzeros;
  for (int64_t r = 0; r < pattern.rows; ++r) ascend = ascend && crow[r] <= crow[r + 1];
  if (!ascend) {
    throw std::invalid_argument(
        "sparse_conv2d: expected crow_indices that ascend from 0 to " + std::to_string(pattern.nonzeros) +
        ", the size of col_indices, got " + std::to_string(crow[0]) + " to " + std::to_string(crow[pattern.rows]));
  }
}

void check_indices(const SparsePattern& pattern, int64_t columns) {
  check_rows(pattern);
  bool sound = true;
  for (int64_t row = 0; row < pattern.rows; ++row) {
    int64_t least = 0;
    for (int64_t k = pattern.crow_indices[row]; k < pattern.crow_indices[row + 1]; ++k) {
      const int64_t column = pattern.col_indices[k];
      sound = sound && column >= least && column < columns;
      least = column;
    }
  }
  if (!sound) {
    throw std::invalid_argument(
        "sparse_conv2d: expected col_indices that ascend from 0 to below " + std::to_string(columns) +
        " in each row, got others");
  }
}

void sparse_conv2d(
    const ConvGeometry& geometry, const SparsePattern& pattern, const Activation& input, const Epilogue& epilogue,
    const Activation& output, const Threads& threads) {
  if (is_empty(output)) return;
  run_forward(forward_lattice(geometry, input, output), pattern, epilogue, threads);
}

void sparse_conv2d_input_gradient(
    const ConvGeometry& geometry, const SparsePattern& transposed, const Activation& grad_output,
    const Activation& grad_input, const Threads& threads) {
  if (is_empty(grad_input)) return;
  run_forward(input_gradient_lattice(geometry, grad_output, grad_input), transposed, {}, threads);
}

void sparse_conv2d_weight_gradient(
    const ConvGeometry& geometry, const SparsePattern& pattern, const Activation& grad_output, const Activation& input,
    void* grad_values, const Threads& threads) {
  check_rows(pattern);
  if (fills_empty_sums(pattern, grad_output, input, grad_values)) return;
  run(prepare_weight_gradient(forward_lattice(geometry, input, grad_output), pattern, threads), pattern, grad_values,
      threads);
}

}  // namespace sparsekernels
