// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The hash that kernels are kept by, and what a cache keeps and drops.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <vector>

#if __has_include(<sys/wait.h>)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "base/fork_safe_mutex.h"
#include "base/hash128.h"
#include "base/memory_limit.h"
#include "base/numbered.h"
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

// A large value drives out as many small ones as it takes, with no walk over the others for each.
void check_eviction_time() {
  constexpr uint64_t kSmall = 60000;
  SharedCache cache({kSmall, 2 * kSmall});
  for (uint64_t i = 0; i < kSmall; ++i) CHECK(!use(cache, i, 1));
  CHECK(!use(cache, kSmall, kSmall / 2));
  const auto start = std::chrono::steady_clock::now();
  CHECK(!use(cache, kSmall, kSmall / 2));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(500));  // by walks: 30 s
  CHECK_EQUAL(cache.bytes(), size_t{kSmall});
  for (uint64_t i = 0; i <= kSmall; ++i) CHECK_EQUAL(use(cache, i, 1), i >= kSmall / 2);
}

// What was requested once is there for the second request, within a limit of its own, and then makes room for itself;
// a bounded number of others is dropped at a time.
void check_recent() {
  {
    SharedCache cache({100, 100, 30});
    for (uint64_t i = 0; i < 10; ++i) CHECK(!use(cache, i));
    for (uint64_t i = 10; i < 14; ++i) CHECK(!use(cache, i));  // the fourth drives out the first
    CHECK_EQUAL(cache.bytes(), size_t{130});
    CHECK(!use(cache, 14, 31));                               // too large: drives out nothing
    for (uint64_t i = 11; i < 14; ++i) CHECK(use(cache, i));  // kept from here on, in place of 0, 1 and 2
    CHECK_EQUAL(cache.bytes(), size_t{100});
    CHECK(!use(cache, 10));  // its second request: in place of 3
    CHECK(!use(cache, 0));
    CHECK_EQUAL(cache.bytes(), size_t{110});
    for (uint64_t i = 4; i < 14; ++i) CHECK(use(cache, i));
    CHECK(use(cache, 0));  // all others were used between its requests
    for (uint64_t i = 4; i < 14; ++i) CHECK(use(cache, i));
    CHECK_EQUAL(cache.bytes(), size_t{110});
    CHECK(!use(cache, 14, 31));
    CHECK_EQUAL(cache.bytes(), size_t{110});
  }
  {
    constexpr uint64_t kSmall = 60000;
    SharedCache cache({kSmall, kSmall, kSmall / 10});
    for (uint64_t i = 0; i < kSmall; ++i) CHECK(!use(cache, i, 1));
    CHECK(!use(cache, kSmall, kSmall / 10));
    size_t before = cache.bytes();
    CHECK_EQUAL(before, size_t{kSmall + kSmall / 10});
    for (int i = 0; i < 100; ++i) {
      CHECK(use(cache, kSmall, 0));
      CHECK(cache.bytes() <= before && before - cache.bytes() <= 200);
      before = cache.bytes();
    }
    CHECK_EQUAL(before, size_t{kSmall});
  }
}

// What its last owner disowned is a recent value: the rest has its room, and what is beyond the recent ones is dropped.
void check_owners() {
  SharedCache cache({100, 100, 30});
  for (uint64_t i = 0; i < 10; ++i) {
    cache.own(key(i));
    CHECK(!use(cache, i));
  }
  cache.own(key(0));
  for (uint64_t i = 0; i < 5; ++i) cache.disown(key(i));
  CHECK_EQUAL(cache.bytes(), size_t{90});  // 1 is gone, 2, 3 and 4 are recent, 0 has an owner left
  for (uint64_t i = 10; i < 14; ++i) {     // with room from the first request on
    cache.own(key(i));
    CHECK(!use(cache, i));
  }
  CHECK_EQUAL(cache.bytes(), size_t{130});
  CHECK(cache.find(key(1)) == nullptr);
  for (const uint64_t i : {0, 5, 9, 10, 13}) CHECK(use(cache, i));
  cache.disown(key(0));
  CHECK_EQUAL(cache.bytes(), size_t{120});  // in place of 2
  CHECK(cache.find(key(2)) == nullptr);
  CHECK(use(cache, 0));  // and kept again, as there is room
  CHECK_EQUAL(cache.bytes(), size_t{120});
  cache.disown(key(0));  // it had no owner any more
  cache.disown(key(99));
  CHECK_EQUAL(cache.bytes(), size_t{120});
  cache.own(key(20));  // owned, but not there
  cache.disown(key(20));
  cache.own(key(21));
  CHECK(!use(cache, 21, 50));  // too large for a recent one
  for (uint64_t i = 5; i < 14; ++i) cache.disown(key(i));
  CHECK(!use(cache, 21, 50));
  CHECK(use(cache, 21, 50));
  const size_t before = cache.bytes();
  cache.disown(key(21));
  CHECK_EQUAL(cache.bytes(), before - 50);
}

// What is dropped may itself ask the cache, or be slow: it is destroyed without the lock.
void check_destroyed_without_the_lock() {
  struct Asks {
    SharedCache* cache;
    ~Asks() { cache->bytes(); }
  };
  SharedCache cache({100, 100});
  cache.insert(key(1), std::shared_ptr<Asks>(new Asks{&cache}), 100);
  for (int i = 0; i < 2; ++i) cache.insert(key(2), std::make_shared<int>(0), 100);
  CHECK(cache.find(key(1)) == nullptr);
  struct Frees {
    Numbered<Frees>* all;
    ~Frees() { all->free(0); }
  };
  Numbered<Frees> all("expected one");
  all.free(all.add(std::shared_ptr<Frees>(new Frees{&all})));
}

// Where control groups of either version keep a container's limit.
void check_memory_limit() {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("sparsekernels-" + std::to_string(hash128("", 0).low));
  fs::create_directories(root / "memory");
  const auto limit = [&](const char* file, const char* text) {
    std::ofstream(root / file) << text << "\n";
    return memory_limit(1000, root.string());
  };
  CHECK_EQUAL(memory_limit(1000, root.string()), size_t{1000});
  CHECK_EQUAL(limit("memory/memory.limit_in_bytes", "9223372036854771712"), size_t{1000});
  CHECK_EQUAL(limit("memory/memory.limit_in_bytes", "300"), size_t{300});
  CHECK_EQUAL(limit("memory.max", "max"), size_t{300});
  CHECK_EQUAL(limit("memory.max", "200"), size_t{200});
  fs::remove_all(root);
}

void check_made_once() {
  OwnedMadeOnce<std::vector<int>> once;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  std::atomic<const std::vector<int>*> seen{nullptr};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      const std::vector<int>& one = once.get([] { return std::vector<int>(1000, 7); });
      const std::vector<int>* other = nullptr;
      if (!seen.compare_exchange_strong(other, &one) && other != &one) ++wrong;
      if (one.size() != 1000 || one[999] != 7) ++wrong;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(wrong.load(), 0);
}

#if __has_include(<sys/wait.h>)
// A child of a process whose other threads use what is shared: it never waits for one of these.
void check_forks() {
  SharedCache cache({1000, 2000, 100});
  Numbered<int> numbers("expected one");
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; !stop; ++i) {
        use(cache, (t + i) % 300);
        numbers.free(numbers.add(std::make_shared<int>(0)));
      }
    });
  int failed = 0;
  for (int i = 0; i < 200; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      use(cache, 1);
      numbers.free(numbers.add(std::make_shared<int>(0)));
      _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    failed += status != 0;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(failed, 0);
}
#endif

}  // namespace

void test_caches() {
  check_hash();
  check_eviction_time();
  check_recent();
  check_owners();
  check_destroyed_without_the_lock();
  check_made_once();
  check_memory_limit();
#if __has_include(<sys/wait.h>)
  check_forks();
#endif
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
    for (int i = 0; i < 3; ++i) CHECK(!use(cache, 3, 101));  // nor where they are not in use
    CHECK(use(cache, 1));
    CHECK_EQUAL(cache.bytes(), size_t{10});
    // It lives on with whoever has it.
    const std::shared_ptr<const void> held = cache.find(key(1));
    CHECK_EQUAL(held.use_count(), 2);
  }
}

}  // namespace tests
}  // namespace sparsekernels
