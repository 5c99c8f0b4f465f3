#include "program.h"

#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>

#include "assembler.h"

namespace sparsekernels {
namespace {

constexpr Register kLine = Register::kRdi, kValues = Register::kRsi, kSums = Register::kRdx, kMasks = Register::kRcx;
constexpr int kLineRegister = 31;
constexpr int32_t kLineBytes = 64;

// Where the planes have what a column of the pattern multiplies, and when its turn comes.
struct Column {
  int32_t displacement;  // in bytes, from its block's first line
  int32_t part;          // block * residues + residue
  int32_t rank;          // columns of a part follow each other
  int32_t mask;          // number, or 0
};

std::vector<Column> columns_of(const Lattice& lattice, const BundlePlan& plan) {
  const int64_t taps = static_cast<int64_t>(lattice.taps.size()), residues = lattice.residues();
  const int64_t phase_columns = static_cast<int64_t>(plan.first_column.size());
  std::vector<Column> columns(static_cast<size_t>(lattice.source_channels * taps));
  std::vector<int32_t> of_part(static_cast<size_t>(plan.blocks * residues) + 1);
  for (size_t i = 0; i < columns.size(); ++i) {
    const int64_t channel = static_cast<int64_t>(i) / taps, block = channel / plan.block_channels;
    const Tap& tap = lattice.taps[i % static_cast<size_t>(taps)];
    const TapColumns& place = plan.taps[i % static_cast<size_t>(taps)];
    const int64_t phase = tap.phase[0] * phase_columns + place.plane;
    // a tap that reaches nothing but padding reads the plane of zeros behind all channels
    const int64_t within = (tap.reaches ? channel : lattice.source_channels) - block * plan.block_channels;
    int64_t floats = within * plan.channel_floats;
    if (tap.reaches)
      floats += plan.spread(phase * plan.phase_floats + (tap.shift[0] * plan.pitch + place.shift) * plan.images);
    columns[i].mask = tap.reaches ? place.mask : 0;
    columns[i].displacement = static_cast<int32_t>(floats * 4);
    columns[i].part = static_cast<int32_t>(block * residues + tap.residue);
    ++of_part[static_cast<size_t>(columns[i].part) + 1];
  }
  for (size_t part = 1; part < of_part.size(); ++part) of_part[part] += of_part[part - 1];
  for (Column& column : columns) column.rank = of_part[static_cast<size_t>(column.part)]++;
  return columns;
}

struct Nonzero {
  int32_t column, row, source;
};

// The nonzeros of a slice, sorted by the rank of their columns. False where an index is out of its range.
bool sort_nonzeros(
    const std::vector<Column>& columns, const SparsePattern& pattern, int64_t first_row, int64_t last_row,
    std::vector<Nonzero>& sorted) {
  const int32_t* const crow = pattern.crow_indices;
  const int64_t begin = crow[first_row], end = crow[last_row];
  std::vector<int32_t> places(columns.size() + 1);
  bool sound = true;
  for (int64_t row = first_row; row < last_row; ++row) {
    int64_t before = -1;
    for (int64_t k = crow[row]; k < crow[row + 1]; ++k) {
      const int64_t column = pattern.col_indices[k];
      if (column < before || column < 0 || column >= static_cast<int64_t>(columns.size())) return false;
      before = column;
      ++places[static_cast<size_t>(columns[static_cast<size_t>(column)].rank) + 1];
      if (pattern.permutation != nullptr)
        sound = sound && pattern.permutation[k] >= 0 && pattern.permutation[k] < pattern.nonzeros;
    }
  }
  if (!sound) return false;
  for (size_t i = 1; i < places.size(); ++i) places[i] += places[i - 1];
  sorted.resize(static_cast<size_t>(end - begin));
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t k = crow[row]; k < crow[row + 1]; ++k) {
      const int32_t column = pattern.col_indices[k];
      const int32_t source = pattern.permutation != nullptr ? pattern.permutation[k] : static_cast<int32_t>(k);
      const int32_t at = places[static_cast<size_t>(columns[static_cast<size_t>(column)].rank)]++;
      sorted[static_cast<size_t>(at)] = {column, static_cast<int32_t>(row - first_row), source};
    }
  }
  return true;
}

// The program of nonzeros [begin, end).
void write_program(
    const std::vector<Column>& columns, const Nonzero* begin, const Nonzero* end, int64_t rows, bool first_block,
    Assembler& code) {
  uint32_t used = 0;  // masks
  for (const Nonzero* nonzero = begin; nonzero < end; ++nonzero)
    used |= 1u << columns[static_cast<size_t>(nonzero->column)].mask;
  for (int mask = 1; mask <= kMostMasks; ++mask)
    if (used >> mask & 1) code.load_mask(mask, kMasks, static_cast<int8_t>(2 * (mask - 1)));
  uint32_t begun = 0;  // rows that have a product
  int32_t loaded = -1;
  for (const Nonzero* nonzero = begin; nonzero < end; ++nonzero) {
    if (nonzero->column != loaded) {
      loaded = nonzero->column;
      const Column& column = columns[static_cast<size_t>(loaded)];
      if (column.mask == 0) {
        code.load(kLineRegister, kLine, column.displacement);
      } else {
        code.load(kLineRegister, column.mask, kLine, column.displacement);
      }
    }
    const int64_t at = (nonzero - begin) % (2 * kValueBias);
    if (at == 0 && nonzero > begin) code.advance(kValues, 2 * kValueBias * 4);
    const int32_t value = static_cast<int32_t>(at - kValueBias) * 4;
    if (begun >> nonzero->row & 1) {
      code.multiply_add(nonzero->row, kLineRegister, kValues, value);
    } else {
      code.multiply(nonzero->row, kLineRegister, kValues, value);
      begun |= 1u << nonzero->row;
    }
  }
  for (int row = 0; row < rows; ++row) {
    const bool has_sum = begun >> row & 1;
    if (!has_sum && !first_block) continue;
    if (!has_sum) code.clear(row);
    if (has_sum && !first_block) code.add(row, kSums, row * kLineBytes);
    code.store(row, kSums, row * kLineBytes);
  }
  code.leave();
}

std::vector<uint16_t> masks_of(const BundlePlan& plan) {
  if (plan.masks.empty()) return {};
  const int64_t lines = plan.lines(plan.strip[0], plan.strip[1]);
  std::vector<uint16_t> result(static_cast<size_t>(lines * kMaskStride));
  int64_t column = 0, image = 0, left = ((plan.strip[0] - 1) * plan.pitch + plan.strip[1]) * plan.images;
  for (int64_t line = 0; line < lines; ++line) {
    for (int lane = 0; lane < 16; ++lane) {
      for (size_t m = 0; m < plan.masks.size(); ++m) {
        const int64_t at = column + plan.masks[m].shift;
        const bool inside = left > 0 && at >= 0 && at < plan.masks[m].columns;
        result[static_cast<size_t>(line * kMaskStride) + m] |= static_cast<uint16_t>(inside << lane);
      }
      --left;
      if (++image < plan.images) continue;
      image = 0;
      if (++column == plan.pitch) column = 0;
    }
  }
  return result;
}

}  // namespace

std::shared_ptr<const Programs> Programs::make(
    const Lattice& lattice, const BundlePlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::shared_ptr<Programs> result(new Programs);
  result->slices_ = plan.slices;
  result->blocks_ = plan.blocks;
  result->residues_ = lattice.residues();
  result->masks_ = masks_of(plan);
  result->order_.resize(static_cast<size_t>(pattern.nonzeros));
  const std::vector<Column> columns = columns_of(lattice, plan);
  const int64_t rows = lattice.dest_channels;
  const int64_t parts = plan.blocks * result->residues_, pieces = lattice.groups * plan.slices;
  struct Place {
    size_t offset;
    int32_t values, bytes;
    bool is_there;
  };
  std::vector<Place> places(static_cast<size_t>(pieces * parts));
  std::vector<Assembler> codes(static_cast<size_t>(pieces));
  std::atomic<bool> sound{true};
  const auto compile = [&](int64_t piece) {
    const int64_t group = piece / plan.slices, slice = piece % plan.slices;
    const int64_t first = group * rows + plan.first_row(slice, rows);
    const int64_t last = group * rows + plan.first_row(slice + 1, rows);
    std::vector<Nonzero> sorted;
    if (!sort_nonzeros(columns, pattern, first, last, sorted)) {
      sound = false;
      return;
    }
    const int32_t base = pattern.crow_indices[first];
    for (size_t i = 0; i < sorted.size(); ++i) result->order_[static_cast<size_t>(base) + i] = sorted[i].source;
    Assembler& code = codes[static_cast<size_t>(piece)];
    const Nonzero* nonzero = sorted.data();
    const Nonzero* const end = nonzero + sorted.size();
    for (int64_t part = 0; part < parts; ++part) {
      const Nonzero* const begin = nonzero;
      while (nonzero < end && columns[static_cast<size_t>(nonzero->column)].part == part) ++nonzero;
      const bool first_block = part < result->residues_;
      if (begin == nonzero && !first_block) continue;
      code.align();
      const size_t start = code.size();
      write_program(columns, begin, nonzero, last - first, first_block, code);
      places[static_cast<size_t>(piece * parts + part)] = {
          start, base + static_cast<int32_t>(begin - sorted.data()), static_cast<int32_t>(code.size() - start), true};
    }
  };
  threads.run(pieces, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) compile(piece);
  });
  if (!sound)
    throw std::invalid_argument("col_indices, permutation: accepted are ascending indices within their range");
  result->code_ = Executable::make(codes);
  if (result->code_ == nullptr) throw std::bad_alloc();
  result->steps_.resize(places.size());
  for (size_t i = 0; i < places.size(); ++i) {
    if (!places[i].is_there) continue;
    const uint8_t* const entry = result->code_->piece(i / static_cast<size_t>(parts)) + places[i].offset;
    std::memcpy(&result->steps_[i].program, &entry, sizeof entry);
    result->steps_[i].values = places[i].values;
    result->steps_[i].bytes = places[i].bytes;
  }
  return result;
}

}  // namespace sparsekernels
