// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/kernel_cache.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "base/fork_safe_mutex.h"
#include "base/hash128.h"
#include "base/jit/assembler.h"
#include "base/memory_limit.h"
#include "base/shared_cache.h"
#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/epilogue.h"

namespace sparsekernels::jit {
namespace {

// Of `used` bytes in all, a part is for patterns that were requested once.
CacheLimits limits_of(size_t kept, size_t used) {
  constexpr size_t kRecentPart = 16;
  const size_t recent = kept / kRecentPart;
  return {kept - recent, used - recent, recent};
}

CacheLimits read_limits() {
  constexpr size_t kMegabyte = size_t{1} << 20, kKept = 256 * kMegabyte;
  const char* const set = std::getenv("SPARSEKERNELS_CPU_JIT");
  if (set != nullptr && *set != 0) {
    char* end = nullptr;
    errno = 0;
    const long long megabytes = std::strtoll(set, &end, 10);
    constexpr long long kMost = 1 << 24;
    if (end == set || *end != 0 || errno != 0 || megabytes < 0 || megabytes > kMost) {
      throw std::invalid_argument(
          std::string(
              "sparsekernels: expected SPARSEKERNELS_CPU_JIT to be a whole number of megabytes such as 1024, or 0"
              " for no kernels, got '") +
          set + "'");
    }
    const size_t most = static_cast<size_t>(megabytes) * kMegabyte;
    return limits_of(std::min(most, kKept), most);
  }
  size_t memory = 0;
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) memory = static_cast<size_t>(pages) * static_cast<size_t>(page);
#endif
  memory = memory_limit(memory);
  constexpr size_t kMost = 4096 * kMegabyte;
  return limits_of(kKept, std::min(kMost, std::max(kKept, memory / 8)));
}

const CacheLimits& limits() {
  static MadeOnce<CacheLimits> read;
  return read.get(read_limits);
}

KernelKey hash_pattern(const SparsePattern& pattern, const std::vector<int64_t>& contents, const Threads& threads) {
  struct Array {
    const int32_t* data;
    int64_t count;
  };
  const Array arrays[3] = {
      {pattern.crow_indices, pattern.rows + 1},
      {pattern.col_indices, pattern.nonzeros},
      {pattern.permutation, pattern.permutation == nullptr ? 0 : pattern.nonzeros}};
  // A hash tree: of leaves first, on all threads, then of their hashes.
  constexpr int64_t kLeafElements = cost::threads::kLeafElements;
  std::vector<Array> leaves;
  for (const Array& array : arrays)
    for (int64_t at = 0; at < array.count; at += kLeafElements)
      leaves.push_back({array.data + at, std::min(kLeafElements, array.count - at)});
  std::vector<Hash128> hashes(leaves.size() + 1);
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Array& leaf = leaves[static_cast<size_t>(i)];
      hashes[static_cast<size_t>(i)] = hash128(leaf.data, static_cast<size_t>(leaf.count) * sizeof(int32_t));
    }
  };
  const int64_t count = static_cast<int64_t>(leaves.size());
  if (count < cost::threads::kFewestLeaves) {
    range(0, count);
  } else {
    threads.run(count, range);
  }
  hashes.back() = hash128(contents.data(), contents.size() * sizeof(int64_t));
  return hash128(hashes.data(), hashes.size() * sizeof(Hash128));
}

// Everything but the pattern that kernels depend on: of the lattice and its layout, then of a kind of kernels.
enum class Kind { kForward, kWeightGradient };
std::vector<int64_t> contents_of(
    Kind kind, const Lattice& lattice, const Layout& layout, const SparsePattern& pattern) {
  std::vector<int64_t> contents = {
      static_cast<int64_t>(kind),
      lattice.groups,
      lattice.source_channels,
      lattice.dest_channels,
      lattice.residues(),
      layout.images,
      layout.pitch,
      layout.phase_floats,
      layout.channel_floats,
      layout.vector_stride,
      layout.strip[0],
      layout.strip[1],
      pattern.rows,
      pattern.nonzeros,
      pattern.permutation != nullptr};
  contents.push_back(static_cast<int64_t>(layout.masks.size()));
  for (const MaskedShift& mask : layout.masks)
    for (const int64_t number : {mask.shift, mask.columns}) contents.push_back(number);
  contents.push_back(static_cast<int64_t>(layout.first_column.size()));
  for (size_t t = 0; t < lattice.taps.size(); ++t) {
    const Tap& tap = lattice.taps[t];
    const TapColumns& columns = layout.taps[t];
    for (const int64_t number :
         {tap.phase[0], tap.shift[0], tap.residue, static_cast<int64_t>(tap.reaches), columns.plane, columns.shift,
          static_cast<int64_t>(columns.mask)})
      contents.push_back(number);
  }
  return contents;
}

SharedCache& cache() {
  static MadeOnce<std::unique_ptr<SharedCache>> one;
  return *one.get([] { return std::make_unique<SharedCache>(limits()); });
}

template <class Kept, class Plan>
std::shared_ptr<const Kept> cached(
    const KernelKey& key, const Lattice& lattice, const Plan& plan, const SparsePattern& pattern,
    const Threads& threads) {
  if (const std::shared_ptr<const void> found = cache().find(key)) return std::static_pointer_cast<const Kept>(found);
  std::shared_ptr<const Kept> kernels = Kept::make(lattice, plan, pattern, threads);
  if (kernels != nullptr) cache().insert(key, kernels, kernels->bytes());
  return kernels;
}

}  // namespace

KernelUser::~KernelUser() {
  if (is_user_) cache().disown(key_);
}

void KernelUser::use(const KernelKey& key) {
  cache().own(key);
  key_ = key;
  is_user_ = true;
}

bool jit_allowed() {
  static MadeOnce<bool> allowed;
  return allowed.get([] {
    if (limits().used == 0) return false;
    std::vector<Assembler> smallest(1);
    smallest[0].ret();
    return Executable::make(smallest) != nullptr;
  });
}

bool jit_available() {
  return cpu_kernels().has_jit && jit_allowed();
}

int64_t most_kernel_bytes() {
  return static_cast<int64_t>(limits().used + limits().recent);
}

int64_t kept_kernel_bytes() {
  return static_cast<int64_t>(cache().bytes());
}

KernelKey key_of(
    const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::vector<int64_t> contents = contents_of(Kind::kForward, lattice, plan, pattern);
  const int64_t row_floats = plan.direct ? lattice.dest.stride[1] : -1;
  const int64_t residual_floats = plan.epilogue_flags & kAddsResidual ? plan.residual_channel : -1;
  for (const int64_t number :
       {plan.panel_channels, plan.slices, plan.slice_rows, row_floats, int64_t{plan.epilogue_flags}, residual_floats})
    contents.push_back(number);
  contents.push_back(plan.block_rows);
  contents.push_back(plan.scatter_channels);
  if (plan.has_tiles()) {  // their lists follow from what each vector reaches
    contents.push_back(plan.tile_vectors);
    for (int d = 0; d < 2; ++d) {
      for (const int64_t number :
           {lattice.size[d], lattice.source.size[2 + d], lattice.origin[d], lattice.source_step[d], plan.strips[d]})
        contents.push_back(number);
      contents.insert(contents.end(), lattice.phases[d].begin(), lattice.phases[d].end());
    }
    contents.insert(contents.end(), plan.first_column.begin(), plan.first_column.end());
  }
  return hash_pattern(pattern, contents, threads);
}

KernelKey key_of(
    const Lattice& lattice, const WeightGradientPlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::vector<int64_t> contents = contents_of(Kind::kWeightGradient, lattice, plan, pattern);
  for (const int64_t number :
       {lattice.size[0], plan.slice_rows, plan.grad_channel_floats, plan.grad_vector_stride, plan.row_lanes,
        plan.rows_alike})
    contents.push_back(number);
  return hash_pattern(pattern, contents, threads);
}

std::shared_ptr<const ForwardKernels> cached_kernels(
    const KernelKey& key, const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern,
    const Threads& threads) {
  return cached<ForwardKernels>(key, lattice, plan, pattern, threads);
}

std::shared_ptr<const WeightGradientKernels> cached_weight_gradient_kernels(
    const KernelKey& key, const Lattice& lattice, const WeightGradientPlan& plan, const SparsePattern& pattern,
    const Threads& threads) {
  return cached<WeightGradientKernels>(key, lattice, plan, pattern, threads);
}

}  // namespace sparsekernels::jit
