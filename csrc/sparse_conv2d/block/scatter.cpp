// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Programs of blocks that have one or two rows, as the input gradient has those of 16x1 and 16x2 blocks. A product of
// one block row would leave a tile nearly empty. So a tile takes 16 rows that have a block at the same source channels
// and tap, and its results are added to the sums of these rows, wherever they are.
#include <algorithm>
#include <cstring>

#include "sparse_conv2d/block/program.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::block {

void scatter_rows(
    const BlockPattern& pattern, const Lattice& lattice, const std::vector<BlockRow>& block_rows,
    const std::vector<Entry>& entries, Program& program) {
  const int64_t taps = static_cast<int64_t>(lattice.taps.size());
  const int64_t keys = divide_up(lattice.source_channels, program.channels_of_block) * taps;
  const int64_t parts = program.channels_of_block / 2 / program.pairs;
  std::vector<int64_t> next;
  const auto each_entry = [&](size_t first, size_t last, int64_t residue, const auto& visit) {
    for (size_t b = first; b < last; ++b)
      for (int64_t e = block_rows[b].first_entry; e < block_rows[b].last_entry; ++e) {
        const Entry& entry = entries[static_cast<size_t>(e)];
        const Tap& tap = lattice.taps[static_cast<size_t>(entry.tap)];
        if (tap.reaches && tap.residue == residue)
          visit(block_rows[b], entry, static_cast<size_t>(entry.column * taps + entry.tap));
      }
  };
  const size_t of_group = block_rows.size() / static_cast<size_t>(lattice.groups);
  for (size_t group = 0; group < block_rows.size(); group += of_group)
    for (int64_t residue = 0; residue < lattice.residues(); ++residue)
      for (size_t first = group, last; first < group + of_group; first = last) {
        ProductRows rows = {};
        rows.group = block_rows[first].group;
        rows.first_row = block_rows[first].first_row;
        rows.residue = residue;
        rows.first_entry = static_cast<int64_t>(program.scatters.size());
        rows.first_chunk = program.chunks;
        for (last = first; last < group + of_group; ++last) {
          if (rows.rows + block_rows[last].rows > cost::block::kScatterRows) break;
          rows.rows += block_rows[last].rows;
        }
        // Counted, then sorted by source channels and tap.
        next.assign(static_cast<size_t>(keys) + 1, 0);
        each_entry(
            first, last, residue, [&](const BlockRow& row, const Entry&, size_t key) { next[key + 1] += row.rows; });
        const int64_t base = static_cast<int64_t>(program.scattered_rows.size());
        for (int64_t key = 0; key < keys; ++key) {
          const int64_t count = next[static_cast<size_t>(key) + 1];
          next[static_cast<size_t>(key) + 1] += next[static_cast<size_t>(key)];
          if (count == 0) continue;
          for (int64_t part = 0; part < parts; ++part) {
            program.scatters.push_back(
                {static_cast<int32_t>(key / taps), static_cast<int32_t>(key % taps), static_cast<int32_t>(part),
                 base + next[static_cast<size_t>(key)], count});
            program.chunks += divide_up(count, kTileRows);
          }
        }
        program.scattered_rows.resize(static_cast<size_t>(base + next.back()));
        each_entry(first, last, residue, [&](const BlockRow& row, const Entry& entry, size_t key) {
          const int64_t strides[2] = {
              // of the weight's rows and channels
              pattern.dense != nullptr ? pattern.dense_strides[0] : entry.width,
              pattern.dense != nullptr ? pattern.dense_strides[1] : 1};
          for (int64_t i = 0; i < row.rows; ++i)
            program.scattered_rows[static_cast<size_t>(base + next[key]++)] = {
                static_cast<int32_t>(row.first_row - rows.first_row + i),
                static_cast<int32_t>(entry.value + i * strides[program.transposed ? 1 : 0]),
                static_cast<int32_t>(strides[program.transposed ? 0 : 1])};
        });
        rows.entries = static_cast<int64_t>(program.scatters.size()) - rows.first_entry;
        rows.chunks = program.chunks - rows.first_chunk;
        program.products.push_back(rows);
      }
}

void fill_scatters(
    const Program& program, const Lattice& lattice, const BlockPattern& pattern,
    const std::vector<int64_t>& tap_offsets, int64_t pitch, int64_t begin, int64_t end, char* weights,
    int32_t* offsets) {
  const int64_t stride = weight_stride(static_cast<int>(program.pairs)), width = 2 * program.pairs;
  const uint16_t* const all_values = pattern.dense != nullptr ? pattern.dense : pattern.values;
  for (int64_t p = begin; p < end; ++p) {
    const ProductRows& rows = program.products[static_cast<size_t>(p)];
    char* to = weights + rows.first_chunk * program.chunk_bytes();
    int32_t* places = offsets + rows.first_chunk * kScatterOffsets;
    for (int64_t s = rows.first_entry; s < rows.first_entry + rows.entries; ++s) {
      const Scatter& scatter = program.scatters[static_cast<size_t>(s)];
      const int64_t from = scatter.part * width;
      const int64_t count = std::min(width, std::max<int64_t>(0, channels_of(program, lattice, scatter.column) - from));
      const int64_t plane = (scatter.column * program.channels_of_block + from) / 2 * pitch +
                            tap_offsets[static_cast<size_t>(scatter.tap)];
      for (int64_t row = 0; row < scatter.rows; row += kTileRows) {
        const int64_t many = std::min<int64_t>(kTileRows, scatter.rows - row);
        if (many < kTileRows || 2 * count < stride) std::memset(to, 0, static_cast<size_t>(program.chunk_bytes()));
        for (int64_t i = 0; i < many; ++i, to += stride) {
          const ScatteredRow& one = program.scattered_rows[static_cast<size_t>(scatter.first_row + row + i)];
          const uint16_t* const value = all_values + one.value + from * one.stride;
          uint16_t* const weight = reinterpret_cast<uint16_t*>(to);
          for (int64_t c = 0; c < count; ++c) weight[c] = value[c * one.stride];
          places[i] = one.row / kMostRows * kScatterTiles * kMostRows * kLanes + one.row % kMostRows * kLanes;
        }
        to += (kTileRows - many) * stride;
        places[kTileRows] = static_cast<int32_t>(plane);
        places[kTileRows + 1] = static_cast<int32_t>(many);
        places += kScatterOffsets;
      }
    }
  }
}

}  // namespace sparsekernels::block
