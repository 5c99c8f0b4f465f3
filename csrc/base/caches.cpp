// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "base/caches.h"

#include "base/fork_safe_mutex.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace sparsekernels {

const Caches& caches() {
  static MadeOnce<Caches> sizes;
  return sizes.get([] {
    constexpr int64_t kLineBytes = 64;
    long first = -1, second = -1;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    first = sysconf(_SC_LEVEL1_DCACHE_SIZE);
    second = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (first < 16 * 1024) first = 32 * 1024;
    if (second < 256 * 1024) second = 512 * 1024;
    return Caches{first / kLineBytes, second / kLineBytes};
  });
}

}  // namespace sparsekernels
