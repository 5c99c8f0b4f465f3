// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What is done to each nonzero of a pattern, in ranges that threads share.
#pragma once

#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/threads.h"

namespace sparsekernels {

// Calls body(begin, end) on disjoint ranges that cover [0, count) nonzeros, on all threads where that is worth it.
void parallel_for_nonzeros(int64_t count, const Threads& threads, const ParallelBody& body);

// to[i] = from[order[i]], for i in [begin, end).
template <class Element>
void gather(const std::vector<int32_t>& order, const void* from, int64_t begin, int64_t end, Element* to) {
  const Element* const elements = static_cast<const Element*>(from);
  for (int64_t i = begin; i < end; ++i) to[i] = elements[order[static_cast<size_t>(i)]];
}

// The same for all i, of a dtype other than float64.
void gather_elements(
    const std::vector<int32_t>& order, const void* from, DType dtype, const Threads& threads, void* to);

}  // namespace sparsekernels
