// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which engine, and so which kernel, a call gets; nothing else decides that.
//
//                                     kJit                             kTiled
//   forward, input gradient           jit/forward_kernel.h             forward_tile of tiled/microkernels.h
//   weight gradient                   jit/weight_gradient_kernel.h     weight_gradient_tile of the same
//
// kJit has the pattern as machine code, on AVX-512; kTiled has it as data, on any instruction set. cost_model.h has the
// thresholds.
#pragma once

#include "sparse_conv2d/jit/forward_plan.h"
#include "sparse_conv2d/jit/weight_gradient_plan.h"

namespace sparsekernels {

enum class Engine { kTiled, kJit };

// What is known before anything is planned: false where the machine has no JIT engine (jit_available in
// jit/kernel_cache.h), or the pattern is too large for it.
bool may_use_jit(const SparsePattern& pattern);

// For the plan that the JIT engine would have.
Engine forward_engine(const Lattice& lattice, const SparsePattern& pattern, const jit::ForwardPlan& plan);
Engine weight_gradient_engine(
    const Lattice& lattice, const SparsePattern& pattern, const jit::WeightGradientPlan& plan);

// Whether a layer of a chain may read and store planes that lie between it and other layers (layer_chain/layout.h).
// JIT kernels may, of float32; planes are float32, so the tensors of half types stay plain, whatever engine runs.
bool may_exchange_planes(const Lattice& lattice, const SparsePattern& pattern, const jit::ForwardPlan& plan);

}  // namespace sparsekernels
