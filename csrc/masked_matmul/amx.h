// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked products in bfloat16 by tiles of AMX; csrc/isa/masked_amx.cpp has the kernels.
#pragma once

#include "masked_matmul/call.h"

namespace sparsekernels {

// As of MaskedKernels, for Way::kTiles.
struct MaskedAmxKernels {
  int64_t (*workspace)(const MaskedProduct& product, int64_t rows, int64_t cols);
  void (*run)(const MaskedProduct& product, const ProductPart& part, float* workspace);
};

extern const MaskedAmxKernels kMaskedAmx;

}  // namespace sparsekernels
