// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "fingerprint/fingerprint.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "isa/kernels.h"

namespace sparsekernels {
namespace {

struct Dimension {
  int64_t size, stride;
};

}  // namespace

void append_runs(const TensorPlace& tensor, std::vector<MemoryRun>& runs) {
  std::vector<Dimension> dimensions;
  for (int64_t d = 0; d < tensor.dim; ++d) {
    if (tensor.size[d] == 0) return;
    if (tensor.size[d] > 1 && tensor.stride[d] > 0) dimensions.push_back({tensor.size[d], tensor.stride[d]});
  }
  std::sort(
      dimensions.begin(), dimensions.end(), [](const Dimension& a, const Dimension& b) { return a.stride < b.stride; });
  int64_t run = 1;  // elements that follow each other
  size_t inner = 0;
  while (inner < dimensions.size() && dimensions[inner].stride == run) run *= dimensions[inner++].size;

  std::vector<int64_t> index(dimensions.size(), 0);
  while (true) {
    int64_t offset = 0;
    for (size_t d = inner; d < dimensions.size(); ++d) offset += index[d] * dimensions[d].stride;
    const char* data = static_cast<const char*>(tensor.data) + offset * tensor.element_bytes;
    for (int64_t left = run * tensor.element_bytes; left > 0;) {
      const int64_t bytes = std::min(left, kMostRunBytes);
      runs.push_back({data, bytes});
      data += bytes;
      left -= bytes;
    }
    size_t d = inner;
    while (d < dimensions.size() && ++index[d] == dimensions[d].size) index[d++] = 0;
    if (d == dimensions.size()) return;
  }
}

uint64_t content_hash(const std::vector<MemoryRun>& runs, const Threads& threads) {
  const CpuKernels& kernels = cpu_kernels();
  const auto hash = [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;  // in which the order of threads does not show; each run has a seed of its own
    for (int64_t i = begin; i < end; ++i) {
      const MemoryRun& run = runs[static_cast<size_t>(i)];
      sum += kernels.hash64(run.data, run.bytes, static_cast<uint64_t>(i));
    }
    return sum;
  };
  int64_t bytes = 0;
  for (const MemoryRun& run : runs) bytes += run.bytes;
  const auto count = static_cast<int64_t>(runs.size());
  if (bytes < 2 * kBytesPerThread || threads.count == 1) return hash(0, count);
  std::atomic<uint64_t> sum{0};
  threads.run(count, [&](int64_t begin, int64_t end) { sum += hash(begin, end); });
  return sum;
}

}  // namespace sparsekernels
