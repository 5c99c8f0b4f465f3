// The sizes of this processor's caches.
#pragma once

#include <cstdint>

namespace sparsekernels {

struct Caches {
  int64_t first, second;  // of one core, in lines of 64 bytes
};

const Caches& caches();

}  // namespace sparsekernels
