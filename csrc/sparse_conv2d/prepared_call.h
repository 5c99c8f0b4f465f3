// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A call of one shape on one pattern, prepared: its lattice, its engine, and with kJit its plan and kernels. A call
// without a plan prepares one, runs it and drops it; PlannedConv2d keeps it, and so does a chain of layers.
#pragma once

#include <optional>
#include <vector>

#include "sparse_conv2d/engine.h"
#include "sparse_conv2d/jit/forward_driver.h"
#include "sparse_conv2d/jit/kernel_cache.h"
#include "sparse_conv2d/jit/weight_gradient_driver.h"

namespace sparsekernels {

// Everything but where tensors and values lie: those of the lattice are set before it runs.
template <class Planned>
struct PreparedCall {
  Lattice lattice;  // positions merged
  Engine engine = Engine::kTiled;
  jit::KernelKey key = {};  // of kJit, else not used; so is what follows
  Planned planned = {};
};
using PreparedForward = PreparedCall<jit::PlannedForward>;
using PreparedWeightGradient = PreparedCall<jit::PlannedWeightGradient>;

// A forward or an input gradient, as the lattice has it. `epilogue_flags`: what one has. `images`: in a micro-batch,
// else as the plan's cost says. `residual_channel`: floats from one channel of the residual to the next, else as in the
// destination. `dest_images`: that the destination interleaves.
PreparedForward prepare_forward(
    Lattice lattice, const SparsePattern& pattern, int epilogue_flags, const Threads& threads,
    std::optional<int64_t> images = {}, std::optional<int64_t> residual_channel = {}, int64_t dest_images = 1);
PreparedWeightGradient prepare_weight_gradient(Lattice lattice, const SparsePattern& pattern, const Threads& threads);

// dest = correlation of source with the pattern, and the epilogue. `order`: where kernels find their values in
// pattern.values, else in their own order of the nonzeros.
void run(
    const PreparedForward& call, const SparsePattern& pattern, const PackedEpilogue& packed, const Threads& threads,
    const std::vector<int32_t>* order = nullptr);
// `slots`: of each element of grad_values, where kernels have its sum; else those of the pattern's order.
void run(
    const PreparedWeightGradient& call, const SparsePattern& pattern, void* grad_values, const Threads& threads,
    const std::vector<int32_t>* slots = nullptr);

// Whether a weight gradient has nothing to sum; then its values are zeros, which are written.
bool fills_empty_sums(
    const SparsePattern& pattern, const Activation& grad_output, const Activation& input, void* grad_values);

}  // namespace sparsekernels
