// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/scatter_kernel.h"

#include <algorithm>
#include <cstddef>

#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels::jit {
namespace {

using x86::Gpr;
using x86::Mask;
using x86::Mem;
using x86::Zmm;

// The arguments of a ScatterKernel.
constexpr Gpr kTile = x86::rdi, kRun = x86::rsi, kRows = x86::rdx, kValues = x86::rcx, kResidue = x86::r8;
constexpr Gpr kCount = x86::r9, kVector = x86::r10, kMasks = x86::r11, kDisplacement = x86::rax;
// While rows go by.
constexpr Gpr kSums[kMostScatterTileVectors] = {x86::r10, x86::r11, x86::rdi};
constexpr Gpr kRow = x86::rax, kPlace = x86::rsi;
constexpr Mask kMask{1};

// A nonzero of a column of the pattern.
struct Entry {
  int32_t row, source;  // row of the group; place in the pattern's values
};

// The nonzeros of a group by columns, rows ascending. False where an index is out of its range.
bool sort_by_columns(
    const SparsePattern& pattern, int64_t first_row, int64_t last_row, std::vector<int64_t>& first_of_column,
    std::vector<Entry>& entries) {
  const int64_t columns = static_cast<int64_t>(first_of_column.size()) - 1;
  std::fill(first_of_column.begin(), first_of_column.end(), 0);
  for (int64_t row = first_row; row < last_row; ++row) {
    int64_t before = -1;
    for (int64_t k = pattern.crow_indices[row]; k < pattern.crow_indices[row + 1]; ++k) {
      const int64_t column = pattern.col_indices[k];
      if (column <= before || column >= columns) return false;
      before = column;
      ++first_of_column[static_cast<size_t>(column) + 1];
    }
  }
  for (size_t column = 1; column < first_of_column.size(); ++column)
    first_of_column[column] += first_of_column[column - 1];
  entries.resize(static_cast<size_t>(first_of_column.back()));
  std::vector<int64_t> next(first_of_column.begin(), first_of_column.end() - 1);
  for (int64_t row = first_row; row < last_row; ++row)
    for (int64_t k = pattern.crow_indices[row]; k < pattern.crow_indices[row + 1]; ++k) {
      const int32_t source = pattern.permutation != nullptr ? pattern.permutation[k] : static_cast<int32_t>(k);
      if (source < 0 || source >= pattern.nonzeros) return false;
      int64_t& place = next[static_cast<size_t>(pattern.col_indices[k])];
      entries[static_cast<size_t>(place++)] = {static_cast<int32_t>(row - first_row), source};
    }
  return true;
}

}  // namespace

void write_scatter_kernel(int64_t channels, int64_t vectors, bool is_masked, int64_t channel_bytes, Assembler& code) {
  const auto held = [&](int64_t channel, int64_t vector) { return Zmm(channel * vectors + vector); };
  const auto sum = [&](int64_t vector) { return Zmm(channels * vectors + vector); };
  const int64_t passing = (channels + 1) * vectors;
  const auto value = [&](int64_t channel) { return Zmm(passing + channel % (32 - passing)); };
  const auto pointer = [](size_t member, int64_t vector) {
    return Mem(kTile, static_cast<int64_t>(member) + vector * 8);
  };
  for (int64_t vector = 0; vector < vectors; ++vector) {
    if (is_masked) {
      code.mov(kMasks, pointer(offsetof(ScatterTile, masks), vector));
      code.movsxd(kDisplacement, Mem(kRun, offsetof(ScatterRun, mask)));
      code.add(kMasks, kDisplacement);
      code.kmovw(kMask, Mem(kMasks, 0));
    }
    code.mov(kVector, pointer(offsetof(ScatterTile, vectors), vector));
    code.movsxd(kDisplacement, Mem(kRun, offsetof(ScatterRun, source)));
    code.add(kVector, kDisplacement);
    for (int64_t channel = 0; channel < channels; ++channel) {
      if (channel > 0) code.add(kVector, channel_bytes);
      is_masked ? code.vmovups_z(held(channel, vector), kMask, Mem(kVector, 0))
                : code.vmovups(held(channel, vector), Mem(kVector, 0));
    }
  }
  code.movsxd(kCount, Mem(kRun, offsetof(ScatterRun, rows)));
  for (int64_t vector = 0; vector < vectors; ++vector) {  // the tile's register last
    code.mov(kSums[vector], pointer(offsetof(ScatterTile, sums), vector));
    code.add(kSums[vector], kResidue);
  }
  const size_t start = code.size();
  code.movsxd(kRow, Mem(kRows, 0));
  for (int64_t channel = 0; channel < channels; ++channel) {
    code.vbroadcastss(value(channel), Mem(kValues, channel * 4));
    for (int64_t vector = 0; vector < vectors; ++vector) {
      if (channel == 0) {
        code.vmulps(sum(vector), held(channel, vector), value(channel));
      } else {
        code.vfmadd231ps(sum(vector), held(channel, vector), value(channel));
      }
    }
  }
  for (int64_t vector = 0; vector < vectors; ++vector) {
    code.mov(kPlace, kSums[vector]);
    code.add(kPlace, kRow);
    code.vaddps(sum(vector), sum(vector), Mem(kPlace, 0));
    code.vmovups(Mem(kPlace, 0), sum(vector));
  }
  code.add(kRows, sizeof(int32_t));
  code.add(kValues, channels * 4);
  code.sub(kCount, 1);
  code.jnz(start);
  code.vzeroupper();
  code.ret();
}

bool make_scatter_tables(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, ScatterTables& tables,
    std::vector<int32_t>& order) {
  constexpr int64_t kChunk = 96;  // rows whose sums stay in L1 while the parts of a block of channels go by
  const int64_t taps = static_cast<int64_t>(lattice.taps.size()), rows = lattice.dest_channels;
  const std::vector<Column> columns = columns_of(lattice, plan, lattice.source_channels);
  std::vector<int64_t> first_of_column(columns.size() + 1);
  std::vector<Entry> entries;
  tables.slices = plan.slices;
  for (int64_t group = 0; group < lattice.groups; ++group) {
    if (!sort_by_columns(pattern, group * rows, (group + 1) * rows, first_of_column, entries)) return false;
    const auto at = [&](int64_t channel, int64_t tap) {
      return first_of_column[static_cast<size_t>(channel * taps + tap)];
    };
    const auto count = [&](int64_t channel, int64_t tap) {
      return first_of_column[static_cast<size_t>(channel * taps + tap) + 1] - at(channel, tap);
    };
    int64_t value = pattern.crow_indices[group * rows];
    for (int64_t slice = 0; slice < plan.slices; ++slice) {
      tables.first_run.push_back(static_cast<int64_t>(tables.runs.size()));
      const int64_t first_row = plan.first_row(slice, rows), last_row = plan.first_row(slice + 1, rows);
      for (int64_t block = 0; block < lattice.source_channels; block += plan.scatter_channels) {
        const int64_t channels = std::min(plan.scatter_channels, lattice.source_channels - block);
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Entry* const begin = entries.data() + at(block, tap);
          const Entry* const end = begin + count(block, tap);
          for (int64_t channel = block + 1; channel < block + channels; ++channel) {
            const Entry* const other = entries.data() + at(channel, tap);
            const auto same = [](const Entry& a, const Entry& b) { return a.row == b.row; };
            if (count(channel, tap) != end - begin || !std::equal(begin, end, other, same)) return false;
          }
          const auto before = [](const Entry& entry, int64_t row) { return entry.row < row; };
          const int64_t first = std::lower_bound(begin, end, first_row, before) - begin;
          const int64_t last = std::lower_bound(begin, end, last_row, before) - begin;
          if (first == last) continue;
          const bool reaches = lattice.taps[static_cast<size_t>(tap)].reaches;
          const int64_t chunks = divide_up(last - first, kChunk), parts = scatter_parts(channels);
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t from = first + (last - first) * chunk / chunks,
                          until = first + (last - first) * (chunk + 1) / chunks;
            const int32_t first_of_rows = static_cast<int32_t>(tables.rows.size());
            for (int64_t i = from; i < until; ++i)
              tables.rows.push_back(static_cast<int32_t>((begin[i].row - first_row) * int64_t{kVectorBytes}));
            for (int64_t part = 0; part < parts; ++part) {
              const int64_t low = block + channels * part / parts, high = block + channels * (part + 1) / parts;
              const Column& column = columns[static_cast<size_t>(low * taps + tap)];
              if (reaches)
                tables.runs.push_back(
                    {.source = column.displacement,
                     .mask = column.mask == 0 ? -1 : 2 * (column.mask - 1),
                     .rows = static_cast<int32_t>(until - from),
                     .first_row = first_of_rows,
                     .first_value = static_cast<int32_t>(value),
                     .channels = static_cast<int32_t>(high - low),
                     .tap = static_cast<int32_t>(tap),
                     .residue = column.panel_residue});
              for (int64_t i = from; i < until; ++i)
                for (int64_t channel = low; channel < high; ++channel)
                  order[static_cast<size_t>(value++)] = entries[static_cast<size_t>(at(channel, tap) + i)].source;
            }
          }
        }
      }
    }
  }
  tables.first_run.push_back(static_cast<int64_t>(tables.runs.size()));
  return true;
}

}  // namespace sparsekernels::jit
