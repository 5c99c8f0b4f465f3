#include "sparse_conv2d/jit/weight_driver.h"

#include <algorithm>
#include <cstring>

#include "isa/kernels.h"
#include "base/workspace.h"
#include "sparse_conv2d/jit/work_items.h"
#include "sparse_conv2d/jit/kernel_cache.h"

namespace sparsekernels {
namespace {

thread_local Arena call_arena;    // the sums, for all threads of a call
thread_local Arena worker_arena;  // a thread's planes and gradients

// The gradients of rows [first, last) of a unit's group, as lines that are zero where they are no positions.
void read_grads(
    const Lattice& lattice, const WeightPlan& plan, const BundleUnit& unit, int64_t first, int64_t last, float* grads) {
  BundleRead call = {};
  set_strides(call, lattice.dest);
  call.channels = last - first;
  call.order = bundle_order_of(lattice.dest, call.channels);
  call.channel_floats = plan.grad_channel_floats;
  call.line_floats = plan.grad_line_floats;
  call.rows = unit.size[0];
  call.pitch = plan.pitch;
  call.phase_floats = call.rows * call.pitch * plan.images;
  if (call.line_floats == 16) call.behind_floats = plan.lines(unit.size[0], plan.pitch) * 16 - call.phase_floats;
  for (int d = 0; d < 2; ++d) {
    call.step[d] = 1;
    call.phases[d] = 1;
    call.first[d] = &unit.first[d];
  }
  for (int64_t b = 0; b < unit.bundles; ++b) {
    set_images(call, lattice.dest, plan, unit.first_bundle + b, unit.group * lattice.dest_channels + first);
    call.planes = grads + b * plan.grad_bundle_floats;
    cpu_kernels().bundles[static_cast<int>(lattice.dest.dtype)].read(call);
  }
}

// Adds what a unit gives to the sums of some slices.
void run_unit(
    const Lattice& lattice, const WeightPlan& plan, const WeightPrograms& programs, const BundleUnit& unit,
    const BundleUnit* next_unit, int64_t first_slice, int64_t last_slice, float* sums) {
  const int64_t rows = lattice.dest_channels;
  float *planes, *grads;
  Pieces own;
  own.add(&planes, plan.front_floats + unit.bundles * plan.bundle_floats + plan.back_floats);
  own.add(&grads, unit.bundles * plan.grad_bundle_floats);
  own.allocate(worker_arena);
  planes += plan.front_floats;
  read_planes(lattice, plan, unit, planes);
  const std::vector<uint16_t>& masks = programs.masks(unit.size[0] == plan.strip[0]);
  const int64_t each = plan.lines(unit.size[0], unit.size[1]);
  const int64_t series = plan.bundles_follow ? 1 : unit.bundles;
  const int64_t lines = plan.bundles_follow ? unit.bundles * each : each;
  const int64_t runs = divide_up(lines, plan.run_lines);
  Ahead ahead = {};
  if (next_unit != nullptr) ahead.source = fetch_source(lattice, plan, *next_unit);
  ahead.source_lines = divide_up(
      ahead.source.lines(), std::max<int64_t>(1, series * runs * programs.groups(unit.group, first_slice, last_slice)));
  for (int64_t slice = first_slice; slice < last_slice; ++slice) {
    const int64_t row = plan.first_row(slice, rows), last_row = plan.first_row(slice + 1, rows);
    const WeightProgram program = programs.program(unit.group, slice);
    if (program == nullptr) continue;
    read_grads(lattice, plan, unit, row, last_row, grads);
    const bool is_last = slice + 1 == last_slice;
    const BundleUnit* const then = is_last ? next_unit : &unit;
    ahead.grads = Fetch();
    if (then != nullptr) {
      const int64_t next = is_last ? first_slice : slice + 1;
      const int64_t first = plan.first_row(next, rows), count = plan.first_row(next + 1, rows) - first;
      ahead.grads = fetch_dest(lattice, plan, *then, then->group * rows + first, count);
    }
    const int64_t turns = series * runs * programs.groups(unit.group, slice, slice + 1);
    ahead.grad_lines = divide_up(ahead.grads.lines(), turns);
    Ahead* const fetched = ahead.source_lines + ahead.grad_lines > 0 ? &ahead : nullptr;
    float* const own_sums = sums + programs.slots_before(unit.group, slice);
    for (int64_t s = 0; s < series; ++s) {
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t line = lines * run / runs, count = lines * (run + 1) / runs - line;
        program(
            planes + s * plan.bundle_floats + line * plan.line_floats,
            grads + s * plan.grad_bundle_floats + line * plan.grad_line_floats, own_sums,
            masks.empty() ? nullptr : &masks[static_cast<size_t>(line * kMaskStride)], count, fetched);
      }
    }
  }
}

}  // namespace

bool weight_gradient_by_programs(
    const Lattice& lattice, const SparsePattern& pattern, void* grad_values, const Threads& threads) {
  if (!may_have_programs(pattern)) return false;
  const WeightPlan plan = make_weight_plan(lattice, pattern.nonzeros, threads.count);
  if (!plan.is_worth_it) return false;
  const std::shared_ptr<const WeightPrograms> programs =
      cached_weight_programs(key_of(lattice, plan, pattern, threads), lattice, plan, pattern, threads);
  const int64_t slots = programs->slots();
  float* sums;  // [chunk][slot]
  Pieces shared;
  shared.add(&sums, plan.chunks * slots);
  const Trim trim{call_arena};
  shared.allocate(call_arena);
  threads.run(lattice.groups * plan.chunks * plan.parts, [&](int64_t begin, int64_t end) {
    const Trim trim{worker_arena};
    for (int64_t item = begin; item < end;) {
      // parts that follow each other share a unit's planes
      const int64_t part = item % plan.parts, count = std::min(plan.parts - part, end - item);
      const int64_t group = item / plan.parts % lattice.groups, chunk = item / plan.parts / lattice.groups;
      const int64_t first = first_slice_of(plan, pattern, lattice.dest_channels, group, part);
      const int64_t last = first_slice_of(plan, pattern, lattice.dest_channels, group, part + count);
      float* const own = sums + chunk * slots;
      const int64_t first_slot = programs->slots_before(group, first), last_slot = programs->slots_before(group, last);
      std::memset(own + first_slot, 0, static_cast<size_t>(last_slot - first_slot) * sizeof(float));
      const int64_t until = plan.units() * (chunk + 1) / plan.chunks;
      const auto unit_of = [&](int64_t u) { return bundle_unit_at(lattice, plan, plan.unit_bundles, group, u); };
      for (int64_t u = plan.units() * chunk / plan.chunks; u < until && first < last; ++u) {
        const BundleUnit unit = unit_of(u), next = unit_of(std::min(u + 1, until - 1));
        run_unit(lattice, plan, *programs, unit, u + 1 < until ? &next : nullptr, first, last, own);
      }
      item += count;
    }
  });
  // Back into the pattern's order, the chunks added up.
  constexpr int64_t kPiece = 1024;
  const int32_t* const slot_of = programs->slot_of().data();
  const auto collect = [&](int64_t begin, int64_t end) {
    float values[kPiece];
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece, count = std::min(kPiece, pattern.nonzeros - first);
      for (int64_t i = 0; i < count; ++i) {
        const float* const sum = sums + slot_of[first + i];
        values[i] = sum[0];
        for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) values[i] += sum[chunk * slots];
      }
      cpu_kernels().narrow(values, count, lattice.source.dtype, grad_values, first);
    }
  };
  const int64_t pieces = divide_up(pattern.nonzeros, kPiece);
  constexpr int64_t kSerial = 16;
  if (pieces < kSerial) {
    collect(0, pieces);
  } else {
    threads.run(pieces, collect);
  }
  return true;
}

}  // namespace sparsekernels
