// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/forward_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/caches.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::jit {
namespace {

// The most rows of a slice of which kMostWriteSlices are whole cache lines of a tensor whose channels are neighbors.
constexpr int64_t kWholeLineRows = 28;
static_assert(kMostWriteSlices * kWholeLineRows % kLanes == 0 && kWholeLineRows <= kMostSliceRows, "whole lines");

void cut(const Lattice& lattice, ForwardPlan& plan, int d, int64_t strips, int64_t multiple) {
  cut_microbatches(lattice, d, strips, multiple, Lanes::kAnything, plan);
}

// Of L2, in floats, for the planes of a micro-batch.
int64_t budget_of(const ForwardPlan& plan) {
  return !plan.has_tiles() ? planes_budget() : planes_budget() * cost::forward::kLoopPlanesPercent / 100;
}

// Rows of a slice of whole blocks. More where whole cache lines of a tensor whose channels are neighbors are written.
int64_t loop_slice_rows(const Lattice& lattice, const ForwardPlan& plan) {
  const int64_t wanted = lattice.dest.stride[1] == 1 ? 4 * kLanes : 2 * kLanes;
  return std::max<int64_t>(1, wanted / plan.block_rows) * plan.block_rows;
}

// The number of rows whose results wait to be written.
int64_t waiting_rows(const Lattice& lattice, const ForwardPlan& plan) {
  if (plan.scatter_channels != 0) return lattice.dest_channels * lattice.residues();
  if (plan.block_rows != 0) return std::min(lattice.dest_channels, loop_slice_rows(lattice, plan)) * lattice.residues();
  const int64_t slices = lattice.dest.stride[1] == 1 ? kMostWriteSlices : 1;
  return std::min(lattice.dest_channels, slices * kMostSliceRows) * lattice.residues();
}

int64_t waiting_floats(const Lattice& lattice, const ForwardPlan& plan) {
  return plan.vectors(plan.strip[0], plan.strip[1]) * waiting_rows(lattice, plan) * kLanes;
}

void cut_to_room(const Lattice& lattice, ForwardPlan& plan) {
  using namespace cost::forward;
  const int64_t budget = budget_of(plan);
  const auto too_large = [&] {
    return plan.microbatch_floats > budget || waiting_floats(lattice, plan) > budget / kBudgetsOfResults;
  };
  const auto times = [&] {
    return std::max<int64_t>(
        2, std::max(plan.microbatch_floats, kBudgetsOfResults * waiting_floats(lattice, plan)) / budget);
  };
  // not so far that most of a strip is what it shares with the next
  const int64_t least = std::max<int64_t>(1, lattice.most_shift[0]);
  if (too_large())
    for (int64_t n = times(); too_large() && plan.strip[0] > least; ++n)
      cut(lattice, plan, 0, std::min(n, divide_up(lattice.size[0], least)), 1);
  if (lattice.most_shift[1] == 0 && too_large())
    for (int64_t n = times(); too_large() && plan.strip[1] > kFewestStripColumns; ++n) cut(lattice, plan, 1, n, kLanes);
}

// Loads of vectors for each multiply-add: a vector is loaded once for all rows of a slice that need it.
double loads_of(double density, double rows) {
  return (1 - std::pow(1 - density, rows)) / (rows * density);
}

// The share of the products, over all positions and taps, that loops compute: of a vector, taps that read nothing but
// padding are left out. Where vectors go on from row to row, or from column to column, that is next to none.
double reached_part(const Lattice& lattice, const ForwardPlan& plan) {
  double result = 1;
  const bool by_dimension[2] = {plan.pitch * plan.images % kLanes == 0, plan.images == kLanes};
  for (size_t d = 0; d < 2; ++d) {
    if (!by_dimension[d]) continue;
    int64_t inside = 0;
    for (const Tap& tap : lattice.taps) {
      const int64_t from = lattice.origin[d] + lattice.phases[d][static_cast<size_t>(tap.phase[d])] +
                           tap.shift[d] * lattice.source_step[d];
      const int64_t step = lattice.source_step[d];
      const auto before = [&](int64_t end) {  // places from which less than `end` is read
        return std::min(lattice.size[d], std::max<int64_t>(0, end <= from ? 0 : divide_up(end - from, step)));
      };
      inside += before(lattice.source.size[2 + d]) - before(0);
    }
    result *=
        static_cast<double>(inside) / static_cast<double>(lattice.size[d]) / static_cast<double>(lattice.taps.size());
  }
  return result;
}

// Rows of which loops take as many as fit the registers: all that are alike, or even parts. 0: none.
int64_t block_rows_of(int64_t alike, int64_t rows) {
  using namespace cost::forward;
  constexpr int64_t kMany = 32, kMost = 128;
  if (alike < kFewestRowsAlike) return 0;
  if (alike <= kMany) return alike;
  if (alike >= rows) return kMany;
  for (int64_t part = kMany; part >= kMany / 4; --part)
    if (alike % part == 0) return part;
  return alike <= kMost ? alike : 0;
}

// The vectors of a tile for which a multiply-add loads least: a weight is loaded once for all of them, a vector once
// for all of the tile's rows.
int64_t choose_tile_vectors(int64_t block_rows) {
  int64_t best = 1;
  double best_loads = 0;
  for (int64_t vectors = 2; vectors <= kMostTileVectors; ++vectors) {
    const int64_t tiles = divide_up(block_rows, most_tile_rows(vectors));
    const double rows = static_cast<double>(block_rows) / static_cast<double>(tiles);
    const double loads = 1 / static_cast<double>(vectors) + cost::forward::kLoopVectorLoad / rows;
    if (best_loads != 0 && loads >= best_loads) continue;
    best = vectors;
    best_loads = loads;
  }
  return best;
}

// Whether vectors of results lie in the tensor as they are computed: 16 neighboring elements, rows without gaps.
bool has_no_gaps(const Lattice& lattice, const ForwardPlan& plan) {
  const Activation& dest = lattice.dest;
  constexpr int64_t kFarthestRow = int64_t{1} << 24;  // whose displacement fits an instruction
  const bool rows_follow = plan.strip[0] == 1 || (dest.stride[2] == plan.pitch && plan.strips[1] == 1);
  return lattice.residues() == 1 && dest.dtype == DType::kFloat32 && dest.stride[3] == 1 &&
         plan.pitch == plan.strip[1] && rows_follow && dest.stride[1] < kFarthestRow &&
         !transposes_channels(dest, lattice.dest_channels);
}

// Nanoseconds on one core, by cost_model.h. A multiply-add, the loads of vectors, nearly
// twice as long across a border between two cache lines, and what comes up from L2; then what is read and
// written, interleaved in stages.
double forward_cost(const Lattice& lattice, const ForwardPlan& plan, double nonzeros) {
  using namespace cost::forward;
  const double taps = static_cast<double>(lattice.taps.size()) / static_cast<double>(lattice.residues());
  const double sources = static_cast<double>(lattice.groups * lattice.source_channels);
  const double results = static_cast<double>(lattice.groups * lattice.dest_channels * lattice.residues());
  const double weights = static_cast<double>(lattice.source_channels) * taps * results;
  const double density = std::min(1.0, std::max(1e-6, nonzeros / weights));
  const double rows = static_cast<double>(evened(lattice.dest_channels, kMostSliceRows));
  const double loads =
      loads_of(density, rows) * (plane_order(plan.vector_stride) == PlaneOrder::kInterleaved ? 1 : kUnalignedLoad);
  // the vectors above are still in L1, unless rows are long
  const int64_t above = plan.pitch * plan.images <= kShortRow ? 1 : lattice.most_shift[0] + 1;
  const double l2_loads = static_cast<double>(plan.phases * above) / (taps * rows * density);
  const double alike =
      plan.scatter_channels == 0 ? 0 : static_cast<double>(evened(plan.scatter_channels, kMostScatterChannels));
  const double of_run = alike * static_cast<double>(lattice.dest_channels) * density * kMostScatterTileVectors;
  const double product = plan.scatter_channels != 0
                             ? kLoopMultiplyAdd * reached_part(lattice, plan) + kScatterRun / std::max(1.0, of_run)
                         : plan.block_rows != 0 ? kLoopMultiplyAdd * reached_part(lattice, plan)
                                                : kMultiplyAdd + kLoad * loads + kL2Load * l2_loads;

  const double microbatches = static_cast<double>(plan.microbatches * plan.strips[0] * plan.strips[1]);
  const double vectors = microbatches * static_cast<double>(plan.vectors(plan.strip[0], plan.strip[1]));
  const double read = microbatches * static_cast<double>(plan.phases * plan.phase_floats) / kLanes;
  double stages = 0;
  for (int64_t images = 1; images < plan.images; images *= 2) ++stages;
  const bool reads_channels = lattice.source.stride[1] == 1, writes_channels = lattice.dest.stride[1] == 1;
  return vectors * nonzeros * product +
         read * sources * (reads_channels ? cost::kReadChannels : cost::kReadColumns + cost::kReadStage * stages) +
         vectors * results *
             (plan.direct       ? kWriteDirect
              : writes_channels ? kWriteChannels
                                : kWriteColumns + kWriteStage * stages);
}

void choose_panel(const Lattice& lattice, ForwardPlan& plan, double density) {
  using namespace cost::forward;
  // The vectors of a channel that neighboring positions share: those of the last rows and columns.
  const double across = static_cast<double>(kLanes + lattice.most_shift[1] * plan.images) / kLanes +
                        (plane_order(plan.vector_stride) == PlaneOrder::kPlanar ? kUnalignedLines : 0);
  std::vector<std::pair<int64_t, int64_t>> read;  // rows of planes
  for (const Tap& tap : lattice.taps)
    if (tap.reaches) read.push_back({tap.phase[0], tap.shift[0]});
  std::sort(read.begin(), read.end());
  const int64_t rows_read = std::unique(read.begin(), read.end()) - read.begin();
  const int64_t windows = static_cast<int64_t>(plan.first_column.size()) * std::max<int64_t>(1, rows_read);
  const double window = static_cast<double>(windows) * across;
  const double by_vectors = kVectorsOfL1 * static_cast<double>(caches().l1_lines) / window;
  const double rows = static_cast<double>(evened(lattice.dest_channels, kMostSliceRows));
  const double taps = static_cast<double>(lattice.taps.size()) / static_cast<double>(lattice.residues());
  const double by_code = kMostKernelNonzeros / std::max(1e-3, rows * taps * density);
  const double by_products = kMostLoopProducts / std::max(1e-3, taps * density);
  const double by_all = plan.block_rows != 0 ? by_products : std::min(by_vectors, by_code);
  int64_t most = static_cast<int64_t>(std::max(1.0, std::min(by_all, 1e9)));
  if (plan.scatter_channels != 0) most = lattice.source_channels;  // sums are added up in memory
  plan.panel_channels = evened(lattice.source_channels, std::min(lattice.source_channels, most));
  plan.panels = divide_up(lattice.source_channels, plan.panel_channels);
}

void choose_work_item(const Lattice& lattice, ForwardPlan& plan, int64_t threads) {
  using namespace cost::forward;
  const int64_t budget = budget_of(plan);
  // Enough vectors to be worth the code, but no more: what is read and written goes through L2 as well.
  const int64_t vectors = plan.vectors(plan.strip[0], plan.strip[1]);
  const int64_t few = std::min(budget / plan.microbatch_floats, divide_up(kEnoughItemVectors, vectors));
  plan.item_microbatches =
      std::max(few, budget / kBudgetsOfItem / (plan.microbatch_floats + waiting_floats(lattice, plan)));
  plan.item_microbatches = std::max<int64_t>(1, plan.item_microbatches);
  if (plan.has_tiles() && plan.item_microbatches > plan.tile_vectors)  // whole tiles
    plan.item_microbatches = plan.item_microbatches / plan.tile_vectors * plan.tile_vectors;
  plan.item_microbatches = evened(plan.microbatches, std::min(plan.microbatches, plan.item_microbatches));
  const auto uneven = [&] {
    const int64_t items = lattice.groups * plan.work_items();
    return items < cost::kItemsPerThread * threads && items % threads != 0;
  };
  const int64_t most = plan.item_microbatches;
  while (uneven() && plan.item_microbatches > 1) --plan.item_microbatches;
  if (uneven()) plan.item_microbatches = most;
  plan.item_microbatches = evened(plan.microbatches, plan.item_microbatches);
  // smaller strips, as long as there is work for each
  const int64_t strips = plan.strips[0];
  for (int64_t n = strips + 1; uneven() && n <= strips + threads && n <= lattice.size[0]; ++n) {
    cut(lattice, plan, 0, n, 1);
    if (plan.strip[0] < std::max(kFewestStripRows, lattice.most_shift[0])) {
      cut(lattice, plan, 0, strips, 1);
      break;
    }
  }
  const int64_t most_shares = plan.block_rows != 0 ? divide_up(lattice.dest_channels, plan.block_rows)
                                                   : std::max<int64_t>(1, lattice.dest_channels / kFewestSharedRows);
  for (plan.thread_shares = 1; plan.thread_shares < most_shares; ++plan.thread_shares) {
    const int64_t items = lattice.groups * plan.work_items() * plan.thread_shares;
    if (items >= cost::kItemsPerThread * threads || items % threads == 0) break;
  }
}

}  // namespace

int64_t most_tile_rows(int64_t vectors) {
  // The sums, with vectors or weights, whichever are fewer, and one of the other, in 32 registers. A single vector is
  // the operand of multiply-adds with weights from memory.
  constexpr int64_t kMost[kMostTileVectors] = {24, 14, 8, 6, 5, 4, 3};
  return kMost[vectors - 1];
}

int64_t planes_budget() {
  return caches().l2_lines * kLanes * cost::forward::kPlanesPercentOfL2 / 100;
}

ForwardPlan make_forward_plan(
    const Lattice& lattice, const PatternTraits& traits, int epilogue_flags, int64_t threads,
    std::optional<int64_t> images, int64_t most_images, int64_t dest_images) {
  using namespace cost::forward;
  ForwardPlan best = {};
  double best_cost = 0;
  const int64_t batch = lattice.source.size[0], rows = lattice.dest_channels, nonzeros = traits.nonzeros;
  const int64_t block_rows = block_rows_of(traits.rows_alike, rows);
  const int64_t channels_alike = traits.channels_alike;
  for (int64_t one = images.value_or(1); one <= images.value_or(most_images); one *= 2) {
    // as few as fill vectors: a micro-batch of many vectors has too large planes
    if (!images && one > 1 &&
        (one / 2 >= batch || one * lattice.size[0] * lattice.size[1] > kMostInterleavedVectors * kLanes))
      break;
    for (const bool scatters : {false, true}) {
      ForwardPlan plan = {};
      plan.block_rows = block_rows;
      if (block_rows != 0) plan.tile_vectors = choose_tile_vectors(block_rows);
      lay_out_microbatches(lattice, one, Lanes::kAnything, plan);
      if (block_rows < kFewestPlanarRowsAlike && plane_order(plan.vector_stride) == PlaneOrder::kPlanar)
        plan.block_rows = plan.tile_vectors = 0;
      if (scatters && (plan.block_rows != 0 || channels_alike < kFewestChannelsAlike)) continue;
      if (scatters) {
        plan.scatter_channels = channels_alike;
        plan.tile_vectors = kMostScatterTileVectors;
      }
      cut_to_room(lattice, plan);
      plan.gapless = !scatters && has_no_gaps(lattice, plan);
      plan.direct = plan.gapless && plan.images == dest_images;
      const double cost =
          forward_cost(lattice, plan, static_cast<double>(nonzeros)) * (scatters ? kScatterHandicap : 1);
      if (best_cost != 0 && cost >= best_cost) continue;
      best = plan;
      best_cost = cost;
    }
  }
  best.threads = best_cost * (1 - 1 / static_cast<double>(threads)) < kSharing ? 1 : threads;
  best.epilogue_flags = best.direct ? epilogue_flags : 0;
  best.residual_channel = lattice.dest.stride[1];
  const bool writes_channels = lattice.dest.stride[1] == 1 && rows > kMostSliceRows;
  best.slices = divide_up(rows, writes_channels ? kWholeLineRows : kMostSliceRows);
  choose_work_item(lattice, best, best.threads);
  best.slices = std::min(rows, divide_up(best.slices, best.thread_shares) * best.thread_shares);
  best.write_slices = 1;
  if (best.block_rows != 0) {
    best.slice_rows = loop_slice_rows(lattice, best);
    while (best.slice_rows > best.block_rows && divide_up(rows, best.slice_rows) < best.thread_shares)
      best.slice_rows -= best.block_rows;
    best.slices = divide_up(rows, best.slice_rows);
    best.thread_shares = std::min(best.thread_shares, best.slices);
  } else if (best.scatter_channels != 0) {
    best.slice_rows = divide_up(divide_up(rows, best.thread_shares), kLanes) * kLanes;
    best.slices = divide_up(rows, best.slice_rows);
    best.thread_shares = std::min(best.thread_shares, best.slices);
  } else if (writes_channels && best.thread_shares == 1 && !best.direct) {
    best.slice_rows = kWholeLineRows;
    best.write_slices = kMostWriteSlices;
  }
  const double weights =
      static_cast<double>(lattice.groups * rows * lattice.source_channels) * static_cast<double>(lattice.taps.size());
  choose_panel(lattice, best, static_cast<double>(nonzeros) / weights);
  const int64_t results = lattice.groups * rows * lattice.residues();
  best.prefetches_dest = best.block_rows == 0 || !best.direct || nonzeros >= kFewestPrefetchingProducts * results;
  return best;
}

}  // namespace sparsekernels::jit
