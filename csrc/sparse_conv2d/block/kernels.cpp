// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which kernels for blocks in bfloat16 this machine has.
#include "sparse_conv2d/block/kernels.h"

#include <cstdlib>
#include <cstring>

#include "base/amx.h"
#include "base/fork_safe_mutex.h"
#include "isa/kernels.h"

namespace sparsekernels::block {
namespace {

// SPARSEKERNELS_CPU_AMX=0 leaves AMX out.
const Kernels* pick() {
  if (std::strcmp(cpu_kernels().isa, "avx512") != 0) return &kPortableKernels;
#if defined(SPARSEKERNELS_AMX)
  const char* const asked = std::getenv("SPARSEKERNELS_CPU_AMX");
  if ((asked == nullptr || std::strcmp(asked, "0") != 0) && may_use_amx()) return &kAmxKernels;
#endif
#if defined(SPARSEKERNELS_AVX512BF16)
  if (__builtin_cpu_supports("avx512bf16")) return &kDotKernels;
#endif
  return &kPortableKernels;
}

}  // namespace

const Kernels& kernels() {
  static MadeOnce<const Kernels*> made;
  return *made.get(pick);
}

}  // namespace sparsekernels::block
