// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/outside.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/lattice.h"
#include "sparse_conv2d/nonzeros.h"

namespace sparsekernels {
namespace {

constexpr int64_t kWord = 64;

// Of every step-th word from `first` on, and of the elements behind the last whole word.
int64_t count(const DenseWeight& weight, const uint64_t* except, int64_t first, int64_t step, const Threads& threads) {
  const auto kernel = cpu_kernels().count_nonzeros[static_cast<int>(weight.dtype)];
  const int64_t words = weight.elements / kWord, rest = weight.elements % kWord, size = element_size(weight.dtype);
  int64_t found = 0;
  if (rest > 0) {
    alignas(64) uint8_t last[kWord * 8] = {};
    std::memcpy(
        last, static_cast<const uint8_t*>(weight.data) + words * kWord * size, static_cast<size_t>(rest * size));
    found = kernel(last, except == nullptr ? nullptr : except + words, 0, 1, 1);
  }
  const int64_t read = divide_up(std::max<int64_t>(words - first, 0), step);
  const int64_t grain = std::max<int64_t>(cost::guard::kGrainBytes / (kWord * size), 1);
  if (read <= grain || threads.count == 1) return found + kernel(weight.data, except, first, words, step);
  std::atomic<int64_t> sum{found};
  threads.run(divide_up(read, grain), [&](int64_t begin, int64_t end) {
    const int64_t from = first + begin * grain * step, to = std::min(words, first + end * grain * step);
    sum.fetch_add(kernel(weight.data, except, from, to, step), std::memory_order_relaxed);
  });
  return sum.load();
}

template <class Element>
bool gather(const DenseWeight& weight, const int64_t* places, int64_t begin, int64_t end, void* values) {
  const auto* const from = static_cast<const Element*>(weight.data);
  auto* const to = static_cast<Element*>(values);
  for (int64_t i = begin; i < end; ++i) {
    if (places[i] < 0 || places[i] >= weight.elements) return false;
    to[i] = from[places[i]];
  }
  return true;
}

// Bit i: byte i of eight is not zero, in little-endian order.
uint64_t nonzero_bytes(const uint8_t* bytes) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7full, kToTopByte = 0x0102040810204080ull;
  uint64_t eight;
  std::memcpy(&eight, bytes, sizeof eight);
  const uint64_t top = (((eight & kLow) + kLow) | eight) & ~kLow;  // of each byte, its top bit
  return (top >> 7) * kToTopByte >> 56;
}

// Never 0: what no weight was seen as.
int64_t stamp_of(const void* data, int64_t version) {
  uint64_t x = reinterpret_cast<uint64_t>(data) ^ (static_cast<uint64_t>(version) * 0x9e3779b97f4a7c15ull);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<int64_t>((x ^ (x >> 31)) | 1);
}

int64_t load(const int64_t* from) {
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}

void store(int64_t value, int64_t* to) {
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

}  // namespace

int64_t count_nonzeros(const DenseWeight& weight, const Threads& threads) {
  return count(weight, nullptr, 0, 1, threads);
}

void gather_places(
    const DenseWeight& weight, const int64_t* places, int64_t count, const Threads& threads, void* values) {
  std::atomic<bool> inside{true};
  parallel_for_nonzeros(count, threads, [&](int64_t begin, int64_t end) {
    bool all = true;
    switch (element_size(weight.dtype)) {
      case 2:
        all = gather<uint16_t>(weight, places, begin, end, values);
        break;
      case 4:
        all = gather<float>(weight, places, begin, end, values);
        break;
      default:
        all = gather<double>(weight, places, begin, end, values);
    }
    if (!all) inside.store(false, std::memory_order_relaxed);
  });
  if (!inside.load()) throw std::invalid_argument("sparse_conv2d: expected flat_indices within the weight");
}

void Guard::make(const uint8_t* mask, int64_t elements, int64_t* words) {
  std::fill(words, words + words_of(elements), 0);
  auto* const bits = reinterpret_cast<uint64_t*>(words + kHeader);
  int64_t i = 0;
  if constexpr (std::endian::native == std::endian::little)
    for (; i + 8 <= elements; i += 8) bits[i / kWord] |= nonzero_bytes(mask + i) << (i % kWord);
  for (; i < elements; ++i) bits[i / kWord] |= static_cast<uint64_t>(mask[i] != 0) << (i % kWord);
}

int64_t Guard::nonzeros_outside(
    const DenseWeight& weight, int64_t version, double multiply_adds, const Threads& threads) {
  const auto* const bits = reinterpret_cast<const uint64_t*>(words_ + kHeader);
  const int64_t bytes = weight.elements * element_size(weight.dtype);
  const double affordable =
      std::max(static_cast<double>(cost::guard::kPartBytes), multiply_adds * cost::guard::kBytesPerMultiplyAdd);
  const int64_t stamp = stamp_of(weight.data, version);
  if (bytes <= cost::guard::kWholeBytes || static_cast<double>(bytes) <= affordable || version < 0 ||
      load(words_) != stamp) {
    const int64_t found = count(weight, bits, 0, 1, threads);
    store(found == 0 && version >= 0 ? stamp : 0, words_);
    return found;
  }
  const auto step = static_cast<int64_t>(static_cast<double>(bytes) / affordable) + 1;
  const int64_t part = load(words_ + 1);
  store(part + 1, words_ + 1);
  const int64_t found = count(
      weight, bits, static_cast<int64_t>(static_cast<uint64_t>(part) % static_cast<uint64_t>(step)), step, threads);
  if (found != 0) store(0, words_);
  return found;
}

}  // namespace sparsekernels
