// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "base/hash128.h"

#include <exception>
#include <random>

#include "base/fork_safe_mutex.h"

#define XXH_INLINE_ALL
#include "third_party/xxhash.h"

namespace sparsekernels {
namespace {

uint64_t seed() {
  static MadeOnce<uint64_t> one;
  return one.get([] {
    try {
      std::random_device device;
      return static_cast<uint64_t>(device()) << 32 | device();
    } catch (const std::exception&) {  // no source of randomness: the same seed in every process
      return uint64_t{0x9e3779b97f4a7c15u};
    }
  });
}

}  // namespace

Hash128 hash128(const void* data, size_t bytes) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(data, bytes, seed());
  return {hash.low64, hash.high64};
}

}  // namespace sparsekernels
