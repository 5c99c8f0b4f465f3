// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// 64 bits that stand for what tensors hold, and where. Knows no torch.
#pragma once

#include <cstdint>
#include <vector>

#include "base/threads.h"

namespace sparsekernels {

struct TensorPlace {
  const void* data;
  int64_t element_bytes;
  int64_t dim;
  const int64_t* size;
  const int64_t* stride;  // in elements, none negative
};

// A stretch of memory that is hashed as a whole.
struct MemoryRun {
  const char* data;
  int64_t bytes;
};

// Appends the memory of a tensor, each byte once save where elements overlap, in runs of at most kMostRunBytes.
void append_runs(const TensorPlace& tensor, std::vector<MemoryRun>& runs);

// The same for any number of threads.
uint64_t content_hash(const std::vector<MemoryRun>& runs, const Threads& threads);

constexpr int64_t kMostRunBytes = 1 << 17;
// A thread takes about this many at a time: waking it costs 5 us, in which one reads as much.
constexpr int64_t kBytesPerThread = 1 << 18;

}  // namespace sparsekernels
