#include "sparse_conv2d/jit/plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/caches.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels {
namespace {

// Four slices of so many rows are whole lines of a tensor whose channels are neighbours.
constexpr int64_t kWholeLineRows = 28;

// An image block's planes stay in L2 while all slices go by: strips of it, where it is too large.
int64_t room_for_planes() {
  return caches().l2_lines * 16 * cost::forward::kPlanesPercentOfL2 / 100;
}

void cut(const Lattice& lattice, JitPlan& plan, int d, int64_t strips, int64_t multiple) {
  cut_image_blocks(lattice, d, strips, multiple, Lanes::kAnything, plan);
}

// Results of so many rows wait to be written.
int64_t waiting_rows(const Lattice& lattice) {
  const int64_t slices = lattice.dest.stride[1] == 1 ? kMostWriteSlices : 1;
  return std::min(lattice.dest_channels, slices * kMostSliceRows) * lattice.residues();
}

int64_t waiting_floats(const Lattice& lattice, const JitPlan& plan) {
  return plan.lines(plan.strip[0], plan.strip[1]) * waiting_rows(lattice) * 16;
}

void cut_to_room(const Lattice& lattice, JitPlan& plan) {
  const int64_t room = room_for_planes();
  const auto too_large = [&] { return plan.image_block_floats > room || waiting_floats(lattice, plan) > room / 2; };
  const auto times = [&] {
    return std::max<int64_t>(2, std::max(plan.image_block_floats, 2 * waiting_floats(lattice, plan)) / room);
  };
  // not so far that most of a strip is what it shares with the next
  const int64_t least = std::max<int64_t>(1, lattice.most_shift[0]);
  if (too_large())
    for (int64_t n = times(); too_large() && plan.strip[0] > least; ++n)
      cut(lattice, plan, 0, std::min(n, divide_up(lattice.size[0], least)), 1);
  if (lattice.most_shift[1] == 0 && too_large())
    for (int64_t n = times(); too_large() && plan.strip[1] > cost::forward::kFewestStripColumns; ++n)
      cut(lattice, plan, 1, n, 16);
}

// Loads of lines for each multiply-add: a line is loaded once for all rows of a slice that need it.
double loads_of(double density, double rows) {
  return (1 - std::pow(1 - density, rows)) / (rows * density);
}

// Whether lines of results lie in the tensor as they are computed: 16 neighbouring elements, rows without gaps.
bool has_no_gaps(const Lattice& lattice, const JitPlan& plan) {
  const Activation& dest = lattice.dest;
  constexpr int64_t kFarthestRow = int64_t{1} << 24;  // whose displacement fits an instruction
  const bool rows_follow = plan.strip[0] == 1 || (dest.stride[2] == plan.pitch && plan.strips[1] == 1);
  return lattice.residues() == 1 && dest.dtype == DType::kFloat32 && dest.stride[3] == 1 &&
         plan.pitch == plan.strip[1] && rows_follow && dest.stride[1] < kFarthestRow &&
         !transposes_channels(dest, lattice.dest_channels);
}

// Nanoseconds on one core, by cost_model.h. A multiply-add, the loads of lines, nearly
// twice as long across a border between two cache lines, and what comes up from L2; then what is read and
// written, interleaved in stages.
double cost_of(const Lattice& lattice, const JitPlan& plan, double nonzeros) {
  using namespace cost::forward;
  const double taps = static_cast<double>(lattice.taps.size()) / static_cast<double>(lattice.residues());
  const double sources = static_cast<double>(lattice.groups * lattice.source_channels);
  const double results = static_cast<double>(lattice.groups * lattice.dest_channels * lattice.residues());
  const double weights = static_cast<double>(lattice.source_channels) * taps * results;
  const double density = std::min(1.0, std::max(1e-6, nonzeros / weights));
  const double rows = static_cast<double>(evened(lattice.dest_channels, kMostSliceRows));
  const double loads = loads_of(density, rows) * (plan.line_floats != 16 ? 1 : kUnalignedLoad);
  // the lines above are still in L1, unless rows are long
  const int64_t above = plan.pitch * plan.images <= kShortRow ? 1 : lattice.most_shift[0] + 1;
  const double fetched = static_cast<double>(plan.phases * above) / (taps * rows * density);
  const double product = kMultiplyAdd + kLoad * loads + kFetch * fetched;

  const double image_blocks = static_cast<double>(plan.image_blocks * plan.strips[0] * plan.strips[1]);
  const double lines = image_blocks * static_cast<double>(plan.lines(plan.strip[0], plan.strip[1]));
  const double read = image_blocks * static_cast<double>(plan.phases * plan.phase_floats) / 16;
  double stages = 0;
  for (int64_t images = 1; images < plan.images; images *= 2) ++stages;
  const bool reads_channels = lattice.source.stride[1] == 1, writes_channels = lattice.dest.stride[1] == 1;
  return lines * nonzeros * product +
         read * sources * (reads_channels ? cost::kReadChannels : cost::kReadColumns + cost::kReadStage * stages) +
         lines * results *
             (plan.direct       ? kWriteDirect
              : writes_channels ? kWriteChannels
                                : kWriteColumns + kWriteStage * stages);
}

void choose_block(const Lattice& lattice, JitPlan& plan, double density) {
  using namespace cost::forward;
  // The lines of a channel that neighbouring positions share: those of the last rows and columns.
  const double across = static_cast<double>(16 + lattice.most_shift[1] * plan.images) / 16 +
                        (plan.line_floats == 16 ? kUnalignedLines : 0);
  std::vector<std::pair<int64_t, int64_t>> read;  // rows of planes
  for (const Tap& tap : lattice.taps)
    if (tap.reaches) read.push_back({tap.phase[0], tap.shift[0]});
  std::sort(read.begin(), read.end());
  const int64_t rows_read = std::unique(read.begin(), read.end()) - read.begin();
  const int64_t windows = static_cast<int64_t>(plan.first_column.size()) * std::max<int64_t>(1, rows_read);
  const double window = static_cast<double>(windows) * across;
  const double by_lines = kVectorsOfL1 * static_cast<double>(caches().l1_lines) / window;
  const double rows = static_cast<double>(evened(lattice.dest_channels, kMostSliceRows));
  const double taps = static_cast<double>(lattice.taps.size()) / static_cast<double>(lattice.residues());
  const double by_code = kMostKernelNonzeros / std::max(1e-3, rows * taps * density);
  const int64_t most = static_cast<int64_t>(std::max(1.0, std::min({by_lines, by_code, 1e9})));
  plan.block_channels = evened(lattice.source_channels, std::min(lattice.source_channels, most));
  plan.blocks = divide_up(lattice.source_channels, plan.block_channels);
}

void choose_work_item(const Lattice& lattice, JitPlan& plan, int64_t threads) {
  using namespace cost::forward;
  const int64_t room = room_for_planes();
  // Enough lines to be worth the code, but no more: what is read and written goes through L2 as well.
  const int64_t lines = plan.lines(plan.strip[0], plan.strip[1]);
  const int64_t few = std::min(room / plan.image_block_floats, divide_up(kEnoughItemVectors, lines));
  plan.item_image_blocks = std::max(few, room / 3 / (plan.image_block_floats + waiting_floats(lattice, plan)));
  plan.item_image_blocks = std::max<int64_t>(1, plan.item_image_blocks);
  plan.item_image_blocks = evened(plan.image_blocks, std::min(plan.image_blocks, plan.item_image_blocks));
  const auto uneven = [&] {
    const int64_t items = lattice.groups * plan.work_items();
    return items < cost::kItemsPerThread * threads && items % threads != 0;
  };
  const int64_t most = plan.item_image_blocks;
  while (uneven() && plan.item_image_blocks > 1) --plan.item_image_blocks;
  if (uneven()) plan.item_image_blocks = most;
  plan.item_image_blocks = evened(plan.image_blocks, plan.item_image_blocks);
  // smaller strips, as long as there is work for each
  const int64_t strips = plan.strips[0];
  for (int64_t n = strips + 1; uneven() && n <= strips + threads && n <= lattice.size[0]; ++n) {
    cut(lattice, plan, 0, n, 1);
    if (plan.strip[0] < std::max(kFewestStripRows, lattice.most_shift[0])) {
      cut(lattice, plan, 0, strips, 1);
      break;
    }
  }
  const int64_t most_parts = std::max<int64_t>(1, lattice.dest_channels / kFewestSharedRows);
  for (plan.parts = 1; plan.parts < most_parts; ++plan.parts) {
    const int64_t items = lattice.groups * plan.work_items() * plan.parts;
    if (items >= cost::kItemsPerThread * threads || items % threads == 0) break;
  }
}

}  // namespace

JitPlan make_jit_plan(
    const Lattice& lattice, int64_t nonzeros, int epilogue_flags, int64_t threads, int64_t images, int64_t most_images,
    int64_t dest_images) {
  using namespace cost::forward;
  JitPlan best = {};
  double best_cost = 0;
  const int64_t batch = lattice.source.size[0], rows = lattice.dest_channels;
  for (int64_t one = images == 0 ? 1 : images; one <= (images == 0 ? most_images : images); one *= 2) {
    // as few as fill lines: an image block of many lines has too large planes
    if (images == 0 && one > 1 &&
        (one / 2 >= batch || one * lattice.size[0] * lattice.size[1] > kMostInterleavedVectors * 16))
      break;
    JitPlan plan = {};
    lay_out_image_blocks(lattice, one, Lanes::kAnything, plan);
    cut_to_room(lattice, plan);
    plan.gapless = has_no_gaps(lattice, plan);
    plan.direct = plan.gapless && plan.images == dest_images;
    const double cost = cost_of(lattice, plan, static_cast<double>(nonzeros));
    if (best_cost != 0 && cost >= best_cost) continue;
    best = plan;
    best_cost = cost;
  }
  best.threads = best_cost * (1 - 1 / static_cast<double>(threads)) < kSharing ? 1 : threads;
  best.epilogue_flags = best.direct ? epilogue_flags : 0;
  best.residual_channel = lattice.dest.stride[1];
  const bool writes_channels = lattice.dest.stride[1] == 1 && rows > kMostSliceRows;
  const bool planes_fit = best.image_block_floats <= kMostRooms * room_for_planes();
  best.slices = divide_up(rows, writes_channels ? kWholeLineRows : kMostSliceRows);
  choose_work_item(lattice, best, best.threads);
  best.slices = std::min(rows, divide_up(best.slices, best.parts) * best.parts);
  best.write_slices = 1;
  if (writes_channels && best.parts == 1 && !best.direct) {
    best.slice_rows = kWholeLineRows;
    best.write_slices = kMostWriteSlices;
  }
  const double weights =
      static_cast<double>(lattice.groups * rows * lattice.source_channels) * static_cast<double>(lattice.taps.size());
  choose_block(lattice, best, static_cast<double>(nonzeros) / weights);
  const double per_row =
      static_cast<double>(nonzeros) / static_cast<double>(lattice.groups * rows * lattice.residues());
  best.is_worth_it = rows >= kFewestRows && planes_fit &&
                     (best.blocks == 1 || per_row >= kFewestProducts * static_cast<double>(best.blocks));
  return best;
}

}  // namespace sparsekernels
