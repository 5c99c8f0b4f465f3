// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/outside.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/lattice.h"
#include "sparse_conv2d/nonzeros.h"

namespace sparsekernels {
namespace {

constexpr int64_t kWord = MaskWords::kWord;

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

int64_t Guard::step_of(const DenseWeight& weight, int64_t version, double multiply_adds) const {
  const auto bytes = static_cast<double>(weight.elements * element_size(weight.dtype));
  const double affordable =
      std::max(static_cast<double>(cost::guard::kPartBytes), multiply_adds * cost::guard::kBytesPerMultiplyAdd);
  if (bytes <= static_cast<double>(cost::guard::kWholeBytes) || bytes <= affordable || version < 0) return 1;
  if (load(words_ + kSeen) != stamp_of(weight.data, version)) return 1;
  return static_cast<int64_t>(bytes / affordable) + 1;
}

void Guard::saw_all(const DenseWeight& weight, int64_t version, int64_t found) {
  store(found == 0 && version >= 0 ? stamp_of(weight.data, version) : 0, words_ + kSeen);
}

int64_t Guard::part_outside(const DenseWeight& weight, int64_t step, const Threads& threads) {
  const int64_t part = load(words_ + kNextPart);
  store(part + 1, words_ + kNextPart);
  const auto first = static_cast<int64_t>(static_cast<uint64_t>(part) % static_cast<uint64_t>(step));
  const int64_t found = count(weight, MaskWords(words_, weight.elements).bits(), first, step, threads);
  if (found != 0) store(0, words_ + kSeen);
  return found;
}

int64_t Guard::nonzeros_outside(
    const DenseWeight& weight, int64_t version, double multiply_adds, const Threads& threads) {
  const int64_t step = step_of(weight, version, multiply_adds);
  if (step > 1) return part_outside(weight, step, threads);
  const int64_t found = count(weight, MaskWords(words_, weight.elements).bits(), 0, 1, threads);
  saw_all(weight, version, found);
  return found;
}

int64_t Guard::take(
    const DenseWeight& weight, int64_t version, double multiply_adds, const Threads& threads, void* values) {
  const int64_t step = step_of(weight, version, multiply_adds);
  const int64_t others = take_elements(weight, MaskWords(words_, weight.elements), step == 1, threads, values);
  if (step > 1) return part_outside(weight, step, threads);
  saw_all(weight, version, others);
  return others;
}

}  // namespace sparsekernels
