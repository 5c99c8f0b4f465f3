#include "program_walk.h"

#include <algorithm>
#include <cstring>

#include "../kernels.h"
#include "arena.h"
#include "fetch.h"
#include "program_cache.h"

namespace sparsekernels {
namespace {

thread_local Arena call_arena;    // the values, for all threads of a call
thread_local Arena worker_arena;  // a thread's planes and lines

// A strip of some bundles.
struct Unit {
  int64_t group;  // of the convolution
  int64_t first_bundle, bundles;
  int64_t first[2], size[2];  // positions
};

Unit unit_at(const Lattice& lattice, const BundlePlan& plan, int64_t group, int64_t index) {
  Unit unit = {};
  unit.group = group;
  const int64_t strip[2] = {index / plan.strips[1] % plan.strips[0], index % plan.strips[1]};
  for (int d = 0; d < 2; ++d) {
    unit.first[d] = strip[d] * plan.strip[d];
    unit.size[d] = std::min(plan.strip[d], lattice.size[d] - unit.first[d]);
  }
  unit.first_bundle = index / (plan.strips[0] * plan.strips[1]) * plan.unit_bundles;
  unit.bundles = std::min(plan.unit_bundles, plan.bundles - unit.first_bundle);
  return unit;
}

LineOrder order_of(const Activation& tensor, int64_t channels) {
  return transposes_channels(tensor, channels) ? LineOrder::kChannels : LineOrder::kColumns;
}

// Pointers to the images of a bundle, at a channel.
template <class Call>
void set_images(Call& call, const Activation& tensor, const BundlePlan& plan, int64_t bundle, int64_t channel) {
  call.images = plan.images;
  for (int64_t i = 0; i < plan.images; ++i) {
    const int64_t image = bundle * plan.images + i;
    char* const data = static_cast<char*>(tensor.data);
    call.image[i] = image >= tensor.size[0]
                        ? nullptr
                        : data + (image * tensor.stride[0] + channel * tensor.stride[1]) * element_size(tensor.dtype);
  }
}

template <class Call>
void set_strides(Call& call, const Activation& tensor) {
  call.channel_stride = tensor.stride[1];
  call.row_stride = tensor.stride[2];
  call.column_stride = tensor.stride[3];
  call.size[0] = tensor.size[2];
  call.size[1] = tensor.size[3];
}

void read_planes(const Lattice& lattice, const BundlePlan& plan, const Unit& unit, float* planes) {
  BundleRead call = {};
  set_strides(call, lattice.source);
  call.channels = lattice.source_channels;
  call.order = order_of(lattice.source, call.channels);
  call.channel_floats = plan.channel_floats;
  call.phase_floats = plan.phase_floats;
  call.line_floats = plan.line_floats;
  call.behind_floats = plan.behind_floats;
  call.rows = unit.size[0] + lattice.most_shift[0];
  call.pitch = plan.pitch;
  std::vector<int64_t> first[2];
  for (const int64_t phase : lattice.phases[0])
    first[0].push_back(lattice.origin[0] + phase + unit.first[0] * lattice.source_step[0]);
  for (const int64_t column : plan.first_column) first[1].push_back(column + unit.first[1] * lattice.source_step[1]);
  for (int d = 0; d < 2; ++d) {
    call.step[d] = lattice.source_step[d];
    call.phases[d] = static_cast<int64_t>(first[d].size());
    call.first[d] = first[d].data();
  }
  for (int64_t b = 0; b < unit.bundles; ++b) {
    set_images(call, lattice.source, plan, unit.first_bundle + b, unit.group * lattice.source_channels);
    call.planes = planes + b * plan.bundle_floats;
    cpu_kernels().bundles[static_cast<int>(lattice.source.dtype)].read(call);
    // the plane of zeros behind all channels
    for (int64_t line = 0; lattice.some_reach_nothing && line < plan.lines(unit.size[0], unit.size[1]); ++line)
      std::memset(call.planes + call.channels * plan.channel_floats + line * plan.line_floats, 0, 16 * sizeof(float));
  }
}

// The lines of a slice: [residue][bundle][line][row].
struct SliceLines {
  int64_t rows, bundle, residue;  // rows of the slice; strides in floats
};

void write_lines(
    const Lattice& lattice, const BundlePlan& plan, const Unit& unit, int64_t row, const SliceLines& slice,
    const float* lines, const float* bias) {
  BundleWrite call = {};
  set_strides(call, lattice.dest);
  call.channels = slice.rows;
  call.order = order_of(lattice.dest, call.channels);
  call.bias = bias == nullptr ? nullptr : bias + row;
  call.rows = unit.size[0];
  call.columns = unit.size[1];
  call.pitch = plan.pitch;
  // Two columns that alternate are written as one.
  const bool pairs = lattice.dest_step[1] == 2 && lattice.dest.stride[3] == 1 && call.order == LineOrder::kColumns;
  for (int64_t residue = 0; residue < lattice.residues(); residue += pairs ? 2 : 1) {
    const int64_t at[2] = {residue / lattice.dest_step[1], residue % lattice.dest_step[1]};
    for (int d = 0; d < 2; ++d) {
      call.step[d] = lattice.dest_step[d];
      call.first[d] = unit.first[d] * lattice.dest_step[d] + at[d];
    }
    for (int64_t b = 0; b < unit.bundles; ++b) {
      set_images(call, lattice.dest, plan, unit.first_bundle + b, row);
      call.lines = lines + residue * slice.residue + b * slice.bundle;
      call.odd_lines = pairs ? call.lines + slice.residue : nullptr;
      cpu_kernels().bundles[static_cast<int>(lattice.dest.dtype)].write(call);
    }
  }
}

// The values in the order of the programs, as floats.
float* arrange_values(const Programs& programs, const SparsePattern& pattern, const Threads& threads) {
  float *values, *wide;
  Pieces pieces;
  pieces.add(&values, pattern.nonzeros + 2 * kValueBias);
  pieces.add(&wide, pattern.dtype == DType::kFloat32 ? 0 : pattern.nonzeros);
  pieces.allocate(call_arena);
  const float* from = static_cast<const float*>(pattern.values);
  if (pattern.dtype != DType::kFloat32) {
    cpu_kernels().widen(pattern.values, pattern.nonzeros, pattern.dtype, wide);
    from = wide;
  }
  const int32_t* const order = programs.order().data();
  const auto gather = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) values[i] = from[order[i]];
  };
  constexpr int64_t kSerial = 1 << 16;
  if (pattern.nonzeros < kSerial) {
    gather(0, pattern.nonzeros);
  } else {
    const int64_t pieces_there = divide_up(pattern.nonzeros, 4096);
    threads.run(pieces_there, [&](int64_t begin, int64_t end) {
      gather(begin * 4096, std::min(pattern.nonzeros, end * 4096));
    });
  }
  return values;
}

// What a unit reads or writes of one side, where that is worth it: smaller tensors lie in the last cache anyway. Rows
// [first, last] belong to a position, at `step` from one to the next.
Fetch fetch_of(
    const Activation& tensor, const BundlePlan& plan, const Unit& unit, int64_t channel, int64_t channels,
    int64_t first, int64_t last, int64_t step) {
  constexpr int64_t kLargeElements = int64_t{1} << 21;
  if (tensor.size[0] * tensor.size[1] * tensor.size[2] * tensor.size[3] < kLargeElements) return Fetch();
  const int64_t begin[4] = {
      unit.first_bundle * plan.images, channel, std::max<int64_t>(0, unit.first[0] * step + first), 0};
  const int64_t end[4] = {
      std::min(tensor.size[0], (unit.first_bundle + unit.bundles) * plan.images), channel + channels,
      std::min(tensor.size[2], (unit.first[0] + unit.size[0] - 1) * step + last + 1), tensor.size[3]};
  return Fetch(tensor, begin, end);
}

void run_unit(
    const Lattice& lattice, const BundlePlan& plan, const Programs& programs, const float* values, const float* bias,
    const Unit& unit, const Unit* next_unit, int64_t first_slice, int64_t last_slice) {
  const int64_t lines = plan.lines(unit.size[0], unit.size[1]), rows = lattice.dest_channels;
  constexpr int64_t kSlackLines = kMostImages + 1;  // read, and not used
  float *planes, *sums;
  Pieces own;
  own.add(&planes, plan.front_floats + unit.bundles * plan.bundle_floats + plan.back_floats);
  own.add(&sums, (lattice.residues() * unit.bundles * lines + kSlackLines) * kMostSliceRows * plan.write_slices * 16);
  own.allocate(worker_arena);
  planes += plan.front_floats;
  read_planes(lattice, plan, unit, planes);
  const uint16_t* const masks = programs.masks().data();
  const int64_t mask_stride = programs.masks().empty() ? 0 : kMaskStride;
  // Meanwhile the next unit's source comes up, and the place of the results.
  const int64_t turns = unit.bundles * lines * lattice.residues() * plan.blocks;
  Fetch ahead, results;
  if (next_unit != nullptr) {
    const int64_t last = lattice.phases[0].back() + lattice.most_shift[0] * lattice.source_step[0];
    ahead = fetch_of(
        lattice.source, plan, *next_unit, next_unit->group * lattice.source_channels, lattice.source_channels,
        lattice.origin[0], lattice.origin[0] + last, lattice.source_step[0]);
  }
  const int64_t ahead_each = divide_up(ahead.lines(), turns * (last_slice - first_slice));
  for (int64_t slice = first_slice; slice < last_slice; ++slice) {
    // Of the slices whose results are written together, the first row and where the rows of this one lie.
    const int64_t together = slice - (slice - first_slice) % plan.write_slices;
    const int64_t until = std::min(last_slice, together + plan.write_slices);
    const int64_t first = plan.first_row(together, rows), count = plan.first_row(until, rows) - first;
    const int64_t within = plan.first_row(slice, rows) - first;
    const int64_t line_floats = count * 16;
    const SliceLines layout = {count, lines * line_floats, unit.bundles * lines * line_floats};
    const int64_t row = unit.group * rows + first;
    if (slice == together)
      results = fetch_of(lattice.dest, plan, unit, row, count, 0, lattice.dest_step[0] - 1, lattice.dest_step[0]);
    const int64_t results_each = divide_up(results.lines(), turns);
    for (int64_t block = 0; block < plan.blocks; ++block) {
      for (int64_t residue = 0; residue < lattice.residues(); ++residue) {
        const Step& step = programs.step(unit.group, slice, block, residue);
        if (step.program == nullptr) continue;
        const float* const own_values = values + step.values + kValueBias;
        const Step* const next = &step + 1 < programs.end() ? &step + 1 : &step;
        const char* code = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(next->program));
        const int64_t code_lines = divide_up(next->bytes, 64);
        int64_t fetched = 0, run = 0;
        for (int64_t b = 0; b < unit.bundles; ++b) {
          const float* const from = planes + b * plan.bundle_floats + block * plan.block_channels * plan.channel_floats;
          float* to = sums + residue * layout.residue + b * layout.bundle + within * 16;
          for (int64_t line = 0; line < lines; ++line, to += line_floats) {
            const int64_t fetch_until = code_lines * ++run / (unit.bundles * lines);
            for (; fetched < fetch_until; ++fetched) __builtin_prefetch(code + fetched * 64, 0, 2);
            ahead.lines(ahead_each);
            results.lines(results_each);
            step.program(from + line * plan.line_floats, own_values, to, masks + line * mask_stride);
          }
        }
      }
    }
    if (slice + 1 == until) write_lines(lattice, plan, unit, row, layout, sums, bias);
  }
}

}  // namespace

bool correlate_by_programs(
    const Lattice& lattice, const SparsePattern& pattern, const float* bias, const Threads& threads) {
  if (cpu_kernels().bundles[0].read == nullptr || !programs_allowed()) return false;
  constexpr int64_t kMostNonzeros = 1 << 23;
  if (pattern.nonzeros > kMostNonzeros) return false;
  const BundlePlan plan = make_bundle_plan(lattice, pattern.nonzeros, threads.count);
  if (!plan.is_worth_it) return false;
  const std::shared_ptr<const Programs> programs = cached_programs(lattice, plan, pattern, threads);
  const Trim trim{call_arena};
  const float* const values = arrange_values(*programs, pattern, threads);
  const int64_t units = plan.units();
  threads.run(lattice.groups * units * plan.parts, [&](int64_t begin, int64_t end) {
    const Trim trim{worker_arena};
    const auto unit_of = [&](int64_t i) {
      return unit_at(lattice, plan, i / plan.parts / units, i / plan.parts % units);
    };
    for (int64_t item = begin; item < end;) {
      // parts that follow each other share the unit's planes
      const int64_t part = item % plan.parts, count = std::min(plan.parts - part, end - item);
      const Unit unit = unit_of(item), next = unit_of(std::min(item + count, end - 1));
      run_unit(
          lattice, plan, *programs, values, bias, unit, item + count < end ? &next : nullptr,
          plan.slices * part / plan.parts, plan.slices * (part + count) / plan.parts);
      item += count;
    }
  });
  return true;
}

}  // namespace sparsekernels
