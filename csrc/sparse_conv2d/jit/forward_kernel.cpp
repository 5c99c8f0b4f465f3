// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/forward_kernel.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "base/jit/assembler.h"
#include "sparse_conv2d/epilogue.h"
#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels::jit {
namespace {

using x86::Gpr;
using x86::Mask;
using x86::Mem;
using x86::Zmm;

constexpr Gpr kVector = x86::rdi, kValues = x86::rsi, kSums = x86::rdx, kMasks = x86::rcx;  // see ForwardKernel
constexpr Gpr kDest = x86::r8, kBias = x86::r9, kResidual = x86::r10;
constexpr Zmm kVectorRegister{31};
constexpr Mask kStored{kMostMasks};  // lanes that are stored to the tensor

// Stores a slice's sums, or adds them to those of the panels before.
struct Finish {
  int64_t first_row, rows;
  bool first_panel;
  bool direct;         // to the tensor
  int64_t row_floats;  // of the tensor
  int epilogue_flags;  // of the packed epilogue, where direct
  int64_t residual_row_floats;
};

// Results that are below `low` become that, or those above `high`.
void write_limit(const Finish& finish, bool is_low, Assembler& code) {
  const int64_t head = (is_low ? kLowAt : kHighAt) - finish.first_row * 4;
  code.vpxord(kVectorRegister, kVectorRegister, kVectorRegister);
  code.vaddps_bcst(kVectorRegister, kVectorRegister, Mem(kBias, head));
  for (int row = 0; row < finish.rows; ++row) {
    const Zmm sum(row);
    if (is_low) {
      code.vmaxps(sum, kVectorRegister, sum);
    } else {
      code.vminps(sum, kVectorRegister, sum);
    }
  }
}

// Of mask k1 to k7 of a vector, see kMaskStride. Always with a displacement, so that each has the same length.
Mem mask_at(int mask) {
  return Mem(kMasks, 2 * (mask - 1), 1);
}

void write_finish(const Finish& finish, uint32_t begun, Assembler& code) {
  if (finish.direct) code.kmovw(kStored, Mem(kMasks, 2 * kMostMasks));
  for (int row = 0; row < finish.rows; ++row) {
    const Zmm sum(row);
    const Mem before(kSums, row * kVectorBytes);
    const bool has_sum = begun >> row & 1;
    if (!has_sum && !finish.first_panel && !finish.direct) continue;
    if (!has_sum && finish.first_panel) code.vpxord(sum, sum, sum);
    if (!has_sum && !finish.first_panel) code.vmovups(sum, before);
    if (has_sum && !finish.first_panel) code.vaddps(sum, sum, before);
    if (!finish.direct) code.vmovups(before, sum);
  }
  if (!finish.direct) return;
  if (finish.epilogue_flags & kAddsResidual) {
    code.mov(kResidual, Mem(kBias, kResidualAt - finish.first_row * 4, 4));
    code.add(kResidual, kDest);
  }
  for (int row = 0; row < finish.rows; ++row) {
    const Zmm sum(row);
    code.vaddps_bcst(sum, sum, Mem(kBias, row * 4));
    if (finish.epilogue_flags & kAddsResidual)
      code.vaddps(sum, kStored, sum, Mem(kResidual, row * finish.residual_row_floats * 4));
  }
  if (finish.epilogue_flags & kHasLow) write_limit(finish, true, code);
  if (finish.epilogue_flags & kHasHigh) write_limit(finish, false, code);
  for (int row = 0; row < finish.rows; ++row) code.vmovups(Mem(kDest, row * finish.row_floats * 4), kStored, Zmm(row));
}

// The kernel of nonzeros [begin, end).
void write_forward_kernel(
    const std::vector<Column>& columns, const Nonzero* begin, const Nonzero* end, const Finish& finish,
    Assembler& code) {
  uint32_t used = 0;  // masks
  for (const Nonzero* nonzero = begin; nonzero < end; ++nonzero)
    used |= 1u << columns[static_cast<size_t>(nonzero->column)].mask;
  for (int mask = 1; mask <= kMostMasks; ++mask)
    if (used >> mask & 1) code.kmovw(Mask(mask), mask_at(mask));
  uint32_t begun = 0;  // rows that have a product
  int32_t loaded = -1;
  for (const Nonzero* nonzero = begin; nonzero < end; ++nonzero) {
    if (nonzero->column != loaded) {
      loaded = nonzero->column;
      const Column& column = columns[static_cast<size_t>(loaded)];
      code.vmovups_z(kVectorRegister, Mask(column.mask), Mem(kVector, column.displacement));
    }
    const int64_t at = (nonzero - begin) % (2 * kValueBias);
    if (at == 0 && nonzero > begin) code.add(kValues, 2 * kValueBias * 4);
    const Zmm sum(nonzero->row);
    const Mem value(kValues, (at - kValueBias) * 4);
    if (begun >> nonzero->row & 1) {
      code.vfmadd231ps_bcst(sum, kVectorRegister, value);
    } else {
      code.vmulps_bcst(sum, kVectorRegister, value);
      begun |= 1u << nonzero->row;
    }
  }
  write_finish(finish, begun, code);
  code.vzeroupper();
  code.ret();
}

[[noreturn]] void throw_pattern() {
  throw std::invalid_argument(
      "sparse_conv2d: expected col_indices that ascend and permutation, both within their range, got others");
}

}  // namespace

std::shared_ptr<const ForwardKernels> ForwardKernels::make_loops(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern,
    const std::shared_ptr<ForwardKernels>& result) {
  if (!make_loop_tables(lattice, plan, pattern, result->loops_, result->order_)) throw_pattern();
  // Blocks have all of their rows, but the last of a group.
  const int64_t last_rows = lattice.dest_channels - (result->loops_.blocks - 1) * plan.block_rows;
  std::vector<Assembler> codes(1);
  Assembler& code = codes[0];
  std::vector<std::pair<size_t, size_t>> places;  // of a kernel, and in the code
  for (const bool first_panel : {true, false})
    for (const bool direct : {true, false})
      for (int64_t vectors = 1; vectors <= plan.tile_vectors; ++vectors)
        for (const int64_t block_rows : {plan.block_rows, last_rows}) {
          if (direct ? !plan.direct : plan.panels == 1 && plan.direct) continue;
          const int64_t parts = tile_parts(block_rows, plan.tile_vectors);
          for (int64_t part = 0; part < parts; ++part) {
            const int64_t rows = block_rows * (part + 1) / parts - block_rows * part / parts;
            const size_t index = loop_index(rows, vectors, first_panel, direct);
            const bool is_there =
                std::any_of(places.begin(), places.end(), [&](const auto& place) { return place.first == index; });
            if (is_there) continue;
            code.align();
            places.push_back({index, code.size()});
            const LoopFinish finish = {
                .first_panel = first_panel,
                .direct = direct,
                .row_floats = lattice.dest.stride[1],
                .residual_row_floats = plan.residual_channel,
                .epilogue_flags = plan.epilogue_flags};
            write_loop_kernel(rows, vectors, static_cast<int64_t>(plan.masks.size()), finish, code);
          }
        }
  result->code_ = Executable::make(codes);
  if (result->code_ == nullptr) return nullptr;
  result->loop_kernels_.resize(loop_index(most_tile_rows(1) + 1, 1, false, false));
  for (const auto& [index, place] : places) {
    const uint8_t* const entry = result->code_->section(0) + place;
    std::memcpy(&result->loop_kernels_[index], &entry, sizeof entry);
  }
  return result;
}

std::shared_ptr<const ForwardKernels> ForwardKernels::make_scatter(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern,
    const std::shared_ptr<ForwardKernels>& result) {
  result->scatter_.reach_taps = find_reaches(lattice, plan, result->loops_);
  if (!make_scatter_tables(lattice, plan, pattern, result->scatter_, result->order_)) throw_pattern();
  std::vector<Assembler> codes(1);
  Assembler& code = codes[0];
  const size_t kernels = scatter_index(kMostScatterChannels, kMostScatterTileVectors, true) + 1;
  std::vector<size_t> places(kernels);
  std::vector<bool> is_there(kernels);
  for (const ScatterRun& run : result->scatter_.runs)
    for (int64_t vectors = 1; vectors <= plan.tile_vectors; ++vectors) {
      const size_t index = scatter_index(run.channels, vectors, run.mask >= 0);
      if (is_there[index]) continue;
      is_there[index] = true;
      code.align();
      places[index] = code.size();
      write_scatter_kernel(run.channels, vectors, run.mask >= 0, plan.channel_floats * 4, code);
    }
  if (code.size() == 0) code.ret();
  result->code_ = Executable::make(codes);
  if (result->code_ == nullptr) return nullptr;
  result->scatter_kernels_.resize(kernels);
  for (size_t index = 0; index < kernels; ++index) {
    const uint8_t* const entry = result->code_->section(0) + places[index];
    if (is_there[index]) std::memcpy(&result->scatter_kernels_[index], &entry, sizeof entry);
  }
  return result;
}

std::shared_ptr<const ForwardKernels> ForwardKernels::make(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::shared_ptr<ForwardKernels> result(new ForwardKernels);
  result->slices_ = plan.slices;
  result->panels_ = plan.panels;
  result->residues_ = lattice.residues();
  result->masks_ = vector_masks(plan, plan.strip[0]);
  if (plan.direct) {
    const size_t vectors = static_cast<size_t>(plan.vectors(plan.strip[0], plan.strip[1]));
    result->masks_.resize(vectors * kMaskStride);
    for (size_t vector = 0; vector < vectors; ++vector) result->masks_[vector * kMaskStride + kMostMasks] = 0xffff;
  }
  result->order_.resize(static_cast<size_t>(pattern.nonzeros));
  if (plan.block_rows != 0) return make_loops(lattice, plan, pattern, result);
  if (plan.scatter_channels != 0) return make_scatter(lattice, plan, pattern, result);
  const std::vector<Column> columns = columns_of(lattice, plan, plan.panel_channels);
  const int64_t rows = lattice.dest_channels;
  const int64_t panel_residues = plan.panels * result->residues_, group_slices = lattice.groups * plan.slices;
  struct Place {
    size_t offset;
    int32_t values, bytes;
    bool is_there;
  };
  std::vector<Place> places(static_cast<size_t>(group_slices * panel_residues));
  std::vector<Assembler> codes(static_cast<size_t>(group_slices));
  std::atomic<bool> sound{true};
  const auto compile = [&](int64_t group_slice) {
    const int64_t group = group_slice / plan.slices, slice = group_slice % plan.slices;
    const int64_t first = group * rows + plan.first_row(slice, rows);
    const int64_t last = group * rows + plan.first_row(slice + 1, rows);
    std::vector<Nonzero> sorted;
    if (!sort_nonzeros(columns, pattern, first, last, sorted)) {
      sound = false;
      return;
    }
    const int32_t base = pattern.crow_indices[first];
    for (size_t i = 0; i < sorted.size(); ++i) result->order_[static_cast<size_t>(base) + i] = sorted[i].source;
    Assembler& code = codes[static_cast<size_t>(group_slice)];
    const Nonzero* nonzero = sorted.data();
    const Nonzero* const end = nonzero + sorted.size();
    for (int64_t panel_residue = 0; panel_residue < panel_residues; ++panel_residue) {
      const Nonzero* const begin = nonzero;
      while (nonzero < end && columns[static_cast<size_t>(nonzero->column)].panel_residue == panel_residue) ++nonzero;
      const bool first_panel = panel_residue < result->residues_,
                 last_panel = panel_residue + result->residues_ >= panel_residues;
      const Finish finish = {
          .first_row = first,
          .rows = last - first,
          .first_panel = first_panel,
          .direct = plan.direct && last_panel,
          .row_floats = lattice.dest.stride[1],
          .epilogue_flags = plan.epilogue_flags,
          .residual_row_floats = plan.residual_channel};
      if (begin == nonzero && !first_panel && !finish.direct) continue;
      code.align();
      const size_t start = code.size();
      write_forward_kernel(columns, begin, nonzero, finish, code);
      places[static_cast<size_t>(group_slice * panel_residues + panel_residue)] = {
          .offset = start,
          .values = base + static_cast<int32_t>(begin - sorted.data()),
          .bytes = static_cast<int32_t>(code.size() - start),
          .is_there = true};
    }
  };
  threads.run(group_slices, [&](int64_t begin, int64_t end) {
    for (int64_t group_slice = begin; group_slice < end; ++group_slice) compile(group_slice);
  });
  if (!sound) throw_pattern();
  result->code_ = Executable::make(codes);
  if (result->code_ == nullptr) return nullptr;
  result->entries_.resize(places.size());
  for (size_t i = 0; i < places.size(); ++i) {
    if (!places[i].is_there) continue;
    const uint8_t* const entry = result->code_->section(i / static_cast<size_t>(panel_residues)) + places[i].offset;
    std::memcpy(&result->entries_[i].kernel, &entry, sizeof entry);
    result->entries_[i].values = places[i].values;
    result->entries_[i].bytes = places[i].bytes;
  }
  return result;
}

}  // namespace sparsekernels::jit
