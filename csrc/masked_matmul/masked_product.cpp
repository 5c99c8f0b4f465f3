// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

#include "masked_matmul/masked_product.h"

#include <algorithm>
#include <atomic>
#include <cmath>
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
      const MaskCounts found = cpu_kernels().masked.count(
          mask, begin * kRows, std::min(matrix.rows, end * kRows), matrix.cols, tile_rows, nullptr);
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

// Whether the one mask is that of b.
bool masks_b_alone(const MaskedProduct& product) {
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

// Whether the transposed product is computed, whose first operand is the one with a mask. Tiles of AMX take a mask of b
// as well, and pack it, which only few rows of a are not worth.
bool is_turned(const MaskedProduct& product, Way way) {
  constexpr int64_t kFew = 8;
  if (!masks_b_alone(product)) return false;
  return way != Way::kTiles || !has_amx(product.dtype) || product.dest.rows * kFew <= product.dest.cols;
}

int64_t workspace_of(const MaskedProduct& product, Way way, int64_t rows, int64_t cols) {
#if defined(SPARSEKERNELS_AMX)
  if (way == Way::kTiles && has_amx(product.dtype)) return kMaskedAmx.workspace(product, rows, cols);
#endif
  return cpu_kernels().masked.workspace(product, way, rows, cols);
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
  const auto copied = [](const MaskedMatrix& one) {
    return one.mask.words == nullptr ? 0.0 : static_cast<double>(one.rows) * static_cast<double>(one.cols);
  };
  costs.dense = all / dense_rate + 0.3 * m * n + 0.6 * (copied(product.a) + copied(product.b));
  costs.tiles = all * dest.tiles * a.tiles * b.tiles / tile_rate + packing + 0.2 * m * n;
  costs.dots = dest.elements * m * n * (k / 16 * 1.6 + 12) + packing + 0.2 * m * n;
  costs.rows = a.elements * m * k * (n / 16 * (half ? 1.9 : 1.5) + 3) + packing + 0.3 * m * n;
  return costs;
}

struct Part {
  int64_t product;  // of the batch
  ProductPart part;
};

// Parts of about the same work, as many as there are threads or more.
class Parts {
 public:
  Parts(const MaskedProducts& products, Way way, const Threads& threads) : products_(products) {
    const MaskedProduct& first = products.first;
    const int64_t rows = first.dest.rows, cols = first.dest.cols, depth = std::max<int64_t>(1, first.a.cols);
    const int64_t wanted = (threads.count + products.count - 1) / products.count;
    if (way != Way::kTiles) {
      const int64_t width = std::min(padded(cols, 64), std::max<int64_t>(64, kPanelFloats / depth / 64 * 64));
      const int64_t col_parts = (cols + width - 1) / width;
      int64_t row_parts = 1;
      // packing b again for each part is a small part of it
      while (row_parts * col_parts < 2 * wanted && rows / (2 * row_parts) >= 256) row_parts *= 2;
      for (int64_t i = 0; i < products.count; ++i)
        add(i, even_ends(rows, row_parts, kPartRows), even_ends(cols, col_parts, 64));
    } else {
      int64_t most_cols = kMostPartCols;
      if (has_amx(first.dtype)) most_cols = std::clamp<int64_t>(2 * kPanelFloats / depth / 64 * 64, 64, kMostPartCols);
      // each part reads its rows of a and its columns of b: the less of them the closer it is to a square
      const double ratio = static_cast<double>(cols) / static_cast<double>(rows);
      int64_t col_parts = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(wanted) * ratio)));
      col_parts = std::clamp<int64_t>(col_parts, 1, std::min(wanted, (cols + 63) / 64));
      col_parts = std::max(col_parts, (cols + most_cols - 1) / most_cols);
      int64_t row_parts = (wanted + col_parts - 1) / col_parts;
      row_parts = std::min(row_parts, (rows + kPartRows - 1) / kPartRows);
      row_parts = std::max(row_parts, (rows + kMostPartRows - 1) / kMostPartRows);
      for (int64_t i = 0; i < products.count; ++i)
        add(i, even_ends(rows, row_parts, kPartRows), balanced_ends(i, col_parts, most_cols));
    }
  }

  std::vector<Part> parts;
  int64_t most_rows = 0, most_cols = 0;

 private:
  void add(int64_t product, const std::vector<int64_t>& row_ends, const std::vector<int64_t>& col_ends) {
    int64_t col = 0;
    for (const int64_t col_end : col_ends) {
      int64_t row = 0;
      for (const int64_t row_end : row_ends) {
        parts.push_back({product, {row, row_end, col, col_end}});
        most_rows = std::max(most_rows, row_end - row);
        row = row_end;
      }
      most_cols = std::max(most_cols, col_end - col);
      col = col_end;
    }
  }

  // Ends of `count` parts of `size`, multiples of `unit` except for the last one.
  static std::vector<int64_t> even_ends(int64_t size, int64_t count, int64_t unit) {
    const int64_t step = padded((size + count - 1) / count, unit);
    std::vector<int64_t> ends;
    for (int64_t end = step; end < size; end += step) ends.push_back(end);
    ends.push_back(size);
    return ends;
  }

  // The same of columns, so that each has its share of the tiles that the mask of dest keeps.
  std::vector<int64_t> balanced_ends(int64_t i, int64_t count, int64_t most) const {
    const MaskedMatrix& dest = products_.first.dest;
    if (count == 1 || dest.mask.words == nullptr) return even_ends(dest.cols, count, 64);
    const int64_t words = (dest.cols + 63) / 64;
    std::vector<int64_t> tiles(static_cast<size_t>(words), 0);
    const MaskBits mask{dest.mask.words + products_.offsets.dest_mask[static_cast<size_t>(i)], dest.mask.row_words};
    cpu_kernels().masked.count(mask, 0, dest.rows, dest.cols, kTileRows, tiles.data());
    // in tiles; to pack columns and to fill them with zeros is work as well
    const double empty = 0.05 * static_cast<double>(dest.rows) / kTileRows;
    double all = 0, done = 0;
    for (const int64_t of_word : tiles) all += static_cast<double>(of_word) + empty;
    std::vector<int64_t> ends;
    int64_t begin = 0;
    for (int64_t word = 0; word < words; ++word) {
      const double work = static_cast<double>(tiles[static_cast<size_t>(word)]) + empty;
      done += work;
      const int64_t end = std::min(dest.cols, (word + 1) * 64);
      const double share = all * static_cast<double>(ends.size() + 1) / static_cast<double>(count);
      // the next word would be farther from the share than this one
      const double next = word + 1 < words ? static_cast<double>(tiles[static_cast<size_t>(word + 1)]) + empty : 0;
      if (word + 1 < words && end - begin < most && done + next / 2 < share) continue;
      ends.push_back(end);
      begin = end;
    }
    return ends;
  }

  const MaskedProducts& products_;
};

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
  if (masks_b_alone(product)) {
    MaskedProduct turned = product;
    std::swap(turned.dest.rows, turned.dest.cols);
    const double tiles = costs.tiles;
    costs = costs_of(turned, b, a, dest);
    if (!is_turned(product, Way::kTiles)) costs.tiles = tiles;
  }
  std::optional<Way> way;
  double least = costs.dense;
  const auto take = [&](Way one, double cost) {
    if (cost < least) way = one, least = cost;
  };
  take(Way::kTiles, costs.tiles);
  if (product.dest.mask.words != nullptr) take(Way::kDots, costs.dots);
  if (product.a.mask.words != nullptr || masks_b_alone(product)) take(Way::kRows, costs.rows);
  return way;
}

void run_masked(const MaskedProducts& products, Way way, const Threads& threads) {
  const MaskedKernels& kernels = cpu_kernels().masked;
  MaskedProducts turned;
  std::vector<uint64_t> words;
  const MaskedProducts* all = &products;
  if (is_turned(products.first, way)) {
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

  const Parts of(*all, way, threads);
  const int64_t parts = static_cast<int64_t>(of.parts.size());
  const int64_t floats = workspace_of(all->first, way, of.most_rows, of.most_cols);
  std::atomic<int64_t> next{0};
  threads.run(std::min(threads.count, parts), [&](int64_t begin, int64_t end) {
    const TrimWorkspace trim{worker_workspace};
    WorkspaceLayout own;
    float* workspace = nullptr;
    own.add(&workspace, floats);
    own.allocate(worker_workspace);
    for (; begin < end; ++begin)
      for (int64_t i = next++; i < parts; i = next++) {
        const Part& one = of.parts[static_cast<size_t>(i)];
        run_part(product_at(*all, one.product), way, one.part, workspace);
      }
  });
}

}  // namespace sparsekernels
