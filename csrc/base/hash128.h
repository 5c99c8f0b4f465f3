// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// 128 bits that stand for a content.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsekernels {

struct Hash128 {
  uint64_t low, high;
  bool operator==(const Hash128& other) const { return low == other.low && high == other.high; }
};

// XXH3, with a seed that differs from process to process.
Hash128 hash128(const void* data, size_t bytes);

}  // namespace sparsekernels
