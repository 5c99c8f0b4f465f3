#pragma once

#include "lattice.h"

namespace sparsekernels {

// dest = correlation of source with the pattern, plus bias (float, of each row, or null), by programs. False, and
// nothing done, where there are none for the call.
bool correlate_by_programs(
    const Lattice& lattice, const SparsePattern& pattern, const float* bias, const Threads& threads);

}  // namespace sparsekernels
