// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The hash that kernels are kept by, and what a cache keeps and drops.
#include <cstdint>
#include <set>
#include <vector>

#include "base/hash128.h"
#include "base/shared_cache.h"
#include "check.h"

namespace sparsekernels {
namespace tests {
namespace {

// One changed bit anywhere, or another length, is another hash; the same content elsewhere is the same.
void check_hash() {
  std::vector<int32_t> data(1000);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<int32_t>(i * i);
  std::set<std::pair<uint64_t, uint64_t>> seen;
  const auto add = [&](size_t count) {
    const Hash128 hash = hash128(data.data(), count * sizeof data[0]);
    CHECK(seen.insert({hash.low, hash.high}).second);
  };
  for (size_t count = 0; count <= data.size(); ++count) add(count);
  for (size_t i = 0; i < data.size(); ++i) {
    const int32_t bit = static_cast<int32_t>(1u << (i * 7 % 32));
    data[i] ^= bit;
    add(data.size());
    data[i] ^= bit;
  }
  std::vector<int32_t> copy(data.size() + 1);
  for (size_t i = 0; i < data.size(); ++i) copy[i + 1] = data[i];
  const size_t bytes = data.size() * sizeof data[0];
  CHECK(hash128(data.data(), bytes) == hash128(copy.data() + 1, bytes));
}

Hash128 key(uint64_t number) {
  return {number, ~number};
}

// As a caller uses it: what is not there is made anew. Whether it was there.
bool use(SharedCache& cache, uint64_t number, size_t bytes = 10) {
  if (cache.find(key(number)) != nullptr) return true;
  cache.insert(key(number), std::make_shared<uint64_t>(number), bytes);
  return false;
}

}  // namespace

void test_caches() {
  check_hash();
  {
    SharedCache cache({100, 200});
    for (uint64_t i = 0; i < 10; ++i) CHECK(!use(cache, i));
    CHECK_EQUAL(cache.bytes(), size_t{100});
    for (uint64_t i = 0; i < 10; ++i) {
      CHECK(use(cache, i));
      CHECK_EQUAL(*std::static_pointer_cast<const uint64_t>(cache.find(key(i))), i);
    }
    // The low half is what a table is searched by: the high half tells two apart.
    CHECK(cache.find({1, 1}) == nullptr);
    // Beyond the first limit: not at once; when it comes again, what was not used meanwhile makes room.
    CHECK(!use(cache, 10));
    CHECK_EQUAL(cache.bytes(), size_t{100});
    for (uint64_t i = 1; i < 10; ++i) CHECK(use(cache, i));
    CHECK(!use(cache, 10));
    CHECK(use(cache, 10));
    CHECK_EQUAL(cache.bytes(), size_t{100});
    CHECK(cache.find(key(0)) == nullptr);
    for (uint64_t i = 1; i < 10; ++i) CHECK(use(cache, i));
  }
  {
    // In rotation, more than the first limit holds, all in use: all are kept, up to the second one.
    SharedCache cache({100, 200});
    for (int turn = 0; turn < 3; ++turn)
      for (uint64_t i = 0; i < 15; ++i) use(cache, i);
    CHECK_EQUAL(cache.bytes(), size_t{150});
    for (uint64_t i = 0; i < 15; ++i) CHECK(use(cache, i));
  }
  {
    // More than the second limit: never beyond it, and those that are kept stay.
    SharedCache cache({100, 200});
    int hits = 0;
    for (int turn = 0; turn < 6; ++turn) {
      for (uint64_t i = 0; i < 30; ++i) {
        const bool hit = use(cache, i);
        hits += turn == 5 && hit;
        CHECK(cache.bytes() <= 200);
      }
    }
    CHECK_EQUAL(hits, 20);
  }
  {
    // One that is larger than everything is never kept, nor does it drive out the others.
    SharedCache cache({100, 100});
    CHECK(!use(cache, 1));
    for (int i = 0; i < 5; ++i) {
      CHECK(!use(cache, 2, 101));
      CHECK(use(cache, 1));
    }
    CHECK_EQUAL(cache.bytes(), size_t{10});
    // It lives on with whoever has it.
    const std::shared_ptr<const void> held = cache.find(key(1));
    CHECK_EQUAL(held.use_count(), 2);
  }
}

}  // namespace tests
}  // namespace sparsekernels
