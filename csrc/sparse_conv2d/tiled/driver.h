// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Forward, input gradient and weight gradient by tiles: on any instruction set, with the pattern as data.
#pragma once

#include "sparse_conv2d/epilogue.h"
#include "sparse_conv2d/lattice.h"

namespace sparsekernels::tiled {

// dest = correlation of source with the pattern, and the epilogue. The lattice's positions are merged, and the
// pattern's rows were checked.
void forward(
    const Lattice& lattice, const SparsePattern& pattern, const PackedEpilogue& packed, const Threads& threads);

// grad_values [nonzeros], in the dtype of the source: at each nonzero, the sum over positions of source times dest.
void weight_gradient(const Lattice& lattice, const SparsePattern& pattern, void* grad_values, const Threads& threads);

}  // namespace sparsekernels::tiled
