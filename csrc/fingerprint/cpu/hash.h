// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// XXH3 with the vectors of the instruction set that this is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

#define XXH_INLINE_ALL
#include "third_party/xxhash.h"

namespace sparsekernels {
namespace {

uint64_t hash64(const void* data, int64_t bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(data, static_cast<size_t>(bytes), seed);
}

}  // namespace
}  // namespace sparsekernels
