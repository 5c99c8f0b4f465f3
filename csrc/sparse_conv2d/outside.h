// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Whether a dense weight has nonzeros outside of its pattern, which a product by the pattern would leave out.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "sparse_conv2d/elements.h"

namespace sparsekernels {

int64_t count_nonzeros(const DenseWeight& weight, const Threads& threads);

// values[i] = weight[places[i]]. Throws std::invalid_argument for a place that it does not have.
void gather_places(
    const DenseWeight& weight, const int64_t* places, int64_t count, const Threads& threads, void* values);

// What was seen of the weights that are held against a pattern, in the header of its `MaskWords`, which several threads
// may use at a time.
class Guard {
 public:
  // words: of a mask of weight.elements.
  explicit Guard(int64_t* words) : words_(words) {}

  // How many nonzeros were found outside, where not all of the weight may have been looked at: see `cost::guard`.
  // version: changes with what the weight holds, as far as that is known; the same weight at the same address and of
  // the same version is read in parts. Negative: not known. multiply_adds: of the call that this one is for.
  int64_t nonzeros_outside(const DenseWeight& weight, int64_t version, double multiply_adds, const Threads& threads);

  // The same, and the elements of the pattern.
  int64_t take(const DenseWeight& weight, int64_t version, double multiply_adds, const Threads& threads, void* values);

 private:
  static constexpr int64_t kSeen = 0, kNextPart = 1;  // what was read as a whole last; where the next part begins

  // Of how many words one is to be read; 1: all of them.
  int64_t step_of(const DenseWeight& weight, int64_t version, double multiply_adds) const;
  int64_t part_outside(const DenseWeight& weight, int64_t step, const Threads& threads);
  void saw_all(const DenseWeight& weight, int64_t version, int64_t found);

  int64_t* words_;
};

}  // namespace sparsekernels
