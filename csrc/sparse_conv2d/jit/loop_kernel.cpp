// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/loop_kernel.h"

#include <algorithm>
#include <cstddef>

#include "sparse_conv2d/epilogue.h"

namespace sparsekernels::jit {
namespace {

using x86::Gpr;
using x86::IndexedMem;
using x86::Mask;
using x86::Mem;
using x86::Zmm;

// The arguments of a LoopKernel.
constexpr Gpr kTile = x86::rdi, kColumns = x86::rsi, kCounts = x86::rdx, kValues = x86::rcx, kRows = x86::r8;
constexpr Gpr kVector = x86::rax, kOwnValues = x86::r9, kCount = x86::rbp, kPlace = x86::rax, kMore = x86::r9;
// The tile's vectors. The first two need not be saved.
constexpr Gpr kVectors[kMostTileVectors] = {x86::r10, x86::r11, x86::rbx, x86::r12, x86::r13, x86::r14, x86::r15};
constexpr int kUnsaved = 2;
constexpr Mask kStored{kMostMasks};
constexpr Zmm kLimit{31};

// Where the sums and operands of a tile are: sums first, then what a column loads ahead, then one at a time.
struct TileRegisters {
  int64_t rows, vectors;

  Zmm sum(int64_t row, int64_t vector) const { return Zmm(vector * rows + row); }
  Zmm held(int64_t i) const { return Zmm(rows * vectors + i); }
  // Two that alternate, where there are as many.
  Zmm passing(int64_t i) const {
    const int64_t first = rows * vectors + std::min(rows, vectors);
    return Zmm(first + (first + 1 <= 31 ? i % 2 : 0));
  }
};

Mem tile_pointer(size_t member, int64_t vector) {
  return Mem(kTile, static_cast<int64_t>(member) + vector * 8);
}

// The multiply-adds of a column.
void write_column(const TileRegisters& at, bool masked, Assembler& code) {
  const auto load = [&](Zmm to, int64_t vector) {
    const IndexedMem from(kVectors[vector], kVector);
    masked ? code.vmovups_z(to, Mask(vector + 1), from) : code.vmovups(to, from);
  };
  const auto value = [&](int64_t row) { return Mem(kOwnValues, row * 4); };
  code.movsxd(kVector, Mem(kColumns, offsetof(LoopColumn, vector)));
  code.imul32(kOwnValues, Mem(kColumns, offsetof(LoopColumn, place)), static_cast<int8_t>(at.rows));
  code.add(kOwnValues, kValues);
  if (at.vectors == 1) {
    load(at.held(0), 0);
    for (int64_t row = 0; row < at.rows; ++row) code.vfmadd231ps_bcst(at.sum(row, 0), at.held(0), value(row));
  } else if (at.vectors <= at.rows) {
    for (int64_t vector = 0; vector < at.vectors; ++vector) load(at.held(vector), vector);
    for (int64_t row = 0; row < at.rows; ++row) {
      code.vbroadcastss(at.passing(row), value(row));
      for (int64_t vector = 0; vector < at.vectors; ++vector)
        code.vfmadd231ps(at.sum(row, vector), at.held(vector), at.passing(row));
    }
  } else {
    for (int64_t row = 0; row < at.rows; ++row) code.vbroadcastss(at.held(row), value(row));
    for (int64_t vector = 0; vector < at.vectors; ++vector) {
      load(at.passing(vector), vector);
      for (int64_t row = 0; row < at.rows; ++row)
        code.vfmadd231ps(at.sum(row, vector), at.passing(vector), at.held(row));
    }
  }
}

void write_loop(const TileRegisters& at, int64_t mask, Assembler& code) {
  code.movsxd(kCount, Mem(kCounts, mask * 4));
  code.test(kCount, kCount);
  const size_t none = code.jz_far();
  for (int64_t vector = 0; vector < at.vectors && mask > 0; ++vector) {
    code.mov(kPlace, tile_pointer(offsetof(LoopTile, masks), vector));
    code.kmovw(Mask(vector + 1), Mem(kPlace, 2 * (mask - 1)));
  }
  const size_t start = code.size();
  write_column(at, mask > 0, code);
  code.add(kColumns, sizeof(LoopColumn));
  code.sub(kCount, 1);
  code.jnz(start);
  code.land_far(none);
}

// Results that are below `low` become that, or those above `high`.
void write_limit(const TileRegisters& at, bool is_low, Assembler& code) {
  code.mov(kPlace, Mem(kTile, offsetof(LoopTile, epilogue)));
  code.vbroadcastss(kLimit, Mem(kPlace, is_low ? kLowAt : kHighAt));
  for (int64_t i = 0; i < at.rows * at.vectors; ++i) {
    if (is_low) {
      code.vmaxps(Zmm(i), kLimit, Zmm(i));
    } else {
      code.vminps(Zmm(i), kLimit, Zmm(i));
    }
  }
}

// kPlace = a pointer of the tile's vector, at the tile's rows.
void write_place(size_t member, int64_t vector, size_t rows_member, Assembler& code) {
  code.mov(kPlace, tile_pointer(member, vector));
  code.mov(kMore, Mem(kRows, static_cast<int64_t>(rows_member)));
  code.add(kPlace, kMore);
}

void write_finish(const TileRegisters& at, const LoopFinish& finish, Assembler& code) {
  for (int64_t vector = 0; vector < at.vectors && !(finish.first_panel && finish.direct); ++vector) {
    write_place(offsetof(LoopTile, sums), vector, offsetof(LoopRows, sums), code);
    for (int64_t row = 0; row < at.rows; ++row) {
      const Zmm sum = at.sum(row, vector);
      const Mem before(kPlace, row * kVectorBytes);
      if (!finish.first_panel) code.vaddps(sum, sum, before);
      if (!finish.direct) code.vmovups(before, sum);
    }
  }
  if (!finish.direct) return;
  code.mov(kMore, Mem(kRows, offsetof(LoopRows, bias)));
  for (int64_t vector = 0; vector < at.vectors; ++vector)
    for (int64_t row = 0; row < at.rows; ++row)
      code.vaddps_bcst(at.sum(row, vector), at.sum(row, vector), Mem(kMore, row * 4));
  const auto load_mask = [&](int64_t vector) {
    code.mov(kPlace, tile_pointer(offsetof(LoopTile, masks), vector));
    code.kmovw(kStored, Mem(kPlace, 2 * kMostMasks));
  };
  for (int64_t vector = 0; vector < at.vectors && finish.epilogue_flags & kAddsResidual; ++vector) {
    load_mask(vector);
    write_place(offsetof(LoopTile, residual), vector, offsetof(LoopRows, residual), code);
    for (int64_t row = 0; row < at.rows; ++row)
      code.vaddps(at.sum(row, vector), kStored, at.sum(row, vector), Mem(kPlace, row * finish.residual_row_floats * 4));
  }
  if (finish.epilogue_flags & kHasLow) write_limit(at, true, code);
  if (finish.epilogue_flags & kHasHigh) write_limit(at, false, code);
  for (int64_t vector = 0; vector < at.vectors; ++vector) {
    load_mask(vector);
    write_place(offsetof(LoopTile, dest), vector, offsetof(LoopRows, dest), code);
    for (int64_t row = 0; row < at.rows; ++row)
      code.vmovups(Mem(kPlace, row * finish.row_floats * 4), kStored, at.sum(row, vector));
  }
}

}  // namespace

// Strips of both dimensions, each with what its vectors reach; the distinct ones, where they are few.
std::vector<uint64_t> find_reaches(const Lattice& lattice, const ForwardPlan& plan, LoopTables& tables) {
  constexpr size_t kMostReaches = 32;
  tables.strip_vectors = plan.vectors(plan.strip[0], plan.strip[1]);
  tables.reaches = 1;
  tables.reach_of.assign(static_cast<size_t>(plan.strips[0] * plan.strips[1] * tables.strip_vectors), 0);
  std::vector<uint64_t> found;
  if (static_cast<int64_t>(lattice.taps.size()) > kMostReachTaps || lattice.taps.size() == 1) return {~uint64_t{0}};
  for (int64_t strip = 0; strip < plan.strips[0] * plan.strips[1]; ++strip) {
    const int64_t first[2] = {strip / plan.strips[1] * plan.strip[0], strip % plan.strips[1] * plan.strip[1]};
    const int64_t size[2] = {
        std::min(plan.strip[0], lattice.size[0] - first[0]), std::min(plan.strip[1], lattice.size[1] - first[1])};
    const std::vector<uint64_t> reaches = vector_reaches(lattice, plan, first, size);
    for (size_t vector = 0; vector < reaches.size(); ++vector) {
      const size_t reach = static_cast<size_t>(std::find(found.begin(), found.end(), reaches[vector]) - found.begin());
      if (reach == found.size()) found.push_back(reaches[vector]);
      if (found.size() > kMostReaches) {
        std::fill(tables.reach_of.begin(), tables.reach_of.end(), uint8_t{0});
        return {~uint64_t{0}};
      }
      tables.reach_of[static_cast<size_t>(strip * tables.strip_vectors) + vector] = static_cast<uint8_t>(reach);
    }
  }
  tables.reaches = static_cast<int64_t>(found.size());
  return found;
}

bool LoopList::is_empty() const {
  return std::all_of(std::begin(counts), std::end(counts), [](int32_t count) { return count == 0; });
}

void write_loop_kernel(int64_t rows, int64_t vectors, int64_t masks, const LoopFinish& finish, Assembler& code) {
  const TileRegisters at = {rows, vectors};
  code.push(kCount);
  for (int64_t vector = kUnsaved; vector < vectors; ++vector) code.push(kVectors[vector]);
  for (int64_t vector = 0; vector < vectors; ++vector)
    code.mov(kVectors[vector], tile_pointer(offsetof(LoopTile, vectors), vector));
  for (int64_t i = 0; i < rows * vectors; ++i) code.vpxord(Zmm(i), Zmm(i), Zmm(i));
  for (int64_t mask = 0; mask <= masks; ++mask) write_loop(at, mask, code);
  write_finish(at, finish, code);
  for (int64_t vector = vectors - 1; vector >= kUnsaved; --vector) code.pop(kVectors[vector]);
  code.pop(kCount);
  code.vzeroupper();
  code.ret();
}

bool make_loop_tables(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, LoopTables& tables,
    std::vector<int32_t>& order) {
  const std::vector<Column> columns = columns_of(lattice, plan, plan.panel_channels);
  const std::vector<uint64_t> reaches = find_reaches(lattice, plan, tables);
  const int64_t rows = lattice.dest_channels, taps = static_cast<int64_t>(lattice.taps.size());
  const int32_t* const crow = pattern.crow_indices;
  tables.blocks = divide_up(rows, plan.block_rows);
  tables.panel_residues = plan.panels * lattice.residues();
  tables.lists.resize(static_cast<size_t>(lattice.groups * tables.blocks * tables.panel_residues * tables.reaches));
  LoopList* list = tables.lists.data();
  std::vector<int32_t> sorted;  // places in the block's rows
  for (int64_t group_block = 0; group_block < lattice.groups * tables.blocks; ++group_block) {
    const int64_t first_row = group_block / tables.blocks * rows + group_block % tables.blocks * plan.block_rows;
    const int64_t block_rows = std::min(plan.block_rows, (group_block / tables.blocks + 1) * rows - first_row);
    const int64_t base = crow[first_row], count = crow[first_row + 1] - base;
    const auto column_at = [&](int64_t place) -> const Column& {
      return columns[static_cast<size_t>(pattern.col_indices[base + place])];
    };
    int64_t before = -1;
    for (int64_t place = 0; place < count; ++place) {
      const int64_t column = pattern.col_indices[base + place];
      if (column < before || column < 0 || column >= static_cast<int64_t>(columns.size())) return false;
      before = column;
    }
    for (int64_t row = 1; row < block_rows; ++row)
      if (crow[first_row + row] - base != row * count || crow[first_row + row + 1] - base != (row + 1) * count)
        return false;
    sorted.resize(static_cast<size_t>(count));
    for (int64_t place = 0; place < count; ++place) sorted[static_cast<size_t>(place)] = static_cast<int32_t>(place);
    std::stable_sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) {
      const Column &one = column_at(a), &other = column_at(b);
      return one.panel_residue != other.panel_residue ? one.panel_residue < other.panel_residue : one.mask < other.mask;
    });
    tables.of_blocks.push_back({static_cast<int32_t>(base), static_cast<int32_t>(count)});
    const int64_t parts = tile_parts(block_rows, plan.tile_vectors);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t row = 0, part = 0; row < block_rows; ++row) {
        if (row >= block_rows * (part + 1) / parts) ++part;
        const int64_t begin = block_rows * part / parts, end = block_rows * (part + 1) / parts;
        const int64_t nonzero = base + row * count + sorted[static_cast<size_t>(i)];
        if (pattern.col_indices[nonzero] != pattern.col_indices[base + sorted[static_cast<size_t>(i)]]) return false;
        const int32_t source =
            pattern.permutation != nullptr ? pattern.permutation[nonzero] : static_cast<int32_t>(nonzero);
        if (source < 0 || source >= pattern.nonzeros) return false;
        order[static_cast<size_t>(base + begin * count + i * (end - begin) + row - begin)] = source;
      }
    int64_t begin = 0;
    for (int64_t panel_residue = 0; panel_residue < tables.panel_residues; ++panel_residue) {
      int64_t end = begin;
      while (end < count && column_at(sorted[static_cast<size_t>(end)]).panel_residue == panel_residue) ++end;
      const int64_t panel_bytes =
          panel_residue / lattice.residues() * plan.panel_channels * plan.channel_floats * int64_t{4};
      for (const uint64_t reach : reaches) {
        list->first = static_cast<int64_t>(tables.columns.size());
        for (int64_t i = begin; i < end; ++i) {
          const int64_t place = sorted[static_cast<size_t>(i)];
          const int64_t tap = pattern.col_indices[base + place] % taps;
          if (reach != ~uint64_t{0} && (reach >> tap & 1) == 0) continue;
          const Column& column = column_at(place);
          ++list->counts[column.mask];
          tables.columns.push_back(
              {static_cast<int32_t>(column.displacement + panel_bytes), static_cast<int32_t>(i * 4)});
        }
        ++list;
      }
      begin = end;
    }
  }
  return true;
}

}  // namespace sparsekernels::jit
