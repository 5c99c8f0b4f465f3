// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/elements.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/lattice.h"

namespace sparsekernels {
namespace {

// Bit i: byte i of eight is not zero, in little-endian order.
uint64_t nonzero_bytes(const uint8_t* bytes) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7full, kToTopByte = 0x0102040810204080ull;
  uint64_t eight;
  std::memcpy(&eight, bytes, sizeof eight);
  const uint64_t top = (((eight & kLow) + kLow) | eight) & ~kLow;  // of each byte, its top bit
  return (top >> 7) * kToTopByte >> 56;
}

const ElementKernels& kernels_of(DType dtype) {
  return cpu_kernels().elements[static_cast<int>(dtype)];
}

uint8_t* at(void* elements, int64_t index, DType dtype) {
  return static_cast<uint8_t*>(elements) + index * element_size(dtype);
}

const uint8_t* at(const void* elements, int64_t index, DType dtype) {
  return static_cast<const uint8_t*>(elements) + index * element_size(dtype);
}

// Calls body(first word, last word, used elements before) for ranges of whole words that threads share, and the same of
// the elements behind the last whole word for rest(word, elements, used elements before).
template <class Body, class Rest>
void each_range(const MaskWords& mask, DType dtype, const Threads& threads, const Body& body, const Rest& rest) {
  const int64_t words = mask.elements() / MaskWords::kWord, behind = mask.elements() % MaskWords::kWord;
  const int64_t bytes = MaskWords::kBlock * MaskWords::kWord * element_size(dtype);
  const int64_t grain = std::max<int64_t>(cost::guard::kGrainBytes / bytes, 1);  // blocks
  const int64_t ranges = divide_up(divide_up(words, MaskWords::kBlock), grain);
  const auto run = [&](int64_t begin, int64_t end) {
    const int64_t block = begin * grain;
    body(block * MaskWords::kBlock, std::min(words, end * grain * MaskWords::kBlock), mask.before(block));
  };
  if (ranges > 1 && threads.count > 1) {
    threads.run(ranges, run);
  } else if (ranges > 0) {
    run(0, ranges);
  }
  if (behind > 0) rest(words, behind, mask.used() - std::popcount(mask.bits()[words]));
}

}  // namespace

void MaskWords::make(const uint8_t* mask, int64_t elements, int64_t* words) {
  std::fill(words, words + words_of(elements), 0);
  auto* const bits = reinterpret_cast<uint64_t*>(words + kHeader);
  int64_t i = 0;
  if constexpr (std::endian::native == std::endian::little)
    for (; i + 8 <= elements; i += 8) bits[i / kWord] |= nonzero_bytes(mask + i) << (i % kWord);
  for (; i < elements; ++i) bits[i / kWord] |= static_cast<uint64_t>(mask[i] != 0) << (i % kWord);
  int64_t* const before = words + kHeader + bit_words(elements);
  int64_t used = 0;
  for (int64_t word = 0; word < bit_words(elements); ++word) {
    if (word % kBlock == 0) before[word / kBlock] = used;
    used += std::popcount(bits[word]);
  }
  before[blocks(elements)] = used;
}

int64_t take_elements(
    const DenseWeight& weight, const MaskWords& mask, bool counts_others, const Threads& threads, void* values) {
  const ElementKernels& kernels = kernels_of(weight.dtype);
  const uint64_t* const bits = mask.bits();
  std::atomic<int64_t> others{0};
  each_range(
      mask, weight.dtype, threads,
      [&](int64_t begin, int64_t end, int64_t before) {
        others.fetch_add(
            kernels.take(weight.data, bits, begin, end, counts_others, at(values, before, weight.dtype)),
            std::memory_order_relaxed);
      },
      [&](int64_t word, int64_t count, int64_t before) {
        alignas(64) uint8_t last[MaskWords::kWord * 8] = {};
        std::memcpy(
            last, at(weight.data, word * MaskWords::kWord, weight.dtype),
            static_cast<size_t>(count * element_size(weight.dtype)));
        others.fetch_add(
            kernels.take(last, bits + word, 0, 1, counts_others, at(values, before, weight.dtype)),
            std::memory_order_relaxed);
      });
  return others.load();
}

void spread_elements(const void* values, DType dtype, const MaskWords& mask, const Threads& threads, void* elements) {
  const ElementKernels& kernels = kernels_of(dtype);
  const uint64_t* const bits = mask.bits();
  each_range(
      mask, dtype, threads,
      [&](int64_t begin, int64_t end, int64_t before) {
        kernels.spread(at(values, before, dtype), bits, begin, end, elements);
      },
      [&](int64_t word, int64_t count, int64_t before) {
        alignas(64) uint8_t last[MaskWords::kWord * 8];
        kernels.spread(at(values, before, dtype), bits + word, 0, 1, last);
        std::memcpy(
            at(elements, word * MaskWords::kWord, dtype), last, static_cast<size_t>(count * element_size(dtype)));
      });
}

void clear_others(const MaskWords& mask, DType dtype, const Threads& threads, void* elements) {
  const ElementKernels& kernels = kernels_of(dtype);
  const uint64_t* const bits = mask.bits();
  each_range(
      mask, dtype, threads, [&](int64_t begin, int64_t end, int64_t) { kernels.clear(bits, begin, end, elements); },
      [&](int64_t word, int64_t count, int64_t) {
        alignas(64) uint8_t last[MaskWords::kWord * 8] = {};
        uint8_t* const to = at(elements, word * MaskWords::kWord, dtype);
        std::memcpy(last, to, static_cast<size_t>(count * element_size(dtype)));
        kernels.clear(bits + word, 0, 1, last);
        std::memcpy(to, last, static_cast<size_t>(count * element_size(dtype)));
      });
}

}  // namespace sparsekernels
