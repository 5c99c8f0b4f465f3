// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How threads share products by tiles of vectors: columns of b are packed by all of them, or one thread has it all.
#include <algorithm>

#include "base/workspace.h"
#include "isa/kernels.h"
#include "masked_matmul/masked_product.h"

namespace sparsekernels {
namespace {

thread_local Workspace worker_workspace, packed_workspace;

constexpr int64_t kPackedFloats = 1 << 21;  // of b, packed, which threads share
constexpr double kThreadCycles = 60e3;      // of work that is worth a thread

// Columns of the products of a batch that are packed at a time, and what of them one thread or all of them compute.
class TileGroups {
 public:
  TileGroups(const MaskedProducts& products, const Threads& threads)
      : products_(products), threads_(threads), rows_(products.first.dest.rows), cols_(products.first.dest.cols) {
    const int64_t depth = std::max<int64_t>(1, products.first.a.cols);
    const int64_t most = std::clamp<int64_t>(kPackedFloats / depth / 64 * 64, 64, kMostPartCols);
    const int64_t parts = (cols_ + most - 1) / most;
    width_ = padded((cols_ + parts - 1) / parts, 64);
    parts_ = (cols_ + width_ - 1) / width_;
    packed_ = depth * padded(std::min(width_, cols_), kTileCols);
    own_ = kernels().tiles_workspace(width_);
  }

  void run() const {
    const int64_t groups = products_.count * parts_;
    if (threads_.count > 1 && groups < 2 * threads_.count && cycles() / static_cast<double>(groups) > kThreadCycles) {
      for (int64_t i = 0; i < groups; ++i) run_together(i);
      return;
    }
    const auto one_by_one = [&](int64_t begin, int64_t end) {
      const TrimWorkspace trim{worker_workspace};
      WorkspaceLayout own;
      float *packed = nullptr, *workspace = nullptr;
      own.add(&packed, packed_);
      own.add(&workspace, own_);
      own.allocate(worker_workspace);
      for (int64_t i = begin; i < end; ++i) {
        const MaskedProduct product = product_at(products_, i / parts_);
        const int64_t col = i % parts_ * width_, col_end = std::min(cols_, col + width_);
        kernels().pack_tiles(product, col, col_end, 0, product.b.rows, packed);
        kernels().run_tiles(product, {0, rows_, col, col_end}, packed, workspace);
      }
    };
    if (groups == 1 || cycles() < 2 * kThreadCycles) return one_by_one(0, groups);
    threads_.run(groups, one_by_one);
  }

 private:
  static const MaskedKernels& kernels() { return cpu_kernels().masked; }

  // Of a core, for all of them.
  double cycles() const {
    const double depth = static_cast<double>(products_.first.a.cols), count = static_cast<double>(products_.count);
    double tiles = count * static_cast<double>(padded(rows_, kTileRows) / kTileRows * padded(cols_, 32) / kTileCols);
    if (!products_.offsets.dest_tiles.empty()) {
      int64_t kept = 0;
      for (const uint64_t word : products_.tile_words) kept += __builtin_popcountll(word);
      const double masks = static_cast<double>(products_.tile_words.size());
      const TileMap& map = products_.first.dest_tiles;
      tiles = count * static_cast<double>(kept) /
              std::max(1.0, masks / static_cast<double>(padded(rows_, kTileRows) / kTileRows * map.row_words));
    }
    return tiles * depth * 9 + count * static_cast<double>(cols_) * (depth * 0.5 + static_cast<double>(rows_) * 0.2);
  }

  void run_together(int64_t i) const {
    const MaskedProduct product = product_at(products_, i / parts_);
    const int64_t col = i % parts_ * width_, col_end = std::min(cols_, col + width_), depth = product.b.rows;
    const TrimWorkspace trim{packed_workspace};
    float* const packed = packed_workspace.floats(static_cast<size_t>(packed_));
    const int64_t step = std::max(kPartRows, padded((depth + threads_.count - 1) / threads_.count, kPartRows));
    if (depth > 0)
      threads_.run((depth + step - 1) / step, [&](int64_t begin, int64_t end) {
        kernels().pack_tiles(product, col, col_end, begin * step, std::min(depth, end * step), packed);
      });
    const std::vector<int64_t> ends = row_ends(product, col, col_end);
    threads_.run(static_cast<int64_t>(ends.size()), [&](int64_t begin, int64_t end) {
      const TrimWorkspace trim_own{worker_workspace};
      WorkspaceLayout own;
      float* workspace = nullptr;
      own.add(&workspace, own_);
      own.allocate(worker_workspace);
      for (; begin < end; ++begin) {
        const int64_t from = begin == 0 ? 0 : ends[static_cast<size_t>(begin - 1)];
        kernels().run_tiles(product, {from, ends[static_cast<size_t>(begin)], col, col_end}, packed, workspace);
      }
    });
  }

  // Ends of rows for each thread, which share the work evenly.
  std::vector<int64_t> row_ends(const MaskedProduct& product, int64_t col, int64_t col_end) const {
    const TileMap map = product.dest_tiles;
    const int64_t first = col / kTileCols, last = (col_end + kTileCols - 1) / kTileCols;
    // what a block of 32 rows costs, in tiles: besides those it keeps, its zeros and its rows of a
    const double others =
        static_cast<double>(col_end - col) * 32 * 0.05 / (9 * static_cast<double>(product.b.rows + 1));
    std::vector<double> work;
    double all = 0;
    for (int64_t row = 0; row < rows_; row += kPartRows) {
      double tiles = 0;
      for (int64_t tile = row / kTileRows; tile < (std::min(rows_, row + kPartRows) + kTileRows - 1) / kTileRows;
           ++tile)
        if (map.words == nullptr) {
          tiles += static_cast<double>(last - first);
        } else {
          for (int64_t at = first / 64; at * 64 < last; ++at) {
            uint64_t word = map.words[tile * map.row_words + at];
            if (at * 64 < first) word &= ~uint64_t{0} << (first % 64);
            if (at * 64 + 64 > last) word &= (uint64_t{1} << (last % 64)) - 1;
            tiles += static_cast<double>(__builtin_popcountll(word));
          }
        }
      work.push_back(tiles + (tiles > 0 ? 1.0 : 0.0) + others);
      all += work.back();
    }
    std::vector<int64_t> ends;
    double done = 0;
    for (size_t i = 0; i < work.size(); ++i) {
      done += work[i];
      const double share = all * static_cast<double>(ends.size() + 1) / static_cast<double>(threads_.count);
      const double next = i + 1 < work.size() ? work[i + 1] : 0;
      if (i + 1 < work.size() && done + next / 2 < share) continue;
      ends.push_back(std::min(rows_, static_cast<int64_t>(i + 1) * kPartRows));
    }
    return ends;
  }

  const MaskedProducts& products_;
  const Threads& threads_;
  int64_t rows_, cols_, width_ = 0, parts_ = 0, packed_ = 0, own_ = 0;
};

}  // namespace

void run_tile_groups(const MaskedProducts& products, const Threads& threads) {
  TileGroups(products, threads).run();
}

}  // namespace sparsekernels
