// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/weight_gradient_kernel.h"

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

int64_t slot_in_slice(int64_t nonzero) {
  const int64_t within = nonzero % kSetNonzeros;
  return nonzero / kSetNonzeros * kSetSlots + within / kLanes * kLanes + lane_of(within % kLanes);
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

// Emits the kernel of one slice; returns the offset of its entry point.
size_t write_weight_gradient_kernel(
    const std::vector<Column>& columns, const std::vector<Nonzero>& nonzeros, const WeightGradientPlan& plan,
    Assembler& code) {
  const bool masked = !plan.masks.empty();
  write_turn(masked, code);
  code.align();
  const size_t entry = code.size();
  code.push(kPrefetch);
  code.mov(kFirstPlanes, kPlanes);
  code.mov(kFirstGrads, kGrads);
  if (masked) code.mov(kFirstMasks, kMasks);
  begin_set(masked, code);
  for (size_t begin = 0; begin < nonzeros.size(); begin += kSetNonzeros) {
    const size_t end = std::min(nonzeros.size(), begin + kSetNonzeros);
    const size_t start = code.size();
    uint32_t used = 0;
    for (size_t i = begin; i < end; ++i) used |= 1u << columns[static_cast<size_t>(nonzeros[i].column)].mask;
    for (int mask = 1; mask <= kMostMasks; ++mask)
      if (used >> mask & 1) code.kmovw(Mask(mask), Mem(kMasks, 2 * (mask - 1), 1));
    for (size_t i = begin; i < end; ++i) {
      const Column& column = columns[static_cast<size_t>(nonzeros[i].column)];
      if (i == begin || nonzeros[i].column != nonzeros[i - 1].column) {
        code.vmovups_z(kVectorRegister, Mask(column.mask), Mem(kPlanes, column.displacement));
      }
      const Mem grad(kGrads, nonzeros[i].row * plan.grad_channel_floats * 4);
      code.vfmadd231ps(Zmm(static_cast<int64_t>(i - begin)), kVectorRegister, grad);
    }
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
  result->slots_.push_back(0);
  for (int64_t group_slice = 0; group_slice < group_slices; ++group_slice) {
    const int64_t nonzeros = pattern.crow_indices[last_row_at(group_slice)] - pattern.crow_indices[row_at(group_slice)];
    const int64_t rows_of_slice = last_row_at(group_slice) - row_at(group_slice);
    const int64_t slots =
        plan.row_lanes != 0 ? nonzeros / rows_of_slice * plan.row_lanes : divide_up(nonzeros, kSetNonzeros) * kSetSlots;
    result->slots_.push_back(result->slots_.back() + slots);
  }
  std::vector<size_t> entries(static_cast<size_t>(group_slices));
  std::vector<Assembler> codes(static_cast<size_t>(group_slices));
  std::atomic<bool> sound{true};
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
    std::vector<Nonzero> sorted;
    if (!sort_nonzeros(columns, pattern, row_at(group_slice), last_row_at(group_slice), sorted)) {
      sound = false;
      return;
    }
    const int64_t first = result->slots_[static_cast<size_t>(group_slice)];
    for (size_t i = 0; i < sorted.size(); ++i) {
      const int64_t slot = first + slot_in_slice(static_cast<int64_t>(i));
      result->slot_of_[static_cast<size_t>(sorted[i].source)] = static_cast<int32_t>(slot);
    }
    if (!sorted.empty())
      entries[static_cast<size_t>(group_slice)] =
          write_weight_gradient_kernel(columns, sorted, plan, codes[static_cast<size_t>(group_slice)]);
  };
  threads.run(group_slices, [&](int64_t begin, int64_t end) {
    for (int64_t group_slice = begin; group_slice < end; ++group_slice) compile(group_slice);
  });
  if (!sound)
    throw std::invalid_argument("sparse_conv2d: expected col_indices that ascend within their range, got others");
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
