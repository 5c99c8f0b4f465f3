// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

#include "masked_matmul/masked_product.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>

#include "base/amx.h"
#include "base/workspace.h"
#include "isa/kernels.h"
#include "masked_matmul/amx.h"

namespace sparsekernels {
namespace {

thread_local Workspace worker_workspace;

constexpr int64_t kMostDepth = 1 << 17;    // columns of a beyond which 64 packed columns of b are more than 32 MB
constexpr int64_t kPanelFloats = 1 << 18;  // of b, packed: half of an L2 cache of 2 MB

MaskedProduct product_at(const MaskedProducts& products, int64_t i) {
  MaskedProduct product = products.first;
  const size_t at = static_cast<size_t>(i);
  const int64_t element = element_size(product.dtype);
  const auto move = [&](MaskedMatrix& matrix, const std::vector<int64_t>& offsets, const std::vector<int64_t>& masks) {
    matrix.data = static_cast<const char*>(matrix.data) + offsets[at] * element;
    if (matrix.mask.words != nullptr) matrix.mask.words += masks[at];
  };
  move(product.a, products.offsets.a, products.offsets.a_mask);
  move(product.b, products.offsets.b, products.offsets.b_mask);
  move(product.dest, products.offsets.dest, products.offsets.dest_mask);
  return product;
}

// What is kept of a matrix in the mean over the batch, 0 to 1.
struct Kept {
  double elements = 1, tiles = 1;
};

Kept kept_of(
    const MaskedMatrix& matrix, const std::vector<int64_t>& offsets, int64_t tile_rows, const Threads& threads) {
  if (matrix.mask.words == nullptr || matrix.rows == 0 || matrix.cols == 0) return {};
  std::unordered_map<int64_t, int64_t> repeats;
  for (const int64_t offset : offsets) ++repeats[offset];
  double elements = 0, tiles = 0;
  for (const auto& [offset, times] : repeats) {
    std::atomic<int64_t> some_elements{0}, some_tiles{0};
    const MaskBits mask{matrix.mask.words + offset, matrix.mask.row_words};
    constexpr int64_t kRows = 256;
    const auto count = [&](int64_t begin, int64_t end) {
      const MaskCounts found =
          cpu_kernels().masked.count(mask, begin * kRows, std::min(matrix.rows, end * kRows), matrix.cols, tile_rows);
      some_elements += found.elements;
      some_tiles += found.tiles;
    };
    const int64_t chunks = (matrix.rows + kRows - 1) / kRows;
    if (matrix.rows * matrix.mask.row_words < 1 << 15) {
      count(0, chunks);
    } else {
      threads.run(chunks, count);
    }
    elements += static_cast<double>(some_elements * times);
    tiles += static_cast<double>(some_tiles * times);
  }
  const double batch = static_cast<double>(offsets.size());
  const double all_tiles = static_cast<double>(padded(matrix.rows, tile_rows) / tile_rows) *
                           static_cast<double>(padded(matrix.cols, kTileCols) / kTileCols);
  return {
      elements / batch / static_cast<double>(matrix.rows) / static_cast<double>(matrix.cols),
      tiles / batch / all_tiles};
}

// Whether the transposed product is computed: its first operand is the one with a mask.
bool is_turned(const MaskedProduct& product) {
  return product.b.mask.words != nullptr && product.a.mask.words == nullptr && product.dest.mask.words == nullptr;
}

// Whether tiles of AMX compute the products of a dtype.
bool has_amx([[maybe_unused]] DType dtype) {
#if defined(SPARSEKERNELS_AMX)
  return dtype == DType::kBFloat16 && cpu_kernels().has_jit && may_use_amx();
#else
  return false;
#endif
}

int64_t workspace_of(const MaskedProduct& product, Way way, int64_t cols) {
#if defined(SPARSEKERNELS_AMX)
  if (way == Way::kTiles && has_amx(product.dtype)) return kMaskedAmx.workspace(product, cols);
#endif
  return cpu_kernels().masked.workspace(product, way, cols);
}

void run_part(const MaskedProduct& product, Way way, const ProductPart& part, float* workspace) {
#if defined(SPARSEKERNELS_AMX)
  if (way == Way::kTiles && has_amx(product.dtype)) return kMaskedAmx.run(product, part, workspace);
#endif
  cpu_kernels().masked.run(product, way, part, workspace);
}

// Cycles of a core for a product of the batch; each constant was measured on a core of a Xeon with AVX-512 and AMX
// (docs/decisions.md#masked-ways).
struct Costs {
  double dense, tiles, dots, rows;
};

Costs costs_of(const MaskedProduct& product, Kept a, Kept b, Kept dest) {
  const double m = static_cast<double>(product.dest.rows), n = static_cast<double>(product.dest.cols);
  const double k = static_cast<double>(product.a.cols), all = m * n * k;
  const bool half = product.dtype != DType::kFloat32;
  const double dense_rate = product.dtype == DType::kBFloat16 && may_use_amx() ? 240 : 27;
  const double tile_rate = has_amx(product.dtype) ? 300 : 26;
  const double packing = k * n * (half ? 0.7 : 0.5);
  Costs costs{};
  costs.dense = all / dense_rate + 0.3 * m * n;
  costs.tiles = all * dest.tiles * a.tiles * b.tiles / tile_rate + packing + 0.2 * m * n;
  costs.dots = dest.elements * m * n * (k / 16 * 1.6 + 12) + packing + 0.2 * m * n;
  costs.rows = a.elements * m * k * (n / 16 * 1.5 + 3) + packing + 0.3 * m * n;
  return costs;
}

// Columns of a part: all, or as many as fit the cache.
int64_t part_cols(const MaskedProduct& product) {
  const int64_t fit = kPanelFloats / std::max<int64_t>(1, product.a.cols) / 64 * 64;
  return std::min(padded(std::max<int64_t>(1, product.dest.cols), 64), std::max<int64_t>(64, fit));
}

}  // namespace

std::optional<Way> way_of(const MaskedProducts& products, const Threads& threads) {
  const MaskedProduct& product = products.first;
  if (product.a.cols > kMostDepth) return std::nullopt;
  const BatchOffsets& offsets = products.offsets;
  // in the turned product tiles of a are what tiles of the transposed b are
  const Kept dest = kept_of(product.dest, offsets.dest_mask, kTileRows, threads);
  const Kept a = kept_of(product.a, offsets.a_mask, kTileRows, threads);
  const Kept b = kept_of(product.b, offsets.b_mask, kRun, threads);
  Costs costs = costs_of(product, a, b, dest);
  if (is_turned(product)) {
    MaskedProduct turned = product;
    std::swap(turned.dest.rows, turned.dest.cols);
    costs = costs_of(turned, b, a, dest);
  }
  std::optional<Way> way;
  double least = costs.dense;
  const auto take = [&](Way one, double cost) {
    if (cost < least) way = one, least = cost;
  };
  take(Way::kTiles, costs.tiles);
  if (product.dest.mask.words != nullptr) take(Way::kDots, costs.dots);
  if (product.a.mask.words != nullptr || is_turned(product)) take(Way::kRows, costs.rows);
  return way;
}

void run_masked(const MaskedProducts& products, Way way, const Threads& threads) {
  const MaskedKernels& kernels = cpu_kernels().masked;
  MaskedProducts turned;
  std::vector<uint64_t> words;
  const MaskedProducts* all = &products;
  if (is_turned(products.first)) {
    turned = products;
    const auto turn = [](MaskedMatrix matrix) {
      std::swap(matrix.rows, matrix.cols);
      std::swap(matrix.row_stride, matrix.col_stride);
      return matrix;
    };
    turned.first.a = turn(products.first.b);
    turned.first.b = turn(products.first.a);
    turned.first.dest = turn(products.first.dest);
    std::swap(turned.offsets.a, turned.offsets.b);
    std::swap(turned.offsets.a_mask, turned.offsets.b_mask);
    // the bits of each mask once, transposed
    const int64_t rows = products.first.b.rows, cols = products.first.b.cols;
    const int64_t row_words = (rows + 63) / 64;
    std::unordered_map<int64_t, int64_t> places;
    for (int64_t& offset : turned.offsets.a_mask)
      offset = places.emplace(offset, static_cast<int64_t>(places.size()) * cols * row_words).first->second;
    words.resize(places.size() * static_cast<size_t>(cols * row_words));
    for (const auto& [from, to] : places) {
      const MaskBits mask{products.first.b.mask.words + from, products.first.b.mask.row_words};
      uint64_t* const into = words.data() + to;
      threads.run((cols + 63) / 64, [&](int64_t begin, int64_t end) {
        kernels.transpose(mask, rows, begin * 64, std::min(cols, end * 64), into, row_words);
      });
    }
    turned.first.a.mask = {words.data(), row_words};
    all = &turned;
  }

  const MaskedProduct& first = all->first;
  const int64_t rows = first.dest.rows, cols = first.dest.cols;
  const int64_t width = part_cols(first), col_parts = (cols + width - 1) / width;
  // enough parts to share among threads, as long as packing b again for each is a small part of it
  int64_t row_parts = 1;
  while (row_parts * col_parts * all->count < 2 * threads.count && rows / (2 * row_parts) >= 256) row_parts *= 2;
  const int64_t height = padded((rows + row_parts - 1) / row_parts, kPartRows);
  row_parts = (rows + height - 1) / height;
  const int64_t parts = all->count * col_parts * row_parts;
  const size_t floats = static_cast<size_t>(workspace_of(first, way, std::min(width, cols)));
  std::atomic<int64_t> next{0};
  threads.run(std::min(threads.count, parts), [&](int64_t begin, int64_t end) {
    const TrimWorkspace trim{worker_workspace};
    WorkspaceLayout own;
    float* workspace = nullptr;
    own.add(&workspace, static_cast<int64_t>(floats));
    own.allocate(worker_workspace);
    for (; begin < end; ++begin)
      for (int64_t part = next++; part < parts; part = next++) {
        const int64_t column = part / row_parts % col_parts, row = part % row_parts;
        const ProductPart one{
            row * height, std::min(rows, (row + 1) * height), column * width, std::min(cols, (column + 1) * width)};
        run_part(product_at(*all, part / row_parts / col_parts), way, one, workspace);
      }
  });
}

}  // namespace sparsekernels
