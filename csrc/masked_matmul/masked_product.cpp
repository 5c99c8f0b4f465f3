// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

#include "masked_matmul/masked_product.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <unordered_map>

#include "base/amx.h"
#include "base/parts.h"
#include "isa/kernels.h"
#include "masked_matmul/amx.h"

namespace sparsekernels {

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
  if (product.dest.mask.words != nullptr)
    product.dest_tiles.words = products.tile_words.data() + products.offsets.dest_tiles[at];
  return product;
}

int64_t map_words(int64_t cols) {
  return (cols + 64 * kTileCols - 1) / (64 * kTileCols);
}

namespace {

constexpr int64_t kMostDepth = 1 << 17;    // columns of a beyond which 64 packed columns of b are more than 32 MB
constexpr int64_t kPanelFloats = 1 << 18;  // of b, packed: half of an L2 cache of 2 MB

// What is kept of a matrix in the mean over the batch, 0 to 1.
struct Kept {
  double elements = 1, tiles = 1;
};

// Of one matrix. map: nullptr, or to be filled.
MaskCounts counts_of(
    const MaskedMatrix& matrix, MaskBits mask, int64_t tile_rows, uint64_t* map, int64_t map_row_words,
    const Threads& threads) {
  constexpr int64_t kRows = 256;
  const auto count = [&](int64_t begin, int64_t end) {
    return cpu_kernels().masked.count(
        mask, begin * kRows, std::min(matrix.rows, end * kRows), matrix.cols, tile_rows, map, map_row_words);
  };
  const int64_t chunks = (matrix.rows + kRows - 1) / kRows;
  if (matrix.rows * matrix.mask.row_words < 1 << 15) return count(0, chunks);
  std::atomic<int64_t> elements{0}, tiles{0};
  threads.run(chunks, [&](int64_t begin, int64_t end) {
    const MaskCounts found = count(begin, end);
    elements += found.elements;
    tiles += found.tiles;
  });
  return {elements, tiles};
}

// maps: nullptr, or where the TileMap of each mask is put; places: where in it, for each of the batch.
Kept kept_of(
    const MaskedMatrix& matrix, const std::vector<int64_t>& offsets, int64_t tile_rows, const Threads& threads,
    std::vector<uint64_t>* maps = nullptr, std::vector<int64_t>* places = nullptr) {
  if (matrix.mask.words == nullptr || matrix.rows == 0 || matrix.cols == 0) return {};
  const int64_t row_words = map_words(matrix.cols), words = padded(matrix.rows, tile_rows) / tile_rows * row_words;
  struct Found {
    MaskCounts counts;
    int64_t place;
  };
  std::unordered_map<int64_t, Found> masks;
  double elements = 0, tiles = 0;
  for (const int64_t offset : offsets) {
    auto found = masks.find(offset);
    if (found == masks.end()) {
      const int64_t place = static_cast<int64_t>(masks.size()) * words;
      if (maps != nullptr) maps->resize(static_cast<size_t>(place + words));
      const MaskBits mask{matrix.mask.words + offset, matrix.mask.row_words};
      uint64_t* const map = maps == nullptr ? nullptr : maps->data() + place;
      found = masks.emplace(offset, Found{counts_of(matrix, mask, tile_rows, map, row_words, threads), place}).first;
    }
    elements += static_cast<double>(found->second.counts.elements);
    tiles += static_cast<double>(found->second.counts.tiles);
    if (places != nullptr) places->push_back(found->second.place);
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

int64_t workspace_of(const MaskedProduct& product, Way way, const ProductPart& part) {
  const int64_t rows = part.row_end - part.row_begin, cols = part.col_end - part.col_begin;
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
  const bool on_amx = has_amx(product.dtype);
  const double dense_rate = product.dtype == DType::kBFloat16 && may_use_amx() ? 240 : 27;
  const double tile_rate = on_amx ? 300 : 26;
  const double packing = k * n * (half ? 0.7 : 0.5);
  const double in_tiles = static_cast<double>(padded(product.dest.rows, on_amx ? kPartRows : kTileRows)) *
                          static_cast<double>(padded(product.dest.cols, kTileCols)) * k;
  // a packed column is read from beyond L2 where 64 of them do not fit
  const double of_dot = k * 64 * sizeof(float) > 1 << 20 ? 3.2 : 1.6;
  Costs costs{};
  const auto copied = [](const MaskedMatrix& one) {
    return one.mask.words == nullptr ? 0.0 : static_cast<double>(one.rows) * static_cast<double>(one.cols);
  };
  // of few rows or columns each number is read once; in half types a call of oneDNN takes some 10 us
  costs.dense = std::max(all / dense_rate, 0.5 * k * (m + n)) + 0.3 * m * n +
                0.6 * (copied(product.a) + copied(product.b)) + (half ? 40e3 : 0);
  costs.tiles = in_tiles * dest.tiles * a.tiles * b.tiles / tile_rate + packing + 0.2 * m * n;
  // four at a time, so that a row leaves some over
  costs.dots = m * (dest.elements * n + 1.5) * (k / 16 * of_dot + 12) + packing + 0.2 * m * n;
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

 private:
  void add(int64_t product, const std::vector<int64_t>& row_ends, const std::vector<int64_t>& col_ends) {
    int64_t col = 0;
    for (const int64_t col_end : col_ends) {
      int64_t row = 0;
      for (const int64_t row_end : row_ends) {
        parts.push_back({product, {row, row_end, col, col_end}});
        row = row_end;
      }
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
    const TileMap map = product_at(products_, i).dest_tiles;
    for (int64_t row = 0; row < padded(dest.rows, kTileRows) / kTileRows; ++row)
      for (int64_t at = 0; at < map.row_words; ++at)
        for (uint64_t left = map.words[row * map.row_words + at]; left != 0; left &= left - 1)
          ++tiles[static_cast<size_t>(at * 32 + __builtin_ctzll(left) / 2)];
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

std::optional<Way> way_of(MaskedProducts& products, const Threads& threads) {
  const MaskedProduct& product = products.first;
  if (product.a.cols > kMostDepth) return std::nullopt;
  BatchOffsets& offsets = products.offsets;
  products.first.dest_tiles.row_words = map_words(product.dest.cols);
  // in the turned product tiles of a are what tiles of the transposed b are
  const Kept dest =
      kept_of(product.dest, offsets.dest_mask, kTileRows, threads, &products.tile_words, &offsets.dest_tiles);
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
  // oneDNN reads 32 columns at a time, so that what stands behind the end of a row gets into it (torch 2.13, AMX)
  if (product.dtype != DType::kFloat32 && product.a.cols % 32 != 0) costs.dense = HUGE_VAL;
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

  if (way == Way::kTiles && !has_amx(all->first.dtype)) return run_tile_groups(*all, threads);
  const Parts of(*all, way, threads);
  const int64_t parts = static_cast<int64_t>(of.parts.size());
  // of each part: the largest one need not be the one that needs the most
  int64_t floats = 0;
  for (const Part& one : of.parts) floats = std::max(floats, workspace_of(all->first, way, one.part));
  run_parts(threads, parts, floats, [&](int64_t i, float* workspace) {
    const Part& one = of.parts[static_cast<size_t>(i)];
    run_part(product_at(*all, one.product), way, one.part, workspace);
  });
}

}  // namespace sparsekernels
