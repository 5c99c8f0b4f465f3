// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/weight_gradient_plan.h"

#include <algorithm>
#include <cmath>

#include "base/caches.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/jit/pack_calls.h"

namespace sparsekernels::jit {
namespace {

double density_of(const Lattice& lattice, int64_t nonzeros) {
  const double weights = static_cast<double>(lattice.groups * lattice.dest_channels * lattice.source_channels) *
                         static_cast<double>(lattice.taps.size());
  return std::min(1.0, std::max(1e-6, static_cast<double>(nonzeros) / weights));
}

// A run's gradients of a slice are to stay in L1 while the slice's columns go by.
void choose_runs(const Lattice& lattice, WeightGradientPlan& plan, double density) {
  using namespace cost::weight_gradient;
  const double held = static_cast<double>(caches().l1_lines);
  const double best =
      std::min(kManyRunVectors, std::max(kFewestRunVectors, std::sqrt(kLaneSumToL2Load * held * density)));
  const double rows = static_cast<double>(lattice.dest_channels);
  plan.slices = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(rows * best / held - kSliceTolerance)));
  plan.slice_rows = divide_up(lattice.dest_channels, plan.slices);
  if (plan.slices > 1) plan.slice_rows = divide_up(plan.slice_rows, kLanes) * kLanes;  // that are transposed at once
  plan.slices = divide_up(lattice.dest_channels, plan.slice_rows);
  plan.run_vectors =
      std::lround(std::min(kMostRunVectors, std::max(best, held / static_cast<double>(plan.slice_rows))));
}

void lay_out_grads(WeightGradientPlan& plan) {
  // to the end of the last row: that is how far zeros are written
  const int64_t vectors = plan.vectors(plan.strip[0], plan.pitch), rows = plan.slice_rows;
  // an odd number of vectors from one to the next, as in Layout
  if (plan.pitch * plan.images % kLanes == 0 || plan.strip[0] == 1) {
    plan.grad_vector_stride = (std::max<int64_t>(rows, 2) | 1) * kLanes;
    plan.grad_channel_floats = kLanes;
    plan.grad_microbatch_floats = vectors * plan.grad_vector_stride;
  } else {
    plan.grad_vector_stride = kLanes;
    plan.grad_channel_floats = (vectors | 1) * kLanes;
    plan.grad_microbatch_floats = rows * plan.grad_channel_floats;
  }
  plan.microbatches_follow = plan.strips[0] * plan.strips[1] == 1 && plan.masks.empty() &&
                             plane_order(plan.vector_stride) == PlaneOrder::kInterleaved &&
                             plane_order(plan.grad_vector_stride) == PlaneOrder::kInterleaved &&
                             plan.microbatch_floats == vectors * plan.vector_stride &&
                             vectors == plan.vectors(plan.strip[0], plan.strip[1]);
}

// Strips whose planes and gradients fit, as long as they have some vectors.
bool cut_strips(const Lattice& lattice, WeightGradientPlan& plan) {
  using namespace cost::weight_gradient;
  const auto vectors = [&] { return plan.vectors(plan.strip[0], plan.strip[1]); };
  const int64_t least = std::max<int64_t>(1, lattice.most_shift[0]);
  bool possible = true;
  const auto cut = [&](int d, int64_t n, int64_t multiple) {
    possible = cut_microbatches(lattice, d, n, multiple, Lanes::kZeros, plan);
    lay_out_grads(plan);
  };
  for (int64_t n = 2; possible && plan.floats() > planes_and_grads_budget() && plan.strip[0] > least &&
                      vectors() > kFewestStripVectors;
       ++n)
    cut(0, std::min(n, divide_up(lattice.size[0], least)), 1);
  if (!lattice.is_flat()) return possible;
  if (vectors() > kMostStripVectors) cut(1, divide_up(vectors(), kStripVectors), kLanes);
  for (int64_t n = plan.strips[1] + 1;
       possible && plan.floats() > planes_and_grads_budget() && plan.strip[1] > kLanes * kFewestStripVectors; ++n)
    cut(1, n, kLanes);
  return possible;
}

// Nanoseconds on one core, as in forward_plan.cpp. A run's products, then what it costs whatever its length: to sum
// up lanes, to add the sums up in memory, and to bring up code and sums that do not fit L2.
double weight_gradient_cost(const Lattice& lattice, const WeightGradientPlan& plan, double nonzeros) {
  using namespace cost::weight_gradient;
  const double strips = static_cast<double>(plan.microbatches * plan.strips[0] * plan.strips[1]);
  const double vectors = strips * static_cast<double>(plan.vectors(plan.strip[0], plan.strip[1]));
  const double planes = strips * static_cast<double>(plan.phases * plan.phase_floats) / kLanes;
  double stages = 0;
  for (int64_t images = 1; images < plan.images; images *= 2) ++stages;
  const auto read = [&](const Activation& tensor, int64_t channels) {
    return static_cast<double>(lattice.groups * channels) *
           (tensor.stride[1] == 1 ? cost::kReadChannels : cost::kReadColumns + cost::kReadStage * stages);
  };
  const double most =
      plan.microbatches_follow ? vectors : static_cast<double>(plan.vectors(plan.strip[0], plan.strip[1]));
  const bool streams = nonzeros * kBytes > static_cast<double>(caches().l2_lines) * kLineBytes * kStreamedOfL2;
  const double product = kMultiplyAdd + (streams ? kStreamedRun : kRun) / std::min(kLongRunVectors, most);
  return vectors * nonzeros * product + planes * read(lattice.source, lattice.source_channels) +
         vectors * read(lattice.dest, lattice.dest_channels);
}

}  // namespace

int64_t planes_and_grads_budget() {
  return caches().l2_lines * kLanes * cost::weight_gradient::kPlanesPercentOfL2 / 100;
}

namespace {

// Work items, chunks and shares of a plan whose strips and slices are chosen. An item has at least `least`
// micro-batches.
void share_work(
    const Lattice& lattice, int64_t least, int64_t budget, int64_t nonzeros, int64_t threads,
    WeightGradientPlan& plan) {
  using namespace cost::weight_gradient;
  const int64_t few = std::max(least, plan.microbatches * plan.strips[0] * plan.strips[1] / kMostChunks);
  plan.item_microbatches = std::max<int64_t>(1, std::min({budget / plan.floats(), few, plan.microbatches}));
  // as much work for each chunk
  const int64_t most = plan.item_microbatches;
  while (plan.item_microbatches > least && plan.work_items() % kMostChunks != 0) --plan.item_microbatches;
  if (plan.work_items() % kMostChunks != 0) plan.item_microbatches = most;
  plan.item_microbatches = evened(plan.microbatches, plan.item_microbatches);
  plan.chunks = std::max<int64_t>(1, std::min({kMostChunks, plan.work_items(), kMostPartialFloats / nonzeros}));
  const int64_t items = lattice.groups * plan.chunks;
  for (plan.thread_shares = 1; plan.thread_shares < plan.slices; ++plan.thread_shares)
    if (items * plan.thread_shares >= cost::kItemsPerThread * threads || items * plan.thread_shares % threads == 0)
      break;
}

// The rows that are lanes of one or two vectors, where enough of these are used; else 0.
int64_t rows_in_lanes(int64_t alike, int64_t rows) {
  using namespace cost::weight_gradient;
  constexpr int64_t kMost = 2 * kLanes;
  int64_t slice = std::min(alike, rows);
  if (slice > kMost) {
    slice = alike >= rows ? kMost : 0;
    for (int64_t part = kMost; part > kLanes / 2 && slice == 0; --part)
      if (alike % part == 0) slice = part;
  }
  const int64_t lanes = divide_up(slice, kLanes) * kLanes;
  return static_cast<double>(slice) >= kFewestUsedLanes * static_cast<double>(lanes) ? slice : 0;
}

// Whether lanes are rows; then the plan.
bool plan_rows_as_lanes(
    const Lattice& lattice, const PatternTraits& traits, int64_t threads, WeightGradientPlan& plan) {
  using namespace cost::weight_gradient;
  plan.slice_rows = rows_in_lanes(traits.rows_alike, lattice.dest_channels);
  if (plan.slice_rows == 0 || traits.nonzeros == 0) return false;
  plan.row_lanes = divide_up(plan.slice_rows, kLanes) * kLanes;
  plan.rows_alike = traits.rows_alike;
  plan.slices = divide_up(lattice.dest_channels, plan.slice_rows);
  int64_t images = 1;  // of one pixel, that follow each other
  while (lattice.size[0] * lattice.size[1] == 1 && images < std::min<int64_t>(kMostImages, lattice.source.size[0]))
    images *= 2;
  lay_out_microbatches(lattice, images, Lanes::kNone, plan);
  const auto lay_out_gradients = [&] {
    plan.grad_channel_floats = plan.row_lanes;  // from position to position
    plan.grad_vector_stride = kLanes;
    plan.grad_microbatch_floats = plan.strip[0] * plan.strip[1] * plan.images * plan.row_lanes;
  };
  lay_out_gradients();
  const int64_t budget = planes_and_grads_budget() * kRowsPlanesPercent / 100;
  const int64_t least = std::max<int64_t>(1, lattice.most_shift[0]);
  for (int64_t n = 2; plan.floats() > budget && plan.strip[0] > least; ++n) {
    cut_microbatches(lattice, 0, std::min(n, divide_up(lattice.size[0], least)), 1, Lanes::kNone, plan);
    lay_out_gradients();
  }
  for (int64_t n = 2; lattice.is_flat() && plan.floats() > budget && plan.strip[1] > kMostRowRun; ++n) {
    cut_microbatches(lattice, 1, n, kLanes, Lanes::kNone, plan);
    lay_out_gradients();
  }
  plan.run_vectors = 1;
  plan.is_possible = true;
  share_work(lattice, 1, budget, traits.nonzeros, threads, plan);
  return true;
}

}  // namespace

WeightGradientPlan make_weight_gradient_plan(const Lattice& lattice, const PatternTraits& traits, int64_t threads) {
  using namespace cost::weight_gradient;
  const int64_t nonzeros = traits.nonzeros;
  WeightGradientPlan by_rows = {};
  if (plan_rows_as_lanes(lattice, traits, threads, by_rows)) return by_rows;
  WeightGradientPlan best = {};
  double best_cost = 0;
  for (int64_t images = 1; images <= kMostImages; images *= 2) {
    if (images > 1 && images / 2 >= lattice.source.size[0]) break;
    WeightGradientPlan plan = {};
    choose_runs(lattice, plan, density_of(lattice, nonzeros));
    plan.rows_alike = traits.rows_alike;
    if (plan.rows_alike > 1) plan.run_vectors = kTileRunVectors;
    const bool possible = lay_out_microbatches(lattice, images, Lanes::kZeros, plan);
    lay_out_grads(plan);
    if (!possible || !cut_strips(lattice, plan)) continue;
    const double cost = weight_gradient_cost(lattice, plan, static_cast<double>(nonzeros));
    if (best_cost != 0 && cost >= best_cost) continue;
    best = plan;
    best_cost = cost;
  }
  best.is_possible = best_cost != 0;
  if (!best.is_possible) return best;
  // Threads share chunks first: of those no vector is read twice.
  const int64_t vectors = best.vectors(best.strip[0], best.strip[1]);
  const int64_t least = std::max<int64_t>(1, best.run_vectors / vectors);
  share_work(lattice, least, planes_and_grads_budget(), nonzeros, threads, best);
  best.run_vectors = std::min(best.run_vectors, best.microbatches_follow ? best.item_microbatches * vectors : vectors);
  return best;
}

}  // namespace sparsekernels::jit
