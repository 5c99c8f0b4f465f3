// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The weight gradient, at the nonzeros, by kernels: planned, then run.
#pragma once

#include <memory>

#include "sparse_conv2d/engine.h"
#include "sparse_conv2d/jit/weight_gradient_kernel.h"

namespace sparsekernels::jit {

// Everything but where tensors lie.
struct PlannedWeightGradient {
  Engine engine = Engine::kTiled;  // then the rest is not used
  WeightGradientPlan plan = {};
  std::shared_ptr<const WeightGradientKernels> kernels;
};

PlannedWeightGradient plan_weight_gradient(
    const Lattice& lattice, const SparsePattern& pattern, const Threads& threads);

// The pattern's weight gradient on a forward lattice, of what has kernels. grad_values [nonzeros], in the dtype of the
// source.
void weight_gradient(
    const Lattice& lattice, const PlannedWeightGradient& planned, const SparsePattern& pattern, void* grad_values,
    const Threads& threads);

}  // namespace sparsekernels::jit
