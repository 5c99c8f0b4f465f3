// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Runs a weight gradient, at the nonzeros, by kernels.
#pragma once

#include <memory>

#include "sparse_conv2d/jit/weight_gradient_kernel.h"
#include "sparse_conv2d/jit/weight_gradient_plan.h"

namespace sparsekernels::jit {

// Everything but where tensors lie.
struct PlannedWeightGradient {
  WeightGradientPlan plan = {};
  std::shared_ptr<const WeightGradientKernels> kernels;
};

// The pattern's weight gradient on a forward lattice. grad_values [nonzeros], in the dtype of the source.
void weight_gradient(
    const Lattice& lattice, const PlannedWeightGradient& planned, const SparsePattern& pattern, void* grad_values,
    const Threads& threads);

}  // namespace sparsekernels::jit
