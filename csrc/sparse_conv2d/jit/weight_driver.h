// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sparse_conv2d/lattice.h"

namespace sparsekernels::jit {

// The pattern's weight gradient on a forward lattice, by kernels. grad_values [nonzeros], in the dtype of the source.
// False, and nothing done, where there are none for the call.
bool weight_gradient(const Lattice& lattice, const SparsePattern& pattern, void* grad_values, const Threads& threads);

}  // namespace sparsekernels::jit
