// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/block/program.h"

#include <algorithm>
#include <cstring>

namespace sparsekernels::block {
namespace {

// Pairs of a chunk whose planes are neighbors: as many as divide those of a block. Fewer than this are gathered.
constexpr int64_t kFewestNeighbors = 4;

int64_t neighbors_of(int64_t channels) {
  if (channels % 2 != 0) return 1;
  const int64_t pairs = channels / 2;
  int64_t most = std::min<int64_t>(pairs, kMostPairs);
  while (pairs % most != 0) --most;
  return most;
}

}  // namespace

std::vector<int64_t> first_values(const BlockPattern& pattern) {
  std::vector<int64_t> first(static_cast<size_t>(pattern.blocks));
  if (pattern.dense != nullptr) {
    for (int64_t row = 0; row < pattern.block_rows(); ++row)
      for (int32_t b = pattern.crow_indices[row]; b < pattern.crow_indices[row + 1]; ++b)
        first[static_cast<size_t>(b)] = row * pattern.block[0] * pattern.dense_strides[0] +
                                        pattern.col_indices[b] / pattern.taps * pattern.block[1] * pattern.dense_strides[1] +
                                        pattern.col_indices[b] % pattern.taps * pattern.dense_strides[2];
    return first;
  }
  const int64_t last = pattern.block_columns() - 1, rest = pattern.channels - last * pattern.block[1];
  int64_t at = 0;
  for (int64_t row = 0; row < pattern.block_rows(); ++row) {
    const int64_t rows = std::min(pattern.block[0], pattern.rows - row * pattern.block[0]);
    for (int32_t b = pattern.crow_indices[row]; b < pattern.crow_indices[row + 1]; ++b) {
      first[static_cast<size_t>(b)] = at;
      at += rows * (pattern.col_indices[b] / pattern.taps == last ? rest : pattern.block[1]);
    }
  }
  return first;
}

namespace {

struct BlockRow {
  int64_t group, first_row, rows;
  int64_t first_entry, last_entry;
};

// The blocks by rows of the lattice's destination.
std::vector<BlockRow> block_rows_of(
    const BlockPattern& pattern, const Lattice& lattice, bool transposed, std::vector<Entry>& entries) {
  const std::vector<int64_t> first = first_values(pattern);
  const int64_t blocks_of_group = pattern.block_rows() / lattice.groups;
  const int64_t rows_of_group = pattern.rows / lattice.groups;
  const int64_t columns = pattern.block_columns();
  const auto width = [&](int64_t column) {
    return std::min(pattern.block[1], pattern.channels - column * pattern.block[1]);
  };
  // Elements from one row of a block to the next, and from one channel to the next.
  const bool dense = pattern.dense != nullptr;
  const auto row_stride = [&](int64_t column) { return dense ? pattern.dense_strides[0] : width(column); };
  const int64_t channel_stride = dense ? pattern.dense_strides[1] : 1;
  std::vector<BlockRow> result;
  entries.resize(static_cast<size_t>(pattern.blocks));
  if (!transposed) {
    for (int64_t row = 0; row < pattern.block_rows(); ++row) {
      const int64_t begin = pattern.crow_indices[row], end = pattern.crow_indices[row + 1];
      for (int64_t b = begin; b < end; ++b) {
        const int64_t column = pattern.col_indices[b] / pattern.taps;
        entries[static_cast<size_t>(b)] = {
            static_cast<int32_t>(column), static_cast<int32_t>(pattern.col_indices[b] % pattern.taps),
            first[static_cast<size_t>(b)], row_stride(column), channel_stride};
      }
      const int64_t group = row / std::max<int64_t>(1, blocks_of_group);
      const int64_t at = (lattice.groups == 1 ? row : row % blocks_of_group) * pattern.block[0];
      result.push_back(
          {lattice.groups == 1 ? 0 : group, at, std::min(pattern.block[0], rows_of_group - at), begin, end});
    }
    return result;
  }
  std::vector<int64_t> next(static_cast<size_t>(lattice.groups * columns) + 1);
  const auto row_of = [&](int64_t row, int64_t b) {
    const int64_t group = lattice.groups == 1 ? 0 : row / blocks_of_group;
    return static_cast<size_t>(group * columns + pattern.col_indices[b] / pattern.taps);
  };
  for (int64_t row = 0; row < pattern.block_rows(); ++row)
    for (int64_t b = pattern.crow_indices[row]; b < pattern.crow_indices[row + 1]; ++b) ++next[row_of(row, b) + 1];
  for (size_t row = 1; row < next.size(); ++row) next[row] += next[row - 1];
  for (int64_t group = 0; group < lattice.groups; ++group)
    for (int64_t column = 0; column < columns; ++column) {
      const size_t row = static_cast<size_t>(group * columns + column);
      result.push_back({group, column * pattern.block[1], width(column), next[row], next[row + 1]});
    }
  for (int64_t row = 0; row < pattern.block_rows(); ++row)
    for (int64_t b = pattern.crow_indices[row]; b < pattern.crow_indices[row + 1]; ++b) {
      const int64_t in_group = lattice.groups == 1 ? row : row % blocks_of_group;
      entries[static_cast<size_t>(next[row_of(row, b)]++)] = {
          static_cast<int32_t>(in_group), static_cast<int32_t>(pattern.col_indices[b] % pattern.taps),
          first[static_cast<size_t>(b)], channel_stride, row_stride(pattern.col_indices[b] / pattern.taps)};
    }
  return result;
}

// Of a block of source channels, those that there are.
int64_t channels_of(const Program& program, const Lattice& lattice, const Entry& entry) {
  return std::min(
      program.channels_of_block, lattice.source_channels - entry.column * program.channels_of_block);
}

// What an entry takes in a chunk whose planes are gathered: pairs, or channels.
int64_t slots_of(const Program& program, const Lattice& lattice, const Entry& entry) {
  const int64_t channels = channels_of(program, lattice, entry);
  return program.columns == Columns::kPairs ? divide_up(channels, 2) : channels;
}

int64_t chunks_of(const Program& program, const Lattice& lattice, const ProductRows& rows) {
  if (program.columns == Columns::kPlanes) return rows.entries * (program.channels_of_block / 2 / program.pairs);
  int64_t slots = 0;
  for (int64_t e = rows.first_entry; e < rows.first_entry + rows.entries; ++e)
    slots += slots_of(program, lattice, program.entries[static_cast<size_t>(e)]);
  return divide_up(slots, program.columns == Columns::kPairs ? kMostPairs : 2 * kMostPairs);
}

}  // namespace

Program make_program(const BlockPattern& pattern, const Lattice& lattice, bool transposed) {
  Program program = {};
  const int64_t block[2] = {pattern.block[transposed ? 1 : 0], pattern.block[transposed ? 0 : 1]};
  program.channels_of_block = block[1];
  program.pairs = neighbors_of(block[1]);
  program.columns = program.pairs >= kFewestNeighbors ? Columns::kPlanes
                    : block[1] % 2 == 0               ? Columns::kPairs
                                                      : Columns::kChannels;
  if (program.columns != Columns::kPlanes) program.pairs = kMostPairs;
  program.rows = evened(std::min(block[0], lattice.dest_channels), kMostRows);
  std::vector<Entry> entries;
  const std::vector<BlockRow> block_rows = block_rows_of(pattern, lattice, transposed, entries);
  program.entries.reserve(entries.size());
  for (const BlockRow& one : block_rows)
    for (int64_t residue = 0; residue < lattice.residues(); ++residue) {
      const int64_t first_entry = static_cast<int64_t>(program.entries.size());
      for (int64_t e = one.first_entry; e < one.last_entry; ++e) {
        const Entry& entry = entries[static_cast<size_t>(e)];
        const Tap& tap = lattice.taps[static_cast<size_t>(entry.tap)];
        if (tap.reaches && tap.residue == residue) program.entries.push_back(entry);
      }
      const int64_t count = static_cast<int64_t>(program.entries.size()) - first_entry;
      for (int64_t row = 0; row < one.rows; row += program.rows) {
        ProductRows rows = {};
        rows.group = one.group;
        rows.first_row = one.first_row + row;
        rows.rows = std::min(program.rows, one.rows - row);
        rows.residue = residue;
        rows.first_entry = first_entry;
        rows.entries = count;
        rows.value_offset = row;
        rows.first_chunk = program.chunks;
        rows.chunks = chunks_of(program, lattice, rows);
        program.chunks += rows.chunks;
        program.products.push_back(rows);
      }
    }
  return program;
}

int64_t pairs_of(const Program& program, const Lattice& lattice) {
  const int64_t blocks = divide_up(lattice.source_channels, program.channels_of_block);
  const int64_t pairs = divide_up(blocks * program.channels_of_block, 2);
  return pairs + 1;  // a plane of zeros
}

void fill_program(
    const Program& program, const Lattice& lattice, const BlockPattern& pattern,
    const std::vector<int64_t>& tap_offsets, int64_t pitch, int64_t zeros, int64_t begin, int64_t end, char* weights,
    int32_t* offsets) {
  const int64_t stride = weight_stride(static_cast<int>(program.pairs)), chunk_bytes = program.chunk_bytes();
  const int64_t of_chunk = offsets_of(program.columns);
  const uint16_t* const values = pattern.dense != nullptr ? pattern.dense : pattern.values;
  for (int64_t p = begin; p < end; ++p) {
    const ProductRows& rows = program.products[static_cast<size_t>(p)];
    char* const chunks = weights + rows.first_chunk * chunk_bytes;
    int32_t* const places = offsets + rows.first_chunk * of_chunk;
    std::memset(chunks, 0, static_cast<size_t>(rows.chunks * chunk_bytes));
    // Elements [from, from + count) of an entry's channels to those of a chunk, from `to` on.
    const auto copy = [&](const Entry& entry, int64_t from, int64_t count, int64_t chunk, int64_t to) {
      const uint16_t* value = values + entry.value + rows.value_offset * entry.row_stride;
      char* row = chunks + chunk * chunk_bytes + to * 2;
      for (int64_t r = 0; r < rows.rows; ++r, row += stride, value += entry.row_stride) {
        if (entry.channel_stride == 1) {
          std::memcpy(row, value + from, static_cast<size_t>(count) * 2);
        } else {
          for (int64_t c = 0; c < count; ++c)
            std::memcpy(row + c * 2, value + (from + c) * entry.channel_stride, sizeof(uint16_t));
        }
      }
    };
    int64_t slot = 0;
    for (int64_t e = 0; e < rows.entries; ++e) {
      const Entry& entry = program.entries[static_cast<size_t>(rows.first_entry + e)];
      const int64_t channels = channels_of(program, lattice, entry);
      const int64_t tap = tap_offsets[static_cast<size_t>(entry.tap)];
      const int64_t first = entry.column * program.channels_of_block;
      if (program.columns == Columns::kPlanes) {
        const int64_t parts = program.channels_of_block / 2 / program.pairs, width = 2 * program.pairs;
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t chunk = e * parts + part, from = part * width;
          places[chunk] = static_cast<int32_t>((first / 2 + part * program.pairs) * pitch + tap);
          if (from < channels) copy(entry, from, std::min(width, channels - from), chunk, 0);
        }
      } else if (program.columns == Columns::kPairs) {
        for (int64_t pair = 0; pair < divide_up(channels, 2); ++pair, ++slot) {
          const int64_t chunk = slot / kMostPairs, at = slot % kMostPairs;
          places[chunk * of_chunk + at] = static_cast<int32_t>((first / 2 + pair) * pitch + tap);
          copy(entry, pair * 2, std::min<int64_t>(2, channels - pair * 2), chunk, at * 2);
        }
      } else {
        for (int64_t channel = 0; channel < channels; ++channel, ++slot) {
          const int64_t chunk = slot / (2 * kMostPairs), at = slot % (2 * kMostPairs);
          int32_t* const of = places + chunk * of_chunk;
          of[at % 2 * kMostPairs + at / 2] = static_cast<int32_t>((first + channel) / 2 * pitch + tap);
          int32_t& halves = of[2 * kMostPairs + at / 2];
          const int32_t odd = static_cast<int32_t>((first + channel) % 2);
          halves = at % 2 == 0 ? odd : halves | odd << 1;
          copy(entry, channel, 1, chunk, at);
        }
      }
    }
    if (program.columns == Columns::kPlanes || rows.chunks == 0) continue;
    // what is left of the last chunk
    const bool pairs = program.columns == Columns::kPairs;
    const int64_t slots = pairs ? kMostPairs : 2 * kMostPairs;
    for (; slot < rows.chunks * slots; ++slot) {
      const int64_t chunk = slot / slots, at = slot % slots;
      int32_t* const of = places + chunk * of_chunk;
      of[pairs ? at : at % 2 * kMostPairs + at / 2] = static_cast<int32_t>(zeros);
      if (!pairs && at % 2 == 0) of[2 * kMostPairs + at / 2] = 0;
    }
  }
}

}  // namespace sparsekernels::block
