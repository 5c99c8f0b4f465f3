// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Keeps the kernels of patterns from call to call. Patterns are keyed by content, so a pattern that changes
// needs no invalidation.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/hash128.h"
#include "sparse_conv2d/jit/forward_kernel.h"
#include "sparse_conv2d/jit/weight_gradient_kernel.h"

namespace sparsekernels::jit {

// 128 bits of all that kernels follow from: the pattern's content, its lattice and plan.
using KernelKey = Hash128;

KernelKey key_of(const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern, const Threads& threads);
KernelKey key_of(
    const Lattice& lattice, const WeightGradientPlan& plan, const SparsePattern& pattern, const Threads& threads);

// Those of a pattern, kept or made now; null where the system gives no executable memory for them. `key` is that of the
// other arguments.
std::shared_ptr<const ForwardKernels> cached_kernels(
    const KernelKey& key, const Lattice& lattice, const ForwardPlan& plan, const SparsePattern& pattern,
    const Threads& threads);

std::shared_ptr<const WeightGradientKernels> cached_weight_gradient_kernels(
    const KernelKey& key, const Lattice& lattice, const WeightGradientPlan& plan, const SparsePattern& pattern,
    const Threads& threads);

// What uses the kernels of a key, again and again: once the last such is gone, they are the first to make room.
class KernelUser {
 public:
  KernelUser() = default;
  ~KernelUser();
  KernelUser(const KernelUser&) = delete;
  KernelUser& operator=(const KernelUser&) = delete;

  // Once.
  void use(const KernelKey& key);

 private:
  KernelKey key_ = {};
  bool is_user_ = false;
};

// Whether kernels may be used: not where SPARSEKERNELS_CPU_JIT, the most megabytes of them that are kept, is 0,
// nor where the system refuses to run them. Throws std::invalid_argument where that is no number.
bool jit_allowed();

// Whether there are any here: the instruction set has them, and they are allowed.
bool jit_available();

int64_t kept_kernel_bytes();

// That may be kept, of patterns in use. From 256 MB on, others make room for them.
int64_t most_kernel_bytes();

}  // namespace sparsekernels::jit
