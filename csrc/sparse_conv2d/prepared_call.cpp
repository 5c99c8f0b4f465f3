// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/prepared_call.h"

#include <cstring>
#include <utility>

#include "sparse_conv2d/tiled/driver.h"

namespace sparsekernels {

PreparedForward prepare_forward(
    Lattice lattice, const SparsePattern& pattern, int epilogue_flags, const Threads& threads) {
  merge_positions(lattice);
  jit::PlannedForward planned = jit::plan_forward(lattice, pattern, epilogue_flags, threads);
  return {std::move(lattice), std::move(planned)};
}

PreparedWeightGradient prepare_weight_gradient(Lattice lattice, const SparsePattern& pattern, const Threads& threads) {
  merge_positions(lattice);
  jit::PlannedWeightGradient planned = jit::plan_weight_gradient(lattice, pattern, threads);
  return {std::move(lattice), std::move(planned)};
}

void run(
    const PreparedForward& call, const SparsePattern& pattern, const PackedEpilogue& packed, const Threads& threads,
    const std::vector<int32_t>* order) {
  if (call.planned.engine == Engine::kTiled) return tiled::forward(call.lattice, pattern, packed, threads);
  const std::vector<int32_t>& places = order == nullptr ? call.planned.kernels->order() : *order;
  jit::forward(call.lattice, call.planned, pattern, places, packed, threads);
}

void run(const PreparedWeightGradient& call, const SparsePattern& pattern, void* grad_values, const Threads& threads) {
  if (call.planned.engine == Engine::kTiled) return tiled::weight_gradient(call.lattice, pattern, grad_values, threads);
  jit::weight_gradient(call.lattice, call.planned, pattern, grad_values, threads);
}

bool fills_empty_sums(
    const SparsePattern& pattern, const Activation& grad_output, const Activation& input, void* grad_values) {
  if (pattern.nonzeros == 0) return true;
  if (!is_empty(grad_output) && !is_empty(input)) return false;
  std::memset(grad_values, 0, static_cast<size_t>(pattern.nonzeros) * element_size(input.dtype));
  return true;
}

}  // namespace sparsekernels
