// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Picks the kernels of the best instruction set that this processor has.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/fork_safe_mutex.h"
#include "base/interface.h"
#include "isa/kernels.h"

namespace sparsekernels {
namespace {

struct Candidate {
  const CpuKernels* kernels;
  bool supported;
};

#if defined(SPARSEKERNELS_X86)
// F16C is not asked for: every processor with AVX2 has it, and older compilers do not know its name.
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

// Best first.
std::vector<Candidate> candidates() {
  return {
#if defined(SPARSEKERNELS_X86)
      {&kAvx512Kernels, has_avx512()},
      {&kAvx2Kernels, has_avx2()},
#endif
      {&kPortableKernels, true},
  };
}

std::string supported_names() {
  std::string names;
  for (const Candidate& one : candidates()) {
    if (!one.supported) continue;
    if (!names.empty()) names += ' ';
    names += one.kernels->isa;
  }
  return names;
}

const CpuKernels* pick() {
  const char* forced = std::getenv("SPARSEKERNELS_CPU_ISA");
  for (const Candidate& one : candidates()) {
    if (!one.supported) continue;
    if (forced == nullptr || std::strcmp(forced, one.kernels->isa) == 0) return one.kernels;
  }
  throw std::runtime_error(
      "sparsekernels: expected SPARSEKERNELS_CPU_ISA to be one of: " + supported_names() + ", got '" + forced + "'");
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static MadeOnce<const CpuKernels*> kernels;
  return *kernels.get(pick);
}

}  // namespace sparsekernels

extern "C" {

SPARSEKERNELS_EXPORT const char* sparsekernels_cpu_interface() {
  return sparsekernels::kInterface;
}

// The instruction set in use; null where SPARSEKERNELS_CPU_ISA asks for one that is not available.
SPARSEKERNELS_EXPORT const char* sparsekernels_cpu_isa() {
  try {
    return sparsekernels::cpu_kernels().isa;
  } catch (const std::exception&) {
    return nullptr;
  }
}

// Whether it has JIT kernels; false where the above is null.
SPARSEKERNELS_EXPORT bool sparsekernels_cpu_has_jit() {
  try {
    return sparsekernels::cpu_kernels().has_jit;
  } catch (const std::exception&) {
    return false;
  }
}

SPARSEKERNELS_EXPORT const char* sparsekernels_cpu_supported_isas() {
  static sparsekernels::MadeOnce<std::string> names;
  return names.get(sparsekernels::supported_names).c_str();
}
}
