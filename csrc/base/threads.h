// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The threads of a call.
#pragma once

#include <cstdint>
#include <functional>

namespace sparsekernels {

// Calls body(begin, end) on disjoint ranges that cover [0, count), on as many threads as torch uses.
using ParallelBody = std::function<void(int64_t, int64_t)>;
struct Threads {
  int64_t count;
  void (*run)(int64_t count, const ParallelBody& body);
};

}  // namespace sparsekernels
