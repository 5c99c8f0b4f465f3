// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A few rows by a packed weight, shared out to threads.
#pragma once

#include "base/threads.h"
#include "packed_linear/call.h"

namespace sparsekernels {

// For up to kMostPackedRows rows. Results depend on the number of rows and the instruction set, not on threads.
void packed_linear(const PackedLinear& call, const Threads& threads);

// Rows [begin, end) of the weight with its zeros.
void unpack_rows(const PackedLinear& call, int64_t begin, int64_t end, const Threads& threads, void* to);

}  // namespace sparsekernels
