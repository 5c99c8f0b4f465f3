#include "sparse_conv2d/jit/weight_kernel.h"

#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>

#include "base/jit/assembler.h"
#include "sparse_conv2d/jit/pattern_columns.h"

namespace sparsekernels {
namespace {

constexpr Register kPlanes = Register::kRdi, kGrads = Register::kRsi, kSums = Register::kRdx, kMasks = Register::kRcx;
constexpr Register kLines = Register::kR8, kAhead = Register::kR9, kCounter = Register::kRax;
constexpr Register kFirstPlanes = Register::kR9, kFirstGrads = Register::kR10, kFirstMasks = Register::kR11;
constexpr int kLineRegister = 31;
constexpr int64_t kGroup = 31;  // nonzeros

// Adds up the lanes of 16 vectors: at the end lane i of the first is the sum of vector order[i]. Each step adds the two
// halves of what is left of two vectors; a blend and one shuffle bring them side by side, where masks allow it.
void sum_lanes(Assembler& code, int first, int spare) {
  constexpr int kUpperHalves = 1, kUpperPairs = 2;  // masks
  for (int i = 0; i < 16; i += 2) {
    code.blend(spare, first + i, first + i + 1, kUpperHalves);
    code.shuffle_quarters(first + i, first + i, first + i + 1, 0x4e);
    code.add(first + i, first + i, spare);
  }
  for (int i = 0; i < 16; i += 4) {
    code.blend(spare, first + i, first + i + 2, kUpperPairs);
    code.shuffle(first + i, first + i, first + i + 2, 0x4e);
    code.add(first + i, first + i, spare);
  }
  for (int i = 0; i < 16; i += 8) {
    code.shuffle_quarters(spare, first + i, first + i + 4, 0x88);
    code.shuffle_quarters(first + i, first + i, first + i + 4, 0xdd);
    code.add(first + i, first + i, spare);
  }
  code.shuffle(spare, first, first + 8, 0x88);
  code.shuffle(first, first, first + 8, 0xdd);
  code.add(first, first, spare);
}

// The lane in which that leaves a vector's sum.
int64_t lane_of(int64_t vector) {
  return (vector & 1) << 2 | (vector >> 1 & 1) | (vector >> 2 & 1) << 3 | (vector >> 3 & 1) << 1;
}

int64_t slot_in_slice(int64_t nonzero) {
  const int64_t within = nonzero % kGroup;
  return nonzero / kGroup * kGroupSlots + (within & 16) + lane_of(within & 15);
}

void begin_group(bool masked, Assembler& code) {
  for (int sum = 0; sum < kGroup; ++sum) code.clear(sum);
  code.move(kPlanes, kFirstPlanes);
  code.move(kGrads, kFirstGrads);
  if (masked) code.move(kMasks, kFirstMasks);
  code.move(kCounter, kLines);
}

void fetch_ahead(Ahead* ahead) noexcept {
  ahead->source.lines(ahead->source_lines);
  ahead->grads.lines(ahead->grad_lines);
}

// What every group ends with, and the next one begins with: a function that they call.
void write_turn(bool masked, Assembler& code) {
  // Every run goes through the code of all slices: it comes up early enough from wherever it is.
  constexpr int32_t kBytesAhead = 2048;
  constexpr int kLinesOfGroup = 6;
  code.fetch_code(kBytesAhead, kLinesOfGroup);
  code.set_mask(1, 0xff00);
  code.set_mask(2, 0xcccc);
  sum_lanes(code, 0, kLineRegister);
  code.add(0, kSums, 0);
  code.store(0, kSums, 0);
  code.clear(kLineRegister);
  sum_lanes(code, 16, 1);
  code.add(16, kSums, 64);
  code.store(16, kSums, 64);
  code.advance(kSums, kGroupSlots * 4);
  constexpr Register kArgument = Register::kRdi;
  code.load_from_stack(kArgument, 8);  // above the return address
  const size_t skip = code.skip_if_zero(kArgument);
  // Five registers, the return address and `ahead`: with the one of the caller the stack is aligned to 16 bytes.
  constexpr Register kKept[] = {kSums, kLines, kFirstPlanes, kFirstGrads, kFirstMasks};
  for (int i = 0; i < 5; ++i) code.push(kKept[i]);
  code.call_function(&fetch_ahead);
  for (int i = 4; i >= 0; --i) code.pop(kKept[i]);
  code.land(skip);
  begin_group(masked, code);
  code.finish_call();
}

// Of one slice. Where in the code it is entered.
size_t write_kernel(
    const std::vector<Column>& columns, const std::vector<Nonzero>& nonzeros, const WeightPlan& plan, Assembler& code) {
  const bool masked = !plan.masks.empty();
  write_turn(masked, code);
  code.align();
  const size_t entry = code.size();
  code.push(kAhead);
  code.move(kFirstPlanes, kPlanes);
  code.move(kFirstGrads, kGrads);
  if (masked) code.move(kFirstMasks, kMasks);
  begin_group(masked, code);
  for (size_t begin = 0; begin < nonzeros.size(); begin += kGroup) {
    const size_t end = std::min(nonzeros.size(), begin + kGroup);
    const size_t start = code.size();
    uint32_t used = 0;
    for (size_t i = begin; i < end; ++i) used |= 1u << columns[static_cast<size_t>(nonzeros[i].column)].mask;
    for (int mask = 1; mask <= kMostMasks; ++mask)
      if (used >> mask & 1) code.load_mask(mask, kMasks, static_cast<int8_t>(2 * (mask - 1)));
    for (size_t i = begin; i < end; ++i) {
      const Column& column = columns[static_cast<size_t>(nonzeros[i].column)];
      if (i == begin || nonzeros[i].column != nonzeros[i - 1].column) {
        code.load(kLineRegister, column.mask, kPlanes, column.displacement);
      }
      const int64_t grad = nonzeros[i].row * plan.grad_channel_floats * 4;
      code.multiply_add_line(static_cast<int>(i - begin), kLineRegister, kGrads, static_cast<int32_t>(grad));
    }
    code.advance(kPlanes, static_cast<int32_t>(plan.line_floats * 4));
    code.advance(kGrads, static_cast<int32_t>(plan.grad_line_floats * 4));
    if (masked) code.advance(kMasks, kMaskStride * 2);
    code.loop(kCounter, start);
    code.call(0);
  }
  code.pop(kAhead);
  code.leave();
  return entry;
}

}  // namespace

std::shared_ptr<const WeightKernels> WeightKernels::make(
    const Lattice& lattice, const WeightPlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::shared_ptr<WeightKernels> result(new WeightKernels);
  result->slices_ = plan.slices;
  result->slot_of_.resize(static_cast<size_t>(pattern.nonzeros));
  result->masks_[0] = line_masks(plan, plan.strip[0]);
  result->masks_[1] = line_masks(plan, lattice.size[0] - (plan.strips[0] - 1) * plan.strip[0]);
  const std::vector<Column> columns = columns_of(lattice, plan, lattice.source_channels);
  const int64_t rows = lattice.dest_channels, pieces = lattice.groups * plan.slices;
  const auto row_at = [&](int64_t piece) {
    return piece / plan.slices * rows + plan.first_row(piece % plan.slices, rows);
  };
  const auto last_row_at = [&](int64_t piece) {
    return piece / plan.slices * rows + plan.first_row(piece % plan.slices + 1, rows);
  };
  result->slots_.push_back(0);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t nonzeros = pattern.crow_indices[last_row_at(piece)] - pattern.crow_indices[row_at(piece)];
    result->slots_.push_back(result->slots_.back() + divide_up(nonzeros, kGroup) * kGroupSlots);
  }
  std::vector<size_t> entries(static_cast<size_t>(pieces));
  std::vector<Assembler> codes(static_cast<size_t>(pieces));
  std::atomic<bool> sound{true};
  const auto compile = [&](int64_t piece) {
    std::vector<Nonzero> sorted;
    if (!sort_nonzeros(columns, pattern, row_at(piece), last_row_at(piece), sorted)) {
      sound = false;
      return;
    }
    const int64_t first = result->slots_[static_cast<size_t>(piece)];
    for (size_t i = 0; i < sorted.size(); ++i) {
      const int64_t slot = first + slot_in_slice(static_cast<int64_t>(i));
      result->slot_of_[static_cast<size_t>(sorted[i].source)] = static_cast<int32_t>(slot);
    }
    if (!sorted.empty())
      entries[static_cast<size_t>(piece)] = write_kernel(columns, sorted, plan, codes[static_cast<size_t>(piece)]);
  };
  threads.run(pieces, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) compile(piece);
  });
  if (!sound) throw std::invalid_argument("col_indices: expected ascending indices within their range");
  result->code_ = Executable::make(codes);
  if (result->code_ == nullptr) throw std::bad_alloc();
  result->kernels_.resize(static_cast<size_t>(pieces));
  for (size_t i = 0; i < result->kernels_.size(); ++i) {
    if (codes[i].size() == 0) continue;
    const uint8_t* const entry = result->code_->piece(i) + entries[i];
    std::memcpy(&result->kernels_[i], &entry, sizeof entry);
  }
  return result;
}

}  // namespace sparsekernels
