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

// The pattern's weight gradient on a forward lattice. grad_values [nonzeros], in the dtype of the source. `slot_of`: of
// each of them, WeightGradientKernels::slot_of or that in another order.
void weight_gradient(
    const Lattice& lattice, const PlannedWeightGradient& planned, const SparsePattern& pattern,
    const std::vector<int32_t>& slot_of, void* grad_values, const Threads& threads);

}  // namespace sparsekernels::jit
