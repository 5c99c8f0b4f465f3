// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked attention in bfloat16 by tiles of AMX; csrc/isa/attention_amx.cpp has the kernels.
#pragma once

#include "masked_attention/call.h"

namespace sparsekernels {

extern const AttentionKernels kAttentionAmx;

}  // namespace sparsekernels
