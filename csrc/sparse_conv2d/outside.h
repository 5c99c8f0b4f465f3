// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Whether a dense weight has nonzeros outside of its pattern, which a product by the pattern would leave out.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/threads.h"

namespace sparsekernels {

struct DenseWeight {
  const void* data;
  DType dtype;
  int64_t elements;
};

int64_t count_nonzeros(const DenseWeight& weight, const Threads& threads);

// values[i] = weight[places[i]]. Throws std::invalid_argument for a place that it does not have.
void gather_places(
    const DenseWeight& weight, const int64_t* places, int64_t count, const Threads& threads, void* values);

// The mask of a pattern as bits, and what was seen of the weights that are held against it: words of one allocation,
// which several threads may use at a time.
class Guard {
 public:
  static int64_t words_of(int64_t elements) { return kHeader + (elements + 63) / 64; }
  // mask: a byte for each element, 1 for those of the pattern.
  static void make(const uint8_t* mask, int64_t elements, int64_t* words);

  // words: words_of(weight.elements) of them.
  explicit Guard(int64_t* words) : words_(words) {}

  // How many nonzeros were found outside, where not all of the weight may have been looked at: see `cost::guard`.
  // version: changes with what the weight holds, as far as that is known; the same weight at the same address and of
  // the same version is read in parts. Negative: not known. multiply_adds: of the call that this one is for.
  int64_t nonzeros_outside(const DenseWeight& weight, int64_t version, double multiply_adds, const Threads& threads);

 private:
  static constexpr int64_t kHeader = 2;  // what was read as a whole last; where the next part begins
  int64_t* words_;
};

}  // namespace sparsekernels
