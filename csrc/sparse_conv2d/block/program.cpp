// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/block/program.h"

#include <algorithm>
#include <cstring>

#include "sparse_conv2d/cost_model.h"

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
        first[static_cast<size_t>(b)] =
            row * pattern.block[0] * pattern.dense_strides[0] +
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

// Calls visit(row, block, column, tap, its first value, width of its rows) for all blocks. Its first value is that of
// `values`, or of the dense weight.
template <class Visit>
void each_block(const BlockPattern& pattern, const Visit& visit) {
  const int64_t last = pattern.block_columns() - 1;
  const int32_t rest = static_cast<int32_t>(pattern.channels - last * pattern.block[1]);
  const int32_t whole = static_cast<int32_t>(pattern.block[1]);
  const uint32_t taps = static_cast<uint32_t>(pattern.taps);
  int32_t value = 0;
  for (int64_t row = 0; row < pattern.block_rows(); ++row) {
    const int32_t rows = static_cast<int32_t>(std::min(pattern.block[0], pattern.rows - row * pattern.block[0]));
    for (int32_t b = pattern.crow_indices[row]; b < pattern.crow_indices[row + 1]; ++b) {
      uint32_t column = static_cast<uint32_t>(pattern.col_indices[b]), tap = 0;
      if (taps > 1) {
        tap = column % taps;
        column /= taps;
      }
      const int32_t width = column == last ? rest : whole;
      if (pattern.dense != nullptr)
        value = static_cast<int32_t>(
            row * pattern.block[0] * pattern.dense_strides[0] + column * pattern.block[1] * pattern.dense_strides[1] +
            tap * pattern.dense_strides[2]);
      visit(row, b, static_cast<int32_t>(column), static_cast<int32_t>(tap), value, width);
      value += rows * width;
    }
  }
}

// The blocks by rows of the lattice's destination.
std::vector<BlockRow> block_rows_of(
    const BlockPattern& pattern, const Lattice& lattice, bool transposed, std::vector<Entry>& entries) {
  const int64_t blocks_of_group = std::max<int64_t>(1, pattern.block_rows() / lattice.groups);
  const int64_t rows_of_group = pattern.rows / lattice.groups;
  const int64_t columns = pattern.block_columns();
  const auto group_of = [&](int64_t row) { return lattice.groups == 1 ? 0 : row / blocks_of_group; };
  const auto in_group = [&](int64_t row) { return lattice.groups == 1 ? row : row % blocks_of_group; };
  std::vector<BlockRow> result;
  entries.resize(static_cast<size_t>(pattern.blocks));
  if (!transposed) {
    for (int64_t row = 0; row < pattern.block_rows(); ++row) {
      const int64_t at = in_group(row) * pattern.block[0];
      result.push_back(
          {group_of(row), at, std::min(pattern.block[0], rows_of_group - at), pattern.crow_indices[row],
           pattern.crow_indices[row + 1]});
    }
    each_block(pattern, [&](int64_t, int32_t b, int32_t column, int32_t tap, int32_t value, int32_t width) {
      entries[static_cast<size_t>(b)] = {column, tap, value, width};
    });
    return result;
  }
  std::vector<int64_t> next(static_cast<size_t>(lattice.groups * columns) + 1);
  each_block(pattern, [&](int64_t row, int32_t, int32_t column, int32_t, int32_t, int32_t) {
    ++next[static_cast<size_t>(group_of(row) * columns + column) + 1];
  });
  for (size_t row = 1; row < next.size(); ++row) next[row] += next[row - 1];
  for (int64_t group = 0; group < lattice.groups; ++group)
    for (int64_t column = 0; column < columns; ++column) {
      const size_t row = static_cast<size_t>(group * columns + column);
      const int64_t at = column * pattern.block[1];
      result.push_back({group, at, std::min(pattern.block[1], pattern.channels - at), next[row], next[row + 1]});
    }
  each_block(pattern, [&](int64_t row, int32_t, int32_t column, int32_t tap, int32_t value, int32_t width) {
    entries[static_cast<size_t>(next[static_cast<size_t>(group_of(row) * columns + column)]++)] = {
        static_cast<int32_t>(in_group(row)), tap, value, width};
  });
  return result;
}

// Narrow layers leave many columns of blocks empty: what no block reads is not packed.
void find_panels(const Lattice& lattice, Program& program) {
  const int64_t blocks = divide_up(lattice.source_channels, program.channels_of_block);
  const int64_t of_block = program.channels_of_block / (2 * program.pairs);
  std::vector<bool> used(static_cast<size_t>(blocks));
  for (const Entry& entry : program.entries) used[static_cast<size_t>(entry.column)] = true;
  program.places_of_panels.assign(static_cast<size_t>(blocks * of_block), 0);
  for (int64_t panel = 0; panel < blocks * of_block; ++panel) {
    if (!used[static_cast<size_t>(panel / of_block)]) continue;
    program.places_of_panels[static_cast<size_t>(panel)] = static_cast<int32_t>(program.panels.size());
    program.panels.push_back(static_cast<int32_t>(panel));
  }
}

// Pairs that a product's chunks hold, its last one in part. Of channels that may be anywhere, those in low halves of
// planes and those in high halves make pairs, so that a pair is a blend of two planes.
int64_t pairs_of_product(const Program& program, const Lattice& lattice, const ProductRows& rows) {
  if (program.has_neighbors()) return rows.entries * (program.channels_of_block / 2);
  int64_t pairs[2] = {0, 0};
  if (program.channels_of_block == 1) {
    for (int64_t e = rows.first_entry; e < rows.first_entry + rows.entries; ++e)
      pairs[1] += program.entries[static_cast<size_t>(e)].column % 2;
    return std::max(pairs[1], rows.entries - pairs[1]);
  }
  for (int64_t e = rows.first_entry; e < rows.first_entry + rows.entries; ++e) {
    const Entry& entry = program.entries[static_cast<size_t>(e)];
    const int64_t channels = channels_of(program, lattice, entry.column);
    const int64_t odd = program.columns == Columns::kChannels ? entry.column * program.channels_of_block % 2 : 0;
    pairs[odd] += divide_up(channels, 2);
    pairs[1 - odd] += channels / 2;
  }
  return std::max(pairs[0], pairs[1]);
}

// Rows of neighboring elements: `bytes` of each, zeros up to `stride`, and in rows that there are not.
void copy_rows(
    const uint16_t* from, int64_t row_stride, int64_t rows, int64_t bytes, int64_t all_rows, int64_t stride, char* to) {
  const auto copy = [&](auto known) {
    for (int64_t row = 0; row < rows; ++row) std::memcpy(to + row * stride, from + row * row_stride, known());
  };
  if (bytes < stride || rows < all_rows) std::memset(to, 0, static_cast<size_t>(all_rows * stride));
  if (bytes == 64)
    copy([] { return size_t{64}; });
  else if (bytes == 32)
    copy([] { return size_t{32}; });
  else if (bytes > 0)
    copy([&] { return static_cast<size_t>(bytes); });
}

// Whether the values of blocks are the rows of chunks, of which all are whole.
bool is_laid_out(const BlockPattern& pattern, const Program& program, const int64_t* block) {
  return !program.transposed && pattern.dense == nullptr && block[1] == 2 * program.pairs &&
         weight_stride(static_cast<int>(program.pairs)) == 4 * program.pairs && program.rows == block[0] &&
         pattern.rows % block[0] == 0 && pattern.channels % block[1] == 0;
}

}  // namespace

int64_t channels_of(const Program& program, const Lattice& lattice, int64_t column) {
  return std::min(program.channels_of_block, lattice.source_channels - column * program.channels_of_block);
}

Program make_program(const BlockPattern& pattern, const Lattice& lattice, bool transposed, const Kernels& kernels) {
  Program program = {};
  const int64_t block[2] = {pattern.block[transposed ? 1 : 0], pattern.block[transposed ? 0 : 1]};
  program.channels_of_block = block[1];
  program.transposed = transposed;
  program.pairs = neighbors_of(block[1]);
  program.columns = program.pairs >= kFewestNeighbors ? Columns::kPlanes
                    : block[1] % 2 == 0               ? Columns::kPairs
                                                      : Columns::kChannels;
  if (!program.has_neighbors()) program.pairs = kMostPairs;
  program.rows = evened(std::min(block[0], lattice.dest_channels), kMostRows);
  std::vector<Entry> entries;
  const std::vector<BlockRow> block_rows = block_rows_of(pattern, lattice, transposed, entries);
  program.is_scattered =
      kernels.scatter != nullptr && program.columns == Columns::kPlanes && block[0] <= cost::block::kMostScatteredRows;
  if (program.is_scattered) {
    program.rows = kTileRows;
    scatter_rows(pattern, lattice, block_rows, entries, program);
    return program;
  }
  const size_t taps = lattice.taps.size();
  bool takes_all = lattice.residues() == 1;
  for (const Tap& tap : lattice.taps) takes_all = takes_all && tap.reaches;
  if (program.columns == Columns::kPlanes) {
    program.in_place = takes_all && is_laid_out(pattern, program, block);
    const int64_t positions = lattice.dest.size[0] * lattice.size[0] * lattice.size[1];
    const int64_t activations = positions * (lattice.source_channels + lattice.dest_channels);
    const bool few =
        taps == 1 && pattern.blocks * block[0] * block[1] * 100 >= activations * cost::block::kInPlacePercent;
    if (kernels.panels != nullptr && program.pairs > kMostPairs / 2 && !(program.in_place && few)) {
      program.columns = Columns::kPanels;
      program.in_place = false;
    }
  }
  if (takes_all)
    program.entries = std::move(entries);
  else
    program.entries.reserve(entries.size());
  program.products.reserve(block_rows.size() * static_cast<size_t>(lattice.residues()));
  const size_t of_group = block_rows.size() / static_cast<size_t>(lattice.groups);
  const auto add_products = [&](const BlockRow& one, int64_t residue) {
    const int64_t first_entry = takes_all ? one.first_entry : static_cast<int64_t>(program.entries.size());
    for (int64_t e = one.first_entry; !takes_all && e < one.last_entry; ++e) {
      const Entry& entry = entries[static_cast<size_t>(e)];
      const Tap& tap = lattice.taps[static_cast<size_t>(entry.tap)];
      if (tap.reaches && tap.residue == residue) program.entries.push_back(entry);
    }
    const int64_t count = (takes_all ? one.last_entry : static_cast<int64_t>(program.entries.size())) - first_entry;
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
      rows.chunks = divide_up(pairs_of_product(program, lattice, rows), program.pairs);
      program.chunks += rows.chunks;
      program.products.push_back(rows);
    }
  };
  for (size_t group = 0; group < block_rows.size(); group += of_group)
    for (int64_t residue = 0; residue < lattice.residues(); ++residue)
      for (size_t row = group; row < group + of_group; ++row) add_products(block_rows[row], residue);
  if (program.columns == Columns::kPanels) find_panels(lattice, program);
  return program;
}

int64_t planes_of(const Program& program, const Lattice& lattice) {
  if (program.columns == Columns::kPanels) return std::max<int64_t>(1, static_cast<int64_t>(program.panels.size()));
  const int64_t blocks = divide_up(lattice.source_channels, program.channels_of_block);
  const int64_t pairs = divide_up(blocks * program.channels_of_block, 2);
  return pairs + 1;  // a plane of zeros
}

void fill_program(
    const Program& program, const Lattice& lattice, const BlockPattern& pattern, const Kernels& kernels,
    const std::vector<int64_t>& tap_offsets, int64_t pitch, int64_t zeros, int64_t begin, int64_t end, char* weights,
    int32_t* offsets) {
  if (program.is_scattered)
    return fill_scatters(program, lattice, pattern, tap_offsets, pitch, begin, end, weights, offsets);
  const int64_t chunk_bytes = program.chunk_bytes(), of_chunk = offsets_of(program.columns);
  const int64_t of_block = program.channels_of_block, pairs = program.pairs;
  const bool panels = program.columns == Columns::kPanels, neighbors = program.has_neighbors();
  const bool channels_apart = program.columns == Columns::kChannels;
  const bool dense = pattern.dense != nullptr;
  const uint16_t* const all_values = dense ? pattern.dense : pattern.values;
  // Whether a chunk's rows are copies of neighboring elements.
  const bool are_rows = neighbors && !program.transposed && (!dense || pattern.dense_strides[1] == 1);
  std::vector<const uint16_t*> halves[2];  // of each pair of a product
  std::vector<int32_t> row_strides[2];
  for (int64_t p = begin; p < end; ++p) {
    const ProductRows& rows = program.products[static_cast<size_t>(p)];
    char* const chunks = weights + rows.first_chunk * chunk_bytes;
    int32_t* const places = offsets + rows.first_chunk * of_chunk;
    const auto place = [&](int64_t half, int64_t slot) -> int32_t& {  // of gathered planes
      return places[slot / kMostPairs * of_chunk + half * kMostPairs + slot % kMostPairs];
    };
    const size_t all_pairs = are_rows ? 0 : static_cast<size_t>(rows.chunks * pairs);
    for (std::vector<const uint16_t*>& half : halves) half.assign(all_pairs, nullptr);
    for (std::vector<int32_t>& strides : row_strides) strides.assign(all_pairs, 1);
    int64_t next[2] = {0, 0};
    const auto put = [&](const uint16_t* values, int32_t row_stride, int64_t half, int64_t slot) {
      halves[half][static_cast<size_t>(slot)] = values;
      row_strides[half][static_cast<size_t>(slot)] = row_stride;
    };
    for (int64_t e = 0; e < rows.entries; ++e) {
      const Entry& entry = program.entries[static_cast<size_t>(rows.first_entry + e)];
      const int64_t strides[2] = {
          dense ? pattern.dense_strides[0] : entry.width, dense ? pattern.dense_strides[1] : int64_t{1}};
      const int32_t row_stride = static_cast<int32_t>(strides[program.transposed ? 1 : 0]);
      const int64_t channel_stride = strides[program.transposed ? 0 : 1];
      const uint16_t* const values = all_values + entry.value + rows.value_offset * row_stride;
      const int64_t channels = channels_of(program, lattice, entry.column);
      const int64_t tap = tap_offsets[static_cast<size_t>(entry.tap)] * program.position();
      const int64_t first = entry.column * of_block;
      if (neighbors) {
        for (int64_t from = 0; from < of_block; from += 2 * pairs, ++next[0]) {
          const int64_t plane =
              panels ? program.places_of_panels[static_cast<size_t>((first + from) / (2 * pairs))] : (first + from) / 2;
          places[next[0]] = static_cast<int32_t>(plane * pitch + tap);
          const int64_t count = std::min(2 * pairs, std::max<int64_t>(0, channels - from));
          if (are_rows && panels) {
            RowsCall call = {};
            call.from = values + from;
            call.row_stride = row_stride;
            call.channels = count;
            call.rows = static_cast<int>(rows.rows);
            call.all_rows = static_cast<int>(program.rows);
            call.pairs = static_cast<int>(pairs);
            call.to = chunks + next[0] * chunk_bytes;
            kernels.panels->lay_rows(call);
          } else if (program.in_place) {
            continue;
          } else if (are_rows) {
            copy_rows(
                values + from, row_stride, rows.rows, 2 * count, program.rows, chunk_bytes / program.rows,
                chunks + next[0] * chunk_bytes);
          } else {
            for (int64_t i = 0; i < count; ++i)
              put(values + (from + i) * channel_stride, row_stride, i % 2, next[0] * pairs + i / 2);
          }
        }
        continue;
      }
      for (int64_t channel = 0; channel < channels; ++channel) {
        const int64_t half = (first + channel) % 2;
        const int64_t slot = channels_apart ? next[half]++ : next[0] + channel / 2;
        place(channels_apart ? half : 0, slot) = static_cast<int32_t>((first + channel) / 2 * pitch + tap);
        put(values + channel * channel_stride, row_stride, half, slot);
      }
      if (!channels_apart) next[0] += divide_up(channels, 2);
    }
    if (!neighbors)  // what is left of the last chunk
      for (int64_t half = 0; half < (channels_apart ? 2 : 1); ++half)
        for (; next[half] < rows.chunks * pairs; ++next[half]) place(half, next[half]) = static_cast<int32_t>(zeros);
    if (are_rows) continue;
    for (int64_t chunk = 0; chunk < rows.chunks; ++chunk) {
      WeightsCall call = {};
      for (int half = 0; half < 2; ++half) {
        call.halves[half] = halves[half].data() + chunk * pairs;
        call.row_strides[half] = row_strides[half].data() + chunk * pairs;
      }
      call.rows = static_cast<int>(rows.rows);
      call.all_rows = static_cast<int>(program.rows);
      call.pairs = static_cast<int>(pairs);
      call.to = chunks + chunk * chunk_bytes;
      (panels ? kernels.panels->lay_weights : kernels.lay_weights)(call);
    }
  }
}

}  // namespace sparsekernels::block
