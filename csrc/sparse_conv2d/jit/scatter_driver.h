// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Runs the kernels of patterns whose columns are alike (scatter_kernel.h) over the vectors of a work item.
#pragma once

#include <vector>

#include "sparse_conv2d/jit/forward_kernel.h"
#include "sparse_conv2d/jit/loop_driver.h"

namespace sparsekernels::jit {

// All sums of a slice, tile by tile: those of a tile stay in L2, or in L1. `sums` are zeros before. `residue_floats`:
// of sums, from residue to residue. Calls `turn` after each kernel.
template <class Turn>
void run_scatter_slice(
    const ForwardKernels& kernels, int64_t group, int64_t slice, const float* values, int64_t residue_floats,
    const std::vector<LoopTileVectors>& vectors, const std::vector<ScatterTile>& tiles, const Turn& turn) {
  const ScatterTables& tables = kernels.scatter();
  const ScatterRun* const begin = tables.begin(group, slice);
  const ScatterRun* const end = tables.begin(group, slice + 1);
  for (size_t t = 0; t < tiles.size(); ++t) {
    const uint64_t reach = tables.reach_taps[static_cast<size_t>(vectors[t].reach)];
    for (const ScatterRun* run = begin; run < end; ++run) {
      if (reach != ~uint64_t{0} && (reach >> run->tap & 1) == 0) continue;
      kernels.scatter_kernel(run->channels, vectors[t].count, run->mask >= 0)(
          &tiles[t], run, tables.rows.data() + run->first_row, values + run->first_value,
          run->residue * residue_floats * int64_t{sizeof(float)});
      turn();
    }
  }
}

}  // namespace sparsekernels::jit
