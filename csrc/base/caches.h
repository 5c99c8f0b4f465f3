// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The sizes of this processor's caches.
#pragma once

#include <cstdint>

namespace sparsekernels {

struct Caches {
  int64_t l1_lines, l2_lines;  // of one core, in lines of 64 bytes
};

const Caches& caches();

}  // namespace sparsekernels
