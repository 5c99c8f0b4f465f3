// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Whether this process may use the tiles of AMX.
#pragma once

namespace sparsekernels {

// Whether the processor multiplies tiles of bfloat16 (AMX-BF16) and the system lets this process do so. Tile data is a
// part of a thread's state that Linux adds when it is asked to (arch_prctl, ARCH_REQ_XCOMP_PERM): done once, here, for
// all threads. SPARSEKERNELS_CPU_AMX=0 in the environment at the first call says no.
bool may_use_amx();

// Why not, in words; null where it may.
const char* amx_missing();

}  // namespace sparsekernels
