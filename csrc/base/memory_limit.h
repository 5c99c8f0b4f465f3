// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <string>

namespace sparsekernels {

// `bytes`, or a container's share, where there is such a limit: under `root`, where version 2 of Linux's control groups
// keeps it, or version 1. Without one there is no file, or no number in it, or one beyond all memory.
inline size_t memory_limit(size_t bytes, const std::string& root = "/sys/fs/cgroup") {
  for (const char* const file : {"/memory.max", "/memory/memory.limit_in_bytes"}) {
    std::ifstream group(root + file);
    size_t share = 0;
    if (group >> share && share > 0) bytes = std::min(bytes, share);
  }
  return bytes;
}

}  // namespace sparsekernels
