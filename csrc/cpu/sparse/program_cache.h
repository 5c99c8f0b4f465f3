// Keeps the programs of patterns from call to call. A pattern is known by its content, so that nobody has to say when
// it changes.
#pragma once

#include <memory>
#include <vector>

#include "program.h"

namespace sparsekernels {

// Of the patterns used last, up to a limit of memory.
std::shared_ptr<const Programs> cached_programs(
    const Lattice& lattice, const BundlePlan& plan, const SparsePattern& pattern, const Threads& threads);

// Whether programs may be used: not where SPARSEKERNELS_CPU_PROGRAMS, the megabytes of them that are kept, is 0, nor
// where the system refuses to run them.
bool programs_allowed();

int64_t kept_program_bytes();

}  // namespace sparsekernels
