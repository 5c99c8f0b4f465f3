// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What is compiled once per instruction set of elements.h. Words [begin, end) of 64 elements and of as many bits, 1 for
// an element that is used; values are those of these words.
#pragma once

#include <cstdint>

namespace sparsekernels {

struct ElementKernels {
  int64_t (*take)(
      const void* elements, const uint64_t* bits, int64_t begin, int64_t end, bool counts_others, void* values);
  void (*spread)(const void* values, const uint64_t* bits, int64_t begin, int64_t end, void* elements);
  void (*clear)(const uint64_t* bits, int64_t begin, int64_t end, void* elements);
};

}  // namespace sparsekernels
