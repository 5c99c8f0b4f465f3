// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/loop_driver.h"

namespace sparsekernels::jit {

std::vector<LoopTileVectors> loop_tiles(const ForwardPlan& plan, const LoopTables& tables, const WorkItem& work_item) {
  const int64_t vectors = plan.vectors(work_item.size[0], work_item.size[1]);
  const int64_t strip = work_item.first[0] / plan.strip[0] * plan.strips[1] + work_item.first[1] / plan.strip[1];
  const uint8_t* const reaches = tables.reaches_of_strip(strip);
  std::vector<LoopTileVectors> tiles;
  std::vector<int64_t> alike;
  for (int64_t reach = 0; reach < tables.reaches; ++reach) {
    alike.clear();
    for (int64_t b = 0; b < work_item.microbatches; ++b)
      for (int64_t vector = 0; vector < vectors; ++vector)
        if (reaches[vector] == reach) alike.push_back(b * vectors + vector);
    const int64_t count = static_cast<int64_t>(alike.size());
    if (count == 0) continue;
    const int64_t parts = divide_up(count, plan.tile_vectors);
    for (int64_t part = 0; part < parts; ++part) {
      LoopTileVectors tile = {};
      tile.reach = reach;
      for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i, ++tile.count) {
        tile.microbatch[tile.count] = static_cast<int32_t>(alike[static_cast<size_t>(i)] / vectors);
        tile.vector[tile.count] = static_cast<int32_t>(alike[static_cast<size_t>(i)] % vectors);
      }
      tiles.push_back(tile);
    }
  }
  return tiles;
}

}  // namespace sparsekernels::jit
