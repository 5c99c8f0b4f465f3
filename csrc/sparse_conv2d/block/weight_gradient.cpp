// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The weight gradient at the blocks of a block-sparse convolution. A work item packs the channels of its region strip
// by strip, into lines and pairs that stay in L2 as its sums do, and adds the products of a strip to the sums of all
// blocks.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "base/workspace.h"
#include "isa/kernels.h"
#include "sparse_conv2d/block/call.h"
#include "sparse_conv2d/block/gradient_plan.h"
#include "sparse_conv2d/block/kernels.h"
#include "sparse_conv2d/block/program.h"

namespace sparsekernels::block {
namespace {

constexpr int64_t kReducedElements = 4096;  // of the values, at once

thread_local Workspace call_workspace, worker_workspace;

// How the lines of a strip lie: those of 16 channels at a place follow each other, places go from column to column, row
// to row, phase to phase, and from lane set to lane set; then come the next 16 channels.
struct LineLayout {
  int64_t phases, rows, columns;
  int64_t lines;  // of 16 channels
  std::vector<int64_t> tap_offsets;

  LineLayout(const Lattice& lattice, const GradientStrip& most) {
    phases = static_cast<int64_t>(lattice.phases[0].size() * lattice.phases[1].size());
    rows = most.rows + lattice.most_shift[0];
    columns = most.columns + lattice.most_shift[1];
    lines = most.sets * phases * rows * columns * kUnit;
    for (const Tap& tap : lattice.taps) {
      const int64_t phase = tap.phase[0] * static_cast<int64_t>(lattice.phases[1].size()) + tap.phase[1];
      tap_offsets.push_back(((phase * rows + tap.shift[0]) * columns + tap.shift[1]) * kUnit);
    }
  }
  int64_t line(int64_t set, int64_t phase, int64_t row, int64_t column) const {
    return (((set * phases + phase) * rows + row) * columns + column) * kUnit;
  }
};

struct Call {
  const Lattice& lattice;
  const BlockPattern& pattern;
  const GradientPlan& plan;
  const LineLayout& layout;
  const Kernels& kernels;
  const std::vector<int64_t>& first_values;
  uint16_t* values;
  float* partials;  // [parts][elements], or null: there is one part
  int64_t elements;
};

// Where the lanes of a set are: the offset of their image in both tensors, negative where there is no lane, and the
// position that they begin at.
struct LanePlaces {
  int64_t source[kPositions], dest[kPositions], row[kPositions], column[kPositions];
  bool alike;  // all begin at position 0

  LanePlaces(const Lattice& lattice, const GradientLanes& lanes, int64_t set) {
    const int64_t regions = lanes.grid[0] * lanes.grid[1];
    alike = regions == 1;
    for (int v = 0; v < kPositions; ++v) {
      const int64_t lane = set * kPositions + v, image = lane / regions, region = lane % regions;
      const bool is_there = lane < lanes.lanes;
      source[v] = is_there ? image * lattice.source.stride[0] : -1;
      dest[v] = is_there ? image * lattice.dest.stride[0] : -1;
      row[v] = region / lanes.grid[1] * lanes.size[0];
      column[v] = region % lanes.grid[1] * lanes.size[1];
    }
  }
};

uint16_t* at_channel(const Activation& tensor, int64_t channel) {
  return static_cast<uint16_t*>(tensor.data) + channel * tensor.stride[1];
}

// How many rows of lines a strip shares with the one before it: those that its taps reach back for.
int64_t shared_rows(const Call& call, const GradientStrip& before, const GradientStrip& strip) {
  const bool follows = strip.set == before.set && before.sets == 1 && strip.row == before.row + before.rows &&
                       strip.columns == call.plan.lanes.size[1];
  return follows ? call.lattice.most_shift[0] : 0;
}

// Moves the last rows of lines of a strip to the first ones of the next.
void move_rows(const Call& call, const GradientStrip& before, int64_t rows, int64_t channels, uint16_t* lines) {
  const LineLayout& layout = call.layout;
  for (int64_t channel = 0; channel < channels; channel += kUnit)
    for (int64_t phase = 0; phase < layout.phases; ++phase) {
      uint16_t* const first = lines + (channel / kUnit * layout.lines + layout.line(0, phase, 0, 0)) * kLineElements;
      const int64_t row = layout.columns * kTileElements;
      std::memmove(first, first + before.rows * row, static_cast<size_t>(rows * row) * sizeof(uint16_t));
    }
}

// `channels` of the input from `first` on, but for rows of lines that are there already.
void pack_input(
    const Call& call, const GradientStrip& strip, int64_t packed_rows, int64_t first, int64_t channels,
    uint16_t* lines) {
  const Lattice& lattice = call.lattice;
  const Activation& source = lattice.source;
  int64_t from[kPositions];
  PackLinesCall pack = {};
  pack.source = at_channel(source, first);
  pack.from = from;
  pack.channels = channels;
  pack.pitch = call.layout.lines * kLineElements;
  for (int64_t set = 0; set < strip.sets; ++set) {
    const LanePlaces lanes(lattice, call.plan.lanes, strip.set + set);
    int64_t phase = 0;
    for (const int64_t row_phase : lattice.phases[0])
      for (const int64_t column_phase : lattice.phases[1]) {
        for (int64_t row = packed_rows; row < strip.rows + lattice.most_shift[0]; ++row)
          for (int64_t column = 0; column < strip.columns + lattice.most_shift[1]; ++column) {
            for (int v = 0; v < kPositions; ++v) {
              const int64_t y =
                  lattice.origin[0] + row_phase + (lanes.row[v] + strip.row + row) * lattice.source_step[0];
              const int64_t x =
                  lattice.origin[1] + column_phase + (lanes.column[v] + strip.column + column) * lattice.source_step[1];
              const bool inside = lanes.source[v] >= 0 && y >= 0 && y < source.size[2] && x >= 0 && x < source.size[3];
              from[v] = inside ? lanes.source[v] + y * source.stride[2] + x * source.stride[3] : -1;
            }
            pack.lines = lines + call.layout.line(set, phase, row, column) * kLineElements;
            call.kernels.gradient.pack_lines(pack);
          }
        ++phase;
      }
  }
}

// Outputs of grad_output from `first` on.
void pack_grad_output(
    const Call& call, const GradientStrip& strip, int64_t first, int64_t outputs, int64_t pitch, uint16_t* pairs) {
  const Activation& dest = call.lattice.dest;
  int64_t from[kPositions];
  PackPairsCall pack = {};
  pack.source = at_channel(dest, first);
  pack.from = from;
  pack.outputs = outputs;
  pack.pitch = pitch;
  pack.pairs = pairs;
  for (int64_t set = 0; set < strip.sets; ++set) {
    const LanePlaces lanes(call.lattice, call.plan.lanes, strip.set + set);
    for (int64_t row = strip.row; row < strip.row + strip.rows; ++row)
      for (int64_t column = strip.column; column < strip.column + strip.columns; ++column) {
        for (int v = 0; v < kPositions; ++v) {
          const int64_t y = lanes.row[v] + row, x = lanes.column[v] + column;
          from[v] = lanes.dest[v] < 0 ? -1 : lanes.dest[v] + y * dest.stride[2] + x * dest.stride[3];
        }
        call.kernels.gradient.pack_pairs(pack);
        pack.pairs += kTileElements;
      }
  }
}

// Adds the products of chunks [begin, end) of a strip to all sums.
void multiply(
    const Call& call, const GradientProgram& program, const std::vector<int32_t>& places, int64_t begin, int64_t end,
    bool begins, const uint16_t* lines, const uint16_t* pairs, int64_t pitch, float* sums) {
  GradientProductCall product = {};
  product.gathered = program.gathered;
  product.begins = begins;
  product.chunks = end - begin;
  product.lines = lines;
  product.places = places.data() + begin;
  const int64_t of_tile = program.gathered ? kUnit : 1;
  for (const GradientPanel& panel : program.panels) {
    float* to = sums + panel.sums * kTileSums;
    for (int64_t unit = 0; unit < panel.units; unit += 2) {
      product.units = static_cast<int>(std::min<int64_t>(2, panel.units - unit));
      for (int u = 0; u < product.units; ++u)
        product.pairs[u] = pairs + (panel.first_unit + unit + u) * pitch + begin * kTileElements;
      const int64_t most = channel_tiles_of(product.units);
      for (int64_t tile = 0; tile < panel.tiles; tile += most) {
        product.tiles = static_cast<int>(std::min(most, panel.tiles - tile));
        product.rows = program.rows.data() + (panel.first_tile + tile) * of_tile;
        product.sums = to;
        call.kernels.gradient.product(product);
        to += product.tiles * product.units * kTileSums;
      }
    }
  }
}

// The sums of a panel's tile, to the values of its blocks.
void finish_tile(
    const Call& call, const GradientPanel& panel, int64_t tile, const std::vector<Piece>& pieces, int64_t part,
    const float* sums) {
  std::vector<Piece> moved(pieces);
  FinishCall finish = {};
  finish.pieces = moved.data();
  finish.count = static_cast<int>(moved.size());
  if (call.partials == nullptr)
    finish.values = call.values;
  else
    finish.partial = call.partials + part * call.elements;
  for (int64_t unit = 0; unit < panel.units; ++unit) {
    const int64_t pair = unit / 2 * 2, units = std::min<int64_t>(2, panel.units - pair);
    const int64_t begin = (panel.first_unit + unit) * kUnit;
    const int64_t first = std::max(begin, panel.first_output);
    const int64_t last = std::min(begin + kUnit, panel.first_output + panel.outputs);
    finish.sums = sums + (panel.sums + panel.tiles * pair + tile * units + unit - pair) * kTileSums;
    finish.first = static_cast<int>(first - begin);
    finish.outputs = static_cast<int>(last - first);
    for (size_t i = 0; i < pieces.size(); ++i)
      moved[i].at = pieces[i].at + (first - panel.first_output) * pieces[i].stride;
    call.kernels.gradient.finish(finish);
  }
}

void finish_item(const Call& call, const GradientProgram& program, int64_t part, const float* sums) {
  std::vector<Piece> pieces;
  for (const GradientPanel& panel : program.panels) {
    pieces.clear();
    int64_t last = 0;
    each_piece(
        panel, call.pattern, call.lattice, program.gathered,
        [&](int64_t tile, int64_t row, int64_t channels, int64_t channel, int64_t block) {
          if (tile != last) finish_tile(call, panel, last, pieces, part, sums);
          if (tile != last) pieces.clear();
          last = tile;
          const int64_t first = call.pattern.col_indices[block] / call.pattern.taps * call.pattern.block[1];
          const int64_t width = std::min(call.pattern.block[1], call.pattern.channels - first);
          pieces.push_back(
              {static_cast<int32_t>(row), static_cast<int32_t>(channels),
               call.first_values[static_cast<size_t>(block)] + channel, width});
        });
    finish_tile(call, panel, last, pieces, part, sums);
  }
}

void run_item(const Call& call, const GradientItem& item) {
  const Lattice& lattice = call.lattice;
  const BlockPattern& pattern = call.pattern;
  const GradientStrip& most = call.plan.most;
  const GradientProgram program = gradient_program(item, pattern, lattice, call.layout.lines, call.layout.tap_offsets);
  if (program.panels.empty()) return;
  const int64_t first_output = item.first_row * pattern.block[0], first_channel = item.first_column * pattern.block[1];
  const int64_t outputs = std::min(item.rows * pattern.block[0], pattern.rows - first_output);
  const int64_t channels = std::min(item.columns * pattern.block[1], pattern.channels - first_channel);
  const int64_t pitch = most.chunks() * kTileElements;
  float *line_floats, *pair_floats, *sums;
  WorkspaceLayout buffers;
  buffers.add(&line_floats, divide_up(channels, kUnit) * call.layout.lines * kLineElements / 2);
  buffers.add(&pair_floats, divide_up(outputs, kUnit) * pitch / 2);
  buffers.add(&sums, program.sums * kTileSums);
  buffers.allocate(worker_workspace);
  const TrimWorkspace trim{worker_workspace};
  uint16_t* const lines = reinterpret_cast<uint16_t*>(line_floats);
  uint16_t* const pairs = reinterpret_cast<uint16_t*>(pair_floats);
  std::vector<int32_t> places;
  GradientStrip before = {};
  bool begins = true;
  call.kernels.begin(2 * kUnit, kPositions / 2);
  for (const GradientStrip& strip : strips_of(call.plan, item.part)) {
    const int64_t shared = begins ? 0 : shared_rows(call, before, strip);
    if (shared > 0) move_rows(call, before, shared, channels, lines);
    before = strip;
    pack_input(call, strip, shared, item.group * lattice.source_channels + first_channel, channels, lines);
    pack_grad_output(call, strip, first_output, outputs, pitch, pairs);
    places.clear();
    for (int64_t set = 0; set < strip.sets; ++set)
      for (int64_t row = 0; row < strip.rows; ++row)
        for (int64_t column = 0; column < strip.columns; ++column)
          places.push_back(static_cast<int32_t>(call.layout.line(set, 0, row, column)));
    for (int64_t chunk = 0; chunk < strip.chunks(); chunk += call.plan.chunks_at_once) {
      multiply(
          call, program, places, chunk, std::min(chunk + call.plan.chunks_at_once, strip.chunks()), begins, lines,
          pairs, pitch, sums);
      begins = false;
    }
  }
  call.kernels.end();
  finish_item(call, program, item.part, sums);
}

// Adds up parts, in their order.
void reduce(const Call& call, const Threads& threads) {
  threads.run(divide_up(call.elements, kReducedElements), [&](int64_t begin, int64_t end) {
    float sums[kReducedElements];
    for (int64_t at = begin * kReducedElements; at < std::min(call.elements, end * kReducedElements);
         at += kReducedElements) {
      const int64_t count = std::min(kReducedElements, call.elements - at);
      std::copy_n(call.partials + at, count, sums);
      for (int64_t part = 1; part < call.plan.parts; ++part) {
        const float* const more = call.partials + part * call.elements + at;
        for (int64_t i = 0; i < count; ++i) sums[i] += more[i];
      }
      cpu_kernels().narrow(sums, count, DType::kBFloat16, call.values, at);
    }
  });
}

}  // namespace

void weight_gradient(
    const ConvGeometry& geometry, const BlockPattern& pattern, const Activation& grad_output, const Activation& input,
    uint16_t* grad_values, const Threads& threads) {
  check_blocks(pattern);
  const int64_t elements = elements_of(pattern);
  if (elements == 0) return;
  if (is_empty(grad_output)) {
    std::fill_n(grad_values, elements, uint16_t{0});
    return;
  }
  Lattice lattice = forward_lattice(geometry, input, grad_output);
  merge_positions(lattice);
  const GradientPlan plan = plan_gradient(lattice, pattern, threads.count);
  const LineLayout layout(lattice, plan.most);
  if (layout.lines > std::numeric_limits<int32_t>::max() / (divide_up(pattern.channels, kUnit) + 1))
    throw std::invalid_argument(
        "sparse_conv2d: expected rows of an image whose channels take less than 128 GB in blocks");
  const std::vector<int64_t> first = first_values(pattern);
  float* partials;
  WorkspaceLayout own;
  own.add(&partials, plan.parts > 1 ? plan.parts * elements : 0);
  own.allocate(call_workspace);
  const TrimWorkspace trim{call_workspace};
  // Taps that reach nothing have no sums.
  if (lattice.some_reach_nothing) {
    std::fill_n(grad_values, elements, uint16_t{0});
    if (plan.parts > 1) std::fill_n(partials, plan.parts * elements, 0.0f);
  }
  const Call call = {lattice, pattern, plan, layout, kernels(), first, grad_values, plan.parts > 1 ? partials : nullptr,
                     elements};
  threads.run(plan.items(lattice.groups), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_item(call, gradient_item(plan, pattern, i));
  });
  if (plan.parts > 1) reduce(call, threads);
}

}  // namespace sparsekernels::block
