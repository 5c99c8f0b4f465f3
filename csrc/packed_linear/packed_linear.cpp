// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "packed_linear/packed_linear.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/amx.h"
#include "base/fork_safe_mutex.h"
#include "base/workspace.h"
#include "isa/kernels.h"

namespace sparsekernels {
namespace {

thread_local Workspace call_workspace;  // the input as kernels read it, for all threads of a call

// Rows from which tiles are faster than vectors, which expand the weight again for every four of them.
constexpr int64_t kFewestTileRows = 3;
// Words that are worth a thread: some 10 microseconds.
constexpr int64_t kWordsPerThread = 4096;
// What a word takes beside its values, in bytes of these.
constexpr int64_t kWordBytes = 24;

bool has_vbmi2() {
#if defined(SPARSEKERNELS_VBMI2)
  static MadeOnce<bool> made;
  return made.get([] {
    const char* const asked = std::getenv("SPARSEKERNELS_CPU_VBMI2");
    const bool is_left_out = asked != nullptr && std::strcmp(asked, "0") == 0;
    return !is_left_out && std::strcmp(cpu_kernels().isa, "avx512") == 0 && __builtin_cpu_supports("avx512vbmi2");
  });
#else
  return false;
#endif
}

const PackedLinearKernels& vector_kernels(DType dtype) {
#if defined(SPARSEKERNELS_VBMI2)
  if (has_vbmi2()) return kPackedVbmi2[static_cast<int>(dtype)];
#endif
  return cpu_kernels().packed_linear[static_cast<int>(dtype)];
}

const PackedLinearKernels& kernels_of(const PackedLinear& call) {
#if defined(SPARSEKERNELS_AMX) && defined(SPARSEKERNELS_VBMI2)
  if (call.dtype == DType::kBFloat16 && call.rows >= kFewestTileRows && has_vbmi2() && may_use_amx()) return kPackedAmx;
#endif
  return vector_kernels(call.dtype);
}

int64_t threads_for(const PackedLinear& call, int64_t outputs, const Threads& threads) {
  return std::clamp<int64_t>(outputs * call.row_words / kWordsPerThread, 1, threads.count);
}

// Where each of `shares` begins, multiples of `group`, and the end: each has about as much to read and to expand.
std::vector<int64_t> bounds_of(const PackedLinear& call, int64_t shares, int64_t group) {
  const int64_t element = element_size(call.dtype), row = call.row_words * kWordBytes;
  const auto cost = [&](int64_t output) { return call.first_value(output) * element + output * row; };
  const int64_t each = cost(call.outputs) / shares;
  std::vector<int64_t> bounds = {0};
  for (int64_t share = 1; share < shares; ++share) {
    int64_t low = bounds.back(), high = call.outputs;  // ascending, whatever the indices are
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (cost(middle) < each * share) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    bounds.push_back(std::max(bounds.back(), low / group * group));
  }
  bounds.push_back(call.outputs);
  return bounds;
}

}  // namespace

void packed_linear(const PackedLinear& call, const Threads& threads) {
  if (call.outputs == 0 || call.rows == 0) return;
  const PackedLinearKernels& kernels = kernels_of(call);
  const TrimWorkspace trim{call_workspace};
  float* arranged;
  WorkspaceLayout layout;
  layout.add(&arranged, kernels.arranged_floats(call));
  layout.allocate(call_workspace);
  kernels.arrange(call, arranged);
  const int64_t shares = threads_for(call, call.outputs, threads);
  if (shares == 1) return kernels.run(call, arranged, 0, call.outputs);
  const std::vector<int64_t> bounds = bounds_of(call, shares, kernels.group);
  threads.run(shares, [&](int64_t begin, int64_t end) {
    const int64_t first = bounds[static_cast<size_t>(begin)], last = bounds[static_cast<size_t>(end)];
    if (first < last) kernels.run(call, arranged, first, last);
  });
}

void unpack_rows(const PackedLinear& call, int64_t begin, int64_t end, const Threads& threads, void* to) {
  const PackedLinearKernels& kernels = vector_kernels(call.dtype);
  const int64_t row_bytes = call.columns * element_size(call.dtype), outputs = end - begin;
  const int64_t shares = threads_for(call, outputs, threads);
  const auto run = [&](int64_t first_share, int64_t last_share) {
    const int64_t first = outputs * first_share / shares, last = outputs * last_share / shares;
    kernels.unpack(call, begin + first, begin + last, static_cast<char*>(to) + first * row_bytes);
  };
  if (shares == 1) return run(0, 1);
  threads.run(shares, run);
}

}  // namespace sparsekernels
