// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked products on the CPU, as torch operators. The schemas are defined in Python
// (sparsekernels/ops/masked_matmul/implementations.py).
#include <algorithm>
#include <vector>

#include "base/batches.h"
#include "base/torch_glue.h"
#include "base/torch_threads.h"
#include "isa/kernels.h"
#include "masked_matmul/masked_product.h"

namespace sparsekernels {
namespace {

constexpr int64_t kGrain = 1 << 15;      // elements for which a thread is worth its while
constexpr int64_t kBitsGrain = 1 << 20;  // bits to be packed, the same: a core packs 10^11 a second

int64_t words_of(int64_t cols) {
  return (cols + 63) / 64;
}

MaskedMatrix matrix_of(const Handle& tensor) {
  const int64_t at = tensor.dim() - 2;
  MaskedMatrix matrix;
  matrix.data = tensor.data();
  matrix.rows = tensor.sizes()[at], matrix.cols = tensor.sizes()[at + 1];
  matrix.row_stride = tensor.strides()[at], matrix.col_stride = tensor.strides()[at + 1];
  return matrix;
}

// A mask of a matrix, contiguous; `bits` stays empty where there is none.
void add_mask(Handle& bits, const Batch& batch, MaskedMatrix& matrix, Batch& offsets) {
  if (!bits) return;
  constexpr char kExpected[] = "masked_product: expected bits of int64 [..., rows, words] that broadcast";
  require(bits.dtype() == aoti_torch_dtype_int64() && bits.dim() >= 2, kExpected, bits);
  require(bits.device_type() == aoti_torch_device_type_cpu(), kExpected, bits);
  if (!bits.is_contiguous()) bits = contiguous(bits);
  const int64_t* const sizes = bits.sizes() + bits.dim() - 2;
  require(sizes[0] == matrix.rows && sizes[1] == words_of(matrix.cols), kExpected, bits);
  require(broadcasts_to(batch_sizes(bits), batch), kExpected, bits);
  const uint64_t* const words = static_cast<const uint64_t*>(bits.data());
  require(
      !has_bits_behind(words, batch_count(batch_sizes(bits)) * sizes[0], sizes[1], matrix.cols),
      "masked_product: expected bits that are 0 behind the last column", bits);
  offsets = matrix_offsets(bits, batch);
  matrix.mask = {words, sizes[1]};
}

// Zeros where a mask leaves out, in place, in each matrix of a contiguous tensor.
void select(const Handle& tensor, const MaskedMatrix& of, const Batch& mask_offsets, DType dtype) {
  MaskedMatrix first = of;
  first.data = tensor.data();
  first.row_stride = first.cols, first.col_stride = 1;
  const int64_t count = static_cast<int64_t>(mask_offsets.size()), rows = first.rows;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, first.cols));
  torch::stable::parallel_for(0, count * rows, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t at = begin / rows, row = begin % rows, last = std::min(rows, row + end - begin);
      MaskedMatrix one = first;
      one.data = static_cast<const char*>(first.data) + at * rows * first.cols * element_size(dtype);
      one.mask.words += mask_offsets[static_cast<size_t>(at)];
      cpu_kernels().masked.select(one, dtype, row, last);
      begin += last - row;
    }
  });
}

// A copy in which zeros are where the mask leaves out, for torch's own product.
Handle selected(const Handle& tensor, const MaskedMatrix& matrix, const Handle& bits, DType dtype) {
  // the mask may have a batch that the matrix has not
  const Batch batch = broadcast_batch(batch_sizes(tensor), batch_sizes(bits));
  Batch sizes = batch;
  sizes.push_back(matrix.rows);
  sizes.push_back(matrix.cols);
  Handle copy = empty(sizes.data(), static_cast<int64_t>(sizes.size()), tensor.dtype(), tensor);
  torch::stable::Tensor to = copy.shared();
  torch::stable::copy_(to, tensor.shared());
  select(copy, matrix, matrix_offsets(bits, batch), dtype);
  return copy;
}

Handle dense_product(
    const Handle& a, const Handle& b, const Handle& a_bits, const Handle& b_bits, const MaskedProducts& products) {
  const MaskedProduct& first = products.first;
  const Handle left = a_bits ? selected(a, first.a, a_bits, first.dtype) : Handle::from(a.shared());
  const Handle right = b_bits ? selected(b, first.b, b_bits, first.dtype) : Handle::from(b.shared());
  Handle result = Handle::from(torch::stable::matmul(left.shared(), right.shared()));
  if (!result.is_contiguous()) result = contiguous(result);
  if (first.dest.mask.words != nullptr) select(result, first.dest, products.offsets.dest_mask, first.dtype);
  return result;
}

void boxed_product(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {5, 1});
  const Handle a = arguments.tensor(), b = arguments.tensor();
  Handle a_bits = arguments.optional_tensor(), b_bits = arguments.optional_tensor();
  Handle bits = arguments.optional_tensor();
  MaskedProducts products;
  MaskedProduct& first = products.first;
  first.dtype = dtype_of(a, "masked_product");
  require(first.dtype != DType::kFloat64, "masked_product: expected a of float32, bfloat16 or float16", a);
  require(b.dtype() == a.dtype(), "masked_product: expected b of the dtype of a", b);
  require(a.dim() >= 2, "masked_product: expected a of at least 2 dimensions", a);
  require(b.dim() >= 2, "masked_product: expected b of at least 2 dimensions", b);
  require(b.device_type() == aoti_torch_device_type_cpu(), "masked_product: expected b on cpu", b);
  first.a = matrix_of(a);
  first.b = matrix_of(b);
  require(first.a.cols == first.b.rows, "masked_product: expected b with as many rows as a has columns", b);
  const Batch a_batch = batch_sizes(a), b_batch = batch_sizes(b), batch = broadcast_batch(a_batch, b_batch);
  require(
      broadcasts_to(a_batch, batch) && broadcasts_to(b_batch, batch),
      "masked_product: expected b with a batch that broadcasts with that of a", b);
  products.count = batch_count(batch);
  Batch sizes = batch;
  sizes.push_back(first.a.rows);
  sizes.push_back(first.b.cols);
  for (const std::vector<int64_t>& one :
       {std::vector<int64_t>(a.sizes(), a.sizes() + a.dim()), std::vector<int64_t>(b.sizes(), b.sizes() + b.dim()),
        sizes}) {
    const bool empty = std::find(one.begin(), one.end(), 0) != one.end();
    double elements = empty ? 0 : 1;
    for (const int64_t size : one) elements *= static_cast<double>(size);
    require(elements <= 2147483648.0, "masked_product: expected at most 2^31 elements", one);
  }
  first.dest.rows = first.a.rows, first.dest.cols = first.b.cols;
  first.dest.row_stride = first.b.cols, first.dest.col_stride = 1;
  BatchOffsets& offsets = products.offsets;
  add_mask(a_bits, batch, first.a, offsets.a_mask);
  add_mask(b_bits, batch, first.b, offsets.b_mask);
  add_mask(bits, batch, first.dest, offsets.dest_mask);
  if (products.count == 0 || first.dest.rows == 0 || first.dest.cols == 0) {
    stack[0] = to_stack(empty(sizes.data(), static_cast<int64_t>(sizes.size()), a.dtype(), a));
    return;
  }
  const Threads threads = torch_threads();
  const std::optional<Way> way = way_of(products, threads);
  if (!way) {
    stack[0] = to_stack(dense_product(a, b, a_bits, b_bits, products));
    return;
  }
  Handle result = empty(sizes.data(), static_cast<int64_t>(sizes.size()), a.dtype(), a);
  first.dest.data = result.data();
  offsets.a = matrix_offsets(a, batch);
  offsets.b = matrix_offsets(b, batch);
  offsets.dest = matrix_offsets(result, batch);
  run_masked(products, *way, threads);
  stack[0] = to_stack(std::move(result));
}

void boxed_pack(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {1, 1});
  Handle mask = arguments.tensor();
  constexpr char kExpected[] = "masked_product: expected mask of bool [..., rows, columns]";
  require(mask.dtype() == aoti_torch_dtype_bool() && mask.dim() >= 2, kExpected, mask);
  if (!mask.is_contiguous()) mask = contiguous(mask);
  std::vector<int64_t> sizes(mask.sizes(), mask.sizes() + mask.dim());
  const int64_t cols = sizes.back(), words = words_of(cols);
  sizes.back() = words;
  Handle result = empty(sizes.data(), static_cast<int64_t>(sizes.size()), aoti_torch_dtype_int64(), mask);
  const uint8_t* const from = static_cast<const uint8_t*>(mask.data());
  uint64_t* const to = static_cast<uint64_t*>(result.data());
  sizes.pop_back();
  const int64_t grain = std::max<int64_t>(1, kBitsGrain / std::max<int64_t>(1, cols));
  torch::stable::parallel_for(0, batch_count(sizes), grain, [&](int64_t begin, int64_t end) {
    if (cols % 64 == 0) return cpu_kernels().masked.pack(from + begin * cols, (end - begin) * cols, to + begin * words);
    for (int64_t r = begin; r < end; ++r) cpu_kernels().masked.pack(from + r * cols, cols, to + r * words);
  });
  stack[0] = to_stack(std::move(result));
}

void boxed_pack_blocks(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {5, 1});
  Handle blocks = arguments.tensor();
  const int64_t rows = arguments.integer(), cols = arguments.integer();
  const int64_t height = arguments.integer(), width = arguments.integer();
  constexpr char kExpected[] = "masked_product: expected blocks of bool [..., rows, columns] that cover the matrix";
  require(blocks.dtype() == aoti_torch_dtype_bool() && blocks.dim() >= 2, kExpected, blocks);
  require(height > 0 && width > 0 && rows >= 0 && cols >= 0, kExpected, blocks);
  if (!blocks.is_contiguous()) blocks = contiguous(blocks);
  std::vector<int64_t> sizes(blocks.sizes(), blocks.sizes() + blocks.dim());
  const size_t at = sizes.size() - 2;
  const int64_t down = sizes[at], across = sizes[at + 1];
  require(
      down == rows / height + (rows % height != 0) && across == cols / width + (cols % width != 0), kExpected, blocks);
  const int64_t batch = batch_count(std::vector<int64_t>(sizes.begin(), sizes.end() - 2)), words = words_of(cols);
  sizes[at] = rows, sizes[at + 1] = words;
  Handle result = empty(sizes.data(), static_cast<int64_t>(sizes.size()), aoti_torch_dtype_int64(), blocks);
  const uint8_t* const from = static_cast<const uint8_t*>(blocks.data());
  uint64_t* const to = static_cast<uint64_t*>(result.data());
  const int64_t grain = std::max<int64_t>(1, kBitsGrain / std::max<int64_t>(1, std::min(height, rows) * cols));
  torch::stable::parallel_for(0, batch * down, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % down * height, last = std::min(rows, row + height);
      uint64_t* const row_words = to + (i / down * rows + row) * words;
      std::fill(row_words, row_words + words, 0);
      for (int64_t b = 0; b < across; ++b)
        if (from[i * across + b] != 0) {
          for (int64_t c = b * width; c < std::min(cols, (b + 1) * width);) {
            const int64_t some = std::min({64 - c % 64, (b + 1) * width - c, cols - c});
            row_words[c / 64] |= (some == 64 ? ~uint64_t{0} : (uint64_t{1} << some) - 1) << (c % 64);
            c += some;
          }
        }
      for (int64_t r = row + 1; r < last; ++r) std::copy(row_words, row_words + words, row_words + (r - row) * words);
    }
  });
  stack[0] = to_stack(std::move(result));
}

void boxed_transpose_bits(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 1});
  Handle bits = arguments.tensor();
  const int64_t cols = arguments.integer();
  constexpr char kExpected[] = "masked_product: expected bits of int64 [..., rows, words]";
  require(bits.dtype() == aoti_torch_dtype_int64() && bits.dim() >= 2, kExpected, bits);
  if (!bits.is_contiguous()) bits = contiguous(bits);
  std::vector<int64_t> sizes(bits.sizes(), bits.sizes() + bits.dim());
  const size_t at = sizes.size() - 2;
  const int64_t rows = sizes[at], words = sizes[at + 1], turned_words = words_of(rows);
  require(cols >= 0 && words == words_of(cols), kExpected, bits);
  const int64_t batch = batch_count(std::vector<int64_t>(sizes.begin(), sizes.end() - 2));
  sizes[at] = cols, sizes[at + 1] = turned_words;
  Handle result = empty(sizes.data(), static_cast<int64_t>(sizes.size()), aoti_torch_dtype_int64(), bits);
  const uint64_t* const from = static_cast<const uint64_t*>(bits.data());
  uint64_t* const to = static_cast<uint64_t*>(result.data());
  const int64_t grain = std::max<int64_t>(1, kBitsGrain / 4 / (64 * std::max<int64_t>(1, rows)));
  torch::stable::parallel_for(0, batch * words, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t one = i / words, col = i % words * 64;
      cpu_kernels().masked.transpose(
          {from + one * rows * words, words}, rows, col, std::min(cols, col + 64), to + one * cols * turned_words,
          turned_words);
    }
  });
  stack[0] = to_stack(std::move(result));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_masked_product", &sparsekernels::boxed_product);
  m.impl("_pack_mask", &sparsekernels::boxed_pack);
  m.impl("_pack_block_mask", &sparsekernels::boxed_pack_blocks);
  m.impl("_transpose_mask_bits", &sparsekernels::boxed_transpose_bits);
}
