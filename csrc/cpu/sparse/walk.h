// What a call and a planned call have in common.
#pragma once

#include "ending.h"
#include "lattice.h"

namespace sparsekernels {

// The ending of a call, in memory that the thread keeps. See lay_out_ending.
Ending call_ending(const Epilogue& epilogue, int64_t rows, DType dtype, const void* dest);

// dest = correlation of source with the pattern, and the ending, on any instruction set. The lattice's positions are
// merged, and the pattern's rows were checked.
void correlate_by_tiles(
    const Lattice& lattice, const SparsePattern& pattern, const Ending& ending, const Threads& threads);

inline bool is_empty(const Activation& tensor) {
  return tensor.size[0] == 0 || tensor.size[1] == 0 || tensor.size[2] == 0 || tensor.size[3] == 0;
}

}  // namespace sparsekernels
