// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/engine.h"

#include <algorithm>

#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/jit/kernel_cache.h"

namespace sparsekernels {

bool may_use_jit(const SparsePattern& pattern) {
  return jit::jit_available() && pattern.nonzeros <= cost::kMostJitNonzeros;
}

// Tiles do better where a slice has next to no rows; where the planes of a micro-batch, cut into strips as far as they
// can be, take more than kMostOverBudget times their share of L2 (planes_budget), which is 1.8 times all of it; or
// where a kernel of several panels has next to nothing to do.
Engine forward_engine(const Lattice& lattice, const SparsePattern& pattern, const jit::ForwardPlan& plan) {
  using namespace cost::forward;
  if (!may_use_jit(pattern) || lattice.dest_channels < kFewestRows) return Engine::kTiled;
  if (plan.microbatch_floats > kMostOverBudget * jit::planes_budget()) return Engine::kTiled;
  const int64_t rows = lattice.groups * lattice.dest_channels * lattice.residues();
  const double per_row = static_cast<double>(pattern.nonzeros) / static_cast<double>(rows);
  const bool has_work = plan.panels == 1 || per_row >= kFewestProducts * static_cast<double>(plan.panels);
  return has_work ? Engine::kJit : Engine::kTiled;
}

bool may_exchange_planes(const Lattice& lattice, const SparsePattern& pattern, const jit::ForwardPlan& plan) {
  return lattice.dest.dtype == DType::kFloat32 && forward_engine(lattice, pattern, plan) == Engine::kJit;
}

// Tiles serve where there is no plan: lanes that are no positions would need more masks than there are (is_possible).
// They do better, as measured: where hardly anything is computed with a vector that was read, where many lanes are no
// positions, where the strips' planes and gradients take more than kMostOverBudget times their share of L2
// (planes_and_grads_budget), which is 1.6 times all of it.
Engine weight_gradient_engine(
    const Lattice& lattice, const SparsePattern& pattern, const jit::WeightGradientPlan& plan) {
  using namespace cost::weight_gradient;
  if (!may_use_jit(pattern) || !plan.is_possible) return Engine::kTiled;
  const int64_t columns = lattice.source_channels * static_cast<int64_t>(lattice.taps.size());
  if (lattice.dest_channels < kFewestRows || columns < kFewestColumns) return Engine::kTiled;
  if (plan.floats() > kMostOverBudget * jit::planes_and_grads_budget()) return Engine::kTiled;
  if (plan.row_lanes != 0) return Engine::kJit;
  const int64_t vectors = plan.vectors(plan.strip[0], plan.strip[1]);
  const int64_t full = plan.strip[0] * plan.strip[1] * std::min(plan.images, lattice.source.size[0]);
  const double lanes = static_cast<double>(kLanes * vectors);
  if (static_cast<double>(full) < kFewestFullLanes * lanes && vectors > 1) return Engine::kTiled;
  const int64_t read = lattice.groups * (lattice.source_channels + lattice.dest_channels);
  const bool has_work =
      !lattice.is_flat() || vectors <= kLargeImageVectors || pattern.nonzeros >= kFewestProducts * read;
  return has_work ? Engine::kJit : Engine::kTiled;
}

}  // namespace sparsekernels
