// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/weight_gradient_kernel.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <stdexcept>

#include "base/jit/assembler.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels::jit {
namespace {

using x86::Gpr;
using x86::Mask;
using x86::Mem;
using x86::Zmm;

constexpr Gpr kPlanes = x86::rdi, kGrads = x86::rsi, kSums = x86::rdx, kMasks = x86::rcx;  // see WeightGradientKernel
constexpr Gpr kVectors = x86::r8, kPrefetch = x86::r9;
constexpr Gpr kCounter = x86::rax, kFirstPlanes = x86::r9, kFirstGrads = x86::r10, kFirstMasks = x86::r11;
constexpr Zmm kVectorRegister{31};
constexpr int64_t kSetNonzeros = 31;  // nonzeros

// Adds up the lanes of kLanes vectors: at the end lane i of the first is the sum of vector order[i]. Each step adds the
// two halves of what is left of two vectors; a blend and one shuffle bring them side by side, where masks allow it.
void write_lane_sums(Assembler& code, int first, Zmm spare) {
  constexpr Mask kUpperHalves{1}, kUpperPairs{2};
  const auto at = [&](int i) { return Zmm(first + i); };
  for (int i = 0; i < kLanes; i += 2) {
    code.vblendmps(spare, kUpperHalves, at(i), at(i + 1));
    code.vshuff32x4(at(i), at(i), at(i + 1), 0x4e);
    code.vaddps(at(i), at(i), spare);
  }
  for (int i = 0; i < kLanes; i += 4) {
    code.vblendmps(spare, kUpperPairs, at(i), at(i + 2));
    code.vshufps(at(i), at(i), at(i + 2), 0x4e);
    code.vaddps(at(i), at(i), spare);
  }
  for (int i = 0; i < kLanes; i += 8) {
    code.vshuff32x4(spare, at(i), at(i + 4), 0x88);
    code.vshuff32x4(at(i), at(i), at(i + 4), 0xdd);
    code.vaddps(at(i), at(i), spare);
  }
  code.vshufps(spare, at(0), at(8), 0x88);
  code.vshufps(at(0), at(0), at(8), 0xdd);
  code.vaddps(at(0), at(0), spare);
}

// The lane in which that leaves a vector's sum.
int64_t lane_of(int64_t vector) {
  return (vector & 1) << 2 | (vector >> 1 & 1) | (vector >> 2 & 1) << 3 | (vector >> 3 & 1) << 1;
}

// Nonzeros [begin, end) of a slice's order, whose sums are in registers together. Of a tile, some rows in each of some
// columns: column by column, so that the vectors of gradients are loaded once for all columns.
struct RegisterSet {
  size_t begin, end;
  int64_t tile_rows;  // 0: any nonzeros
};

int64_t slot_of_set(int64_t set, int64_t within) {
  return set * kSetSlots + within / kLanes * kLanes + lane_of(within % kLanes);
}

// Rows of a tile, in even parts of those that are alike, and columns: their sums, a vector of gradients for each row,
// and one of x are in registers.
int64_t tile_rows_of(int64_t alike) {
  constexpr int64_t kMostRows = 6;
  return evened(alike, kMostRows);
}
int64_t tile_columns_of(int64_t rows) {
  constexpr int64_t kColumns[] = {0, 15, 12, 8, 6, 5, 4};
  return kColumns[rows];
}

// Orders a slice's nonzeros and cuts them into register sets; sorted by columns, or by tiles where rows are alike.
std::vector<RegisterSet> cut_into_sets(
    const WeightGradientPlan& plan, int64_t first_row_of_group, std::vector<Nonzero>& sorted) {
  std::vector<RegisterSet> sets;
  if (plan.rows_alike == 1) {
    for (size_t begin = 0; begin < sorted.size(); begin += kSetNonzeros)
      sets.push_back({begin, std::min(sorted.size(), begin + static_cast<size_t>(kSetNonzeros)), 0});
    return sets;
  }
  const auto tile_of = [&](const Nonzero& nonzero) {  // of rows
    const int64_t row = first_row_of_group + nonzero.row, rows = tile_rows_of(plan.rows_alike);
    return row / plan.rows_alike * divide_up(plan.rows_alike, rows) + row % plan.rows_alike / rows;
  };
  std::stable_sort(
      sorted.begin(), sorted.end(), [&](const Nonzero& a, const Nonzero& b) { return tile_of(a) < tile_of(b); });
  for (size_t begin = 0; begin < sorted.size();) {
    size_t end = begin, column_end = begin;
    while (end < sorted.size() && tile_of(sorted[end]) == tile_of(sorted[begin])) ++end;
    while (column_end < end && sorted[column_end].column == sorted[begin].column) ++column_end;
    const size_t rows = column_end - begin, columns = (end - begin) / rows;
    const size_t count =
        static_cast<size_t>(divide_up(static_cast<int64_t>(columns), tile_columns_of(static_cast<int64_t>(rows))));
    for (size_t set = 0; set < count; ++set)
      sets.push_back(
          {begin + columns * set / count * rows, begin + columns * (set + 1) / count * rows,
           static_cast<int64_t>(rows)});
    begin = end;
  }
  return sets;
}

void clear(Assembler& code, Zmm one) {
  code.vpxord(one, one, one);
}

void begin_set(bool masked, Assembler& code) {
  for (int sum = 0; sum < kSetNonzeros; ++sum) clear(code, Zmm(sum));
  code.mov(kPlanes, kFirstPlanes);
  code.mov(kGrads, kFirstGrads);
  if (masked) code.mov(kMasks, kFirstMasks);
  code.mov(kCounter, kVectors);
}

void prefetch_next(WeightGradientPrefetch* prefetch) noexcept {
  prefetch->source.prefetch(prefetch->source_lines);
  prefetch->grads.prefetch(prefetch->grad_lines);
}

uint64_t address_of(void (*function)(WeightGradientPrefetch*) noexcept) {
  uint64_t address = 0;
  static_assert(sizeof function <= sizeof address, "an address");
  std::memcpy(&address, &function, sizeof function);
  return address;
}

// What every register set ends with, and the next one begins with: a function that they call.
void write_turn(bool masked, Assembler& code) {
  // Every run goes through the code of all slices: it comes up early enough from wherever it is.
  constexpr int kLinesOfSet = 6;  // a nonzero is 12 bytes of code
  constexpr Gpr kReturn = x86::rax;
  code.mov(kReturn, Mem(x86::rsp, 0));
  for (int i = 0; i < kLinesOfSet; ++i)
    code.prefetcht1(Mem(kReturn, cost::weight_gradient::kCodePrefetchDistance + kLineBytes * i));
  const auto set_mask = [&](int mask, uint32_t lanes) {
    code.mov32(x86::rax, lanes);
    code.kmovw(Mask(mask), x86::rax);
  };
  set_mask(1, 0xff00);
  set_mask(2, 0xcccc);
  const auto add_to_memory = [&](int sums, int64_t bytes) {
    code.vaddps(Zmm(sums), Zmm(sums), Mem(kSums, bytes));
    code.vmovups(Mem(kSums, bytes), Zmm(sums));
  };
  write_lane_sums(code, 0, kVectorRegister);
  add_to_memory(0, 0);
  clear(code, kVectorRegister);
  write_lane_sums(code, kLanes, Zmm(1));
  add_to_memory(kLanes, kVectorBytes);
  code.add(kSums, kSetSlots * 4);
  constexpr Gpr kArgument = x86::rdi;
  code.mov(kArgument, Mem(x86::rsp, 8));  // above the return address
  code.test(kArgument, kArgument);
  const size_t skip = code.jz();
  // Five registers, the return address and `prefetch`: with the one of the caller the stack is aligned to 16 bytes.
  constexpr Gpr kKept[] = {kSums, kVectors, kFirstPlanes, kFirstGrads, kFirstMasks};
  for (int i = 0; i < 5; ++i) code.push(kKept[i]);
  code.mov(x86::rax, address_of(&prefetch_next));
  code.call(x86::rax);
  for (int i = 4; i >= 0; --i) code.pop(kKept[i]);
  code.land(skip);
  begin_set(masked, code);
  code.ret();
}

// The multiply-adds of a register set with a vector.
void write_products(
    const std::vector<Column>& columns, const std::vector<Nonzero>& nonzeros, const RegisterSet& set,
    int64_t grad_channel_floats, Assembler& code) {
  const auto grad_of = [&](size_t i) { return Mem(kGrads, nonzeros[i].row * grad_channel_floats * 4); };
  const int64_t count = static_cast<int64_t>(set.end - set.begin);
  for (int64_t row = 0; row < set.tile_rows; ++row)
    code.vmovups(Zmm(count + row), grad_of(set.begin + static_cast<size_t>(row)));
  for (size_t i = set.begin; i < set.end; ++i) {
    const Column& column = columns[static_cast<size_t>(nonzeros[i].column)];
    if (i == set.begin || nonzeros[i].column != nonzeros[i - 1].column)
      code.vmovups_z(kVectorRegister, Mask(column.mask), Mem(kPlanes, column.displacement));
    const int64_t within = static_cast<int64_t>(i - set.begin);
    if (set.tile_rows == 0) {
      code.vfmadd231ps(Zmm(within), kVectorRegister, grad_of(i));
    } else {
      code.vfmadd231ps(Zmm(within), kVectorRegister, Zmm(count + within % set.tile_rows));
    }
  }
}

// Emits the kernel of one slice; returns the offset of its entry point.
size_t write_weight_gradient_kernel(
    const std::vector<Column>& columns, const std::vector<Nonzero>& nonzeros, const std::vector<RegisterSet>& sets,
    const WeightGradientPlan& plan, Assembler& code) {
  const bool masked = !plan.masks.empty();
  write_turn(masked, code);
  code.align();
  const size_t entry = code.size();
  code.push(kPrefetch);
  code.mov(kFirstPlanes, kPlanes);
  code.mov(kFirstGrads, kGrads);
  if (masked) code.mov(kFirstMasks, kMasks);
  begin_set(masked, code);
  for (const RegisterSet& set : sets) {
    const size_t start = code.size();
    uint32_t used = 0;
    for (size_t i = set.begin; i < set.end; ++i) used |= 1u << columns[static_cast<size_t>(nonzeros[i].column)].mask;
    for (int mask = 1; mask <= kMostMasks; ++mask)
      if (used >> mask & 1) code.kmovw(Mask(mask), Mem(kMasks, 2 * (mask - 1), 1));
    write_products(columns, nonzeros, set, plan.grad_channel_floats, code);
    code.add(kPlanes, plan.vector_stride * 4);
    code.add(kGrads, plan.grad_vector_stride * 4);
    if (masked) code.add(kMasks, kMaskStride * 2);
    code.sub(kCounter, 1);
    code.jnz(start);
    code.call(0);
  }
  code.pop(kPrefetch);
  code.vzeroupper();
  code.ret();
  return entry;
}

// Sums of a register set of `row_lanes` lanes: one or two vectors for each column.
int64_t most_set_columns(int64_t row_lanes) {
  return row_lanes == kLanes ? 30 : 14;
}

// The kernel of a slice whose rows are lanes. A column's value at a position is multiplied with the position's
// gradients: its place is a displacement, as patterns are code here.
void write_row_gradient_kernel(const std::vector<int32_t>& displacements, int64_t row_lanes, Assembler& code) {
  constexpr Gpr kRun = x86::rcx, kFirst = x86::r8, kFirstGrad = x86::r9;
  constexpr Gpr kColumns = x86::rax, kRows = x86::r10, kMicrobatches = x86::r11;
  const int64_t vectors = row_lanes / kLanes, count = static_cast<int64_t>(displacements.size());
  const auto member = [&](size_t at) { return Mem(kRun, static_cast<int64_t>(at)); };
  code.mov(kFirst, kPlanes);
  code.mov(kFirstGrad, kGrads);
  const int64_t sets = divide_up(count, most_set_columns(row_lanes));
  for (int64_t set = 0; set < sets; ++set) {
    const int64_t first = count * set / sets, columns = count * (set + 1) / sets - first;
    const auto sum = [&](int64_t column, int64_t vector) { return Zmm(column * vectors + vector); };
    const auto grad = [&](int64_t vector) { return Zmm(columns * vectors + vector); };
    for (int64_t i = 0; i < columns * vectors; ++i) clear(code, Zmm(i));
    code.mov(kPlanes, kFirst);
    code.mov(kGrads, kFirstGrad);
    code.mov(kMicrobatches, member(offsetof(RowGradientRun, microbatches)));
    const size_t microbatch = code.size();
    code.mov(kRows, member(offsetof(RowGradientRun, rows)));
    const size_t row = code.size();
    code.mov(kColumns, member(offsetof(RowGradientRun, columns)));
    const size_t position = code.size();
    for (int64_t vector = 0; vector < vectors; ++vector) code.vmovups(grad(vector), Mem(kGrads, vector * kVectorBytes));
    for (int64_t column = 0; column < columns; ++column) {
      const Mem value(kPlanes, displacements[static_cast<size_t>(first + column)]);
      if (vectors == 1) {
        code.vfmadd231ps_bcst(sum(column, 0), grad(0), value);
        continue;
      }
      const Zmm broadcast(columns * vectors + vectors + column % 2);
      code.vbroadcastss(broadcast, value);
      for (int64_t vector = 0; vector < vectors; ++vector)
        code.vfmadd231ps(sum(column, vector), grad(vector), broadcast);
    }
    code.add(kPlanes, int64_t{sizeof(float)});
    code.add(kGrads, vectors * kVectorBytes);
    code.sub(kColumns, 1);
    code.jnz(position);
    code.add(kPlanes, member(offsetof(RowGradientRun, row_step)));
    code.sub(kRows, 1);
    code.jnz(row);
    code.add(kPlanes, member(offsetof(RowGradientRun, microbatch_step)));
    code.sub(kMicrobatches, 1);
    code.jnz(microbatch);
    for (int64_t i = 0; i < columns * vectors; ++i) {
      code.vaddps(Zmm(i), Zmm(i), Mem(kSums, i * kVectorBytes));
      code.vmovups(Mem(kSums, i * kVectorBytes), Zmm(i));
    }
    code.add(kSums, columns * vectors * kVectorBytes);
  }
  code.vzeroupper();
  code.ret();
}

// Of a slice's columns, where they lie; and of its nonzeros, from slot `first` on, the slots. False where an index is
// out of its range, or rows are not alike.
bool find_row_slots(
    const std::vector<Column>& columns, const SparsePattern& pattern, int64_t first_row, int64_t last_row,
    int64_t row_lanes, int64_t first, std::vector<int32_t>& displacements, std::vector<int32_t>& slot_of) {
  std::vector<Nonzero> sorted;
  if (!sort_nonzeros(columns, pattern, first_row, last_row, sorted)) return false;
  const int64_t rows = last_row - first_row;
  for (size_t i = 0; i < sorted.size(); ++i) {
    const int64_t column = static_cast<int64_t>(i) / rows;
    if (sorted[i].row == 0) displacements.push_back(columns[static_cast<size_t>(sorted[i].column)].displacement);
    if (sorted[i].row != static_cast<int64_t>(i) % rows) return false;
    slot_of[static_cast<size_t>(sorted[i].source)] = static_cast<int32_t>(first + column * row_lanes + sorted[i].row);
  }
  return static_cast<int64_t>(displacements.size()) * rows == static_cast<int64_t>(sorted.size());
}

[[noreturn]] void throw_columns() {
  throw std::invalid_argument("sparse_conv2d: expected col_indices that ascend within their range, got others");
}

}  // namespace

std::shared_ptr<const WeightGradientKernels> WeightGradientKernels::make(
    const Lattice& lattice, const WeightGradientPlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::shared_ptr<WeightGradientKernels> result(new WeightGradientKernels);
  result->slices_ = plan.slices;
  result->slot_of_.resize(static_cast<size_t>(pattern.nonzeros));
  result->masks_[0] = vector_masks(plan, plan.strip[0]);
  result->masks_[1] = vector_masks(plan, lattice.size[0] - (plan.strips[0] - 1) * plan.strip[0]);
  const std::vector<Column> columns = columns_of(lattice, plan, lattice.source_channels);
  const int64_t rows = lattice.dest_channels, group_slices = lattice.groups * plan.slices;
  const auto row_at = [&](int64_t group_slice) {
    return group_slice / plan.slices * rows + plan.first_row(group_slice % plan.slices, rows);
  };
  const auto last_row_at = [&](int64_t group_slice) {
    return group_slice / plan.slices * rows + plan.first_row(group_slice % plan.slices + 1, rows);
  };
  // Slices of lanes are known by their rows; the others are sorted and cut into sets first.
  std::vector<std::vector<Nonzero>> sorted(static_cast<size_t>(group_slices));
  std::vector<std::vector<RegisterSet>> sets(static_cast<size_t>(group_slices));
  std::atomic<bool> sound{true};
  const auto sort = [&](int64_t begin, int64_t end) {
    for (int64_t group_slice = begin; group_slice < end; ++group_slice) {
      std::vector<Nonzero>& own = sorted[static_cast<size_t>(group_slice)];
      if (sort_nonzeros(columns, pattern, row_at(group_slice), last_row_at(group_slice), own)) {
        sets[static_cast<size_t>(group_slice)] = cut_into_sets(plan, row_at(group_slice) % rows, own);
      } else {
        sound = false;
      }
    }
  };
  if (plan.row_lanes == 0) threads.run(group_slices, sort);
  if (!sound) throw_columns();
  result->slots_.push_back(0);
  for (int64_t group_slice = 0; group_slice < group_slices; ++group_slice) {
    const int64_t nonzeros = pattern.crow_indices[last_row_at(group_slice)] - pattern.crow_indices[row_at(group_slice)];
    const int64_t rows_of_slice = last_row_at(group_slice) - row_at(group_slice);
    const int64_t slots = plan.row_lanes != 0
                              ? nonzeros / rows_of_slice * plan.row_lanes
                              : static_cast<int64_t>(sets[static_cast<size_t>(group_slice)].size()) * kSetSlots;
    result->slots_.push_back(result->slots_.back() + slots);
  }
  std::vector<size_t> entries(static_cast<size_t>(group_slices));
  std::vector<Assembler> codes(static_cast<size_t>(group_slices));
  const auto compile_rows = [&](int64_t group_slice) {
    std::vector<int32_t> displacements;
    if (!find_row_slots(
            columns, pattern, row_at(group_slice), last_row_at(group_slice), plan.row_lanes,
            result->slots_[static_cast<size_t>(group_slice)], displacements, result->slot_of_)) {
      sound = false;
      return;
    }
    if (!displacements.empty())
      write_row_gradient_kernel(displacements, plan.row_lanes, codes[static_cast<size_t>(group_slice)]);
  };
  const auto compile = [&](int64_t group_slice) {
    if (plan.row_lanes != 0) return compile_rows(group_slice);
    const size_t index = static_cast<size_t>(group_slice);
    for (size_t set = 0; set < sets[index].size(); ++set)
      for (size_t i = sets[index][set].begin; i < sets[index][set].end; ++i)
        result->slot_of_[static_cast<size_t>(sorted[index][i].source)] = static_cast<int32_t>(
            result->slots_[index] +
            slot_of_set(static_cast<int64_t>(set), static_cast<int64_t>(i - sets[index][set].begin)));
    if (!sorted[index].empty())
      entries[index] = write_weight_gradient_kernel(columns, sorted[index], sets[index], plan, codes[index]);
  };
  threads.run(group_slices, [&](int64_t begin, int64_t end) {
    for (int64_t group_slice = begin; group_slice < end; ++group_slice) compile(group_slice);
  });
  if (!sound) throw_columns();
  result->code_ = Executable::make(codes);
  if (result->code_ == nullptr) return nullptr;
  result->kernels_.resize(static_cast<size_t>(group_slices));
  result->row_kernels_.resize(static_cast<size_t>(group_slices));
  for (size_t i = 0; i < result->kernels_.size(); ++i) {
    if (codes[i].size() == 0) continue;
    const uint8_t* const entry = result->code_->section(i) + entries[i];
    if (plan.row_lanes != 0) {
      std::memcpy(&result->row_kernels_[i], &entry, sizeof entry);
    } else {
      std::memcpy(&result->kernels_[i], &entry, sizeof entry);
    }
  }
  return result;
}

}  // namespace sparsekernels::jit
