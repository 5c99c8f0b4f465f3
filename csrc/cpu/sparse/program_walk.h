#pragma once

#include "ending.h"
#include "lattice.h"

namespace sparsekernels {

// dest = correlation of source with the pattern, and the ending, by programs. False, and nothing done, where there are
// none for the call.
bool correlate_by_programs(
    const Lattice& lattice, const SparsePattern& pattern, const Ending& ending, const Threads& threads);

}  // namespace sparsekernels
