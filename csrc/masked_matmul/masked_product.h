// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A batch of masked products: which way it is computed, and the threads that do. Knows no torch.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/threads.h"
#include "masked_matmul/call.h"

namespace sparsekernels {

// Where the parts of each product of a batch are, beside those of the first one: in elements, of masks in words.
struct BatchOffsets {
  std::vector<int64_t> a, b, dest, a_mask, b_mask, dest_mask;
  std::vector<int64_t> dest_tiles;  // in tile_words of MaskedProducts
};

struct MaskedProducts {
  MaskedProduct first;
  int64_t count = 1;
  BatchOffsets offsets;              // each of `count`; of masks that are not there: none
  std::vector<uint64_t> tile_words;  // of the TileMaps of the masks of dest, which way_of makes
};

// The i-th of the batch.
MaskedProduct product_at(const MaskedProducts& products, int64_t i);

// Words of a row of a TileMap.
int64_t map_words(int64_t cols);

// None: by a dense product, whose operands and result are masked.
std::optional<Way> way_of(MaskedProducts& products, const Threads& threads);

void run_masked(const MaskedProducts& products, Way way, const Threads& threads);

// By tiles of vectors: tile_groups.cpp.
void run_tile_groups(const MaskedProducts& products, const Threads& threads);

}  // namespace sparsekernels
