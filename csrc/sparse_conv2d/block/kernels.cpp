// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which kernels for blocks in bfloat16 this machine has.
#include "sparse_conv2d/block/kernels.h"

#include <cstring>

#include "base/amx.h"
#include "base/fork_safe_mutex.h"
#include "isa/kernels.h"

namespace sparsekernels::block {
namespace {

// Why the kernels for AMX do not serve; null where they do.
const char* why_not_amx() {
  if (std::strcmp(cpu_kernels().isa, "avx512") != 0) return "SPARSEKERNELS_CPU_ISA or the processor leave AVX-512 out";
#if defined(SPARSEKERNELS_AMX)
  if (!__builtin_cpu_supports("avx512bf16")) return "the processor has no AVX512-BF16";
  return amx_missing();
#else
  return "the compiler that built the kernels does not know AMX";
#endif
}

const Kernels* pick() {
  if (std::strcmp(cpu_kernels().isa, "avx512") != 0) return &kPortableKernels;
#if defined(SPARSEKERNELS_AMX)
  if (why_not_amx() == nullptr) return &kAmxKernels;
#endif
#if defined(SPARSEKERNELS_AVX512BF16)
  if (__builtin_cpu_supports("avx512bf16")) return &kDotKernels;
#endif
  return &kPortableKernels;
}

}  // namespace

const char* amx_reason() {
  static MadeOnce<const char*> made;
  return made.get(why_not_amx);
}

const Kernels& kernels() {
  static MadeOnce<const Kernels*> made;
  return *made.get(pick);
}

}  // namespace sparsekernels::block
