// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Picks the kernels of the best instruction set that this processor has.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

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
const Candidate* candidates(int& count) {
  static const Candidate all[] = {
#if defined(SPARSEKERNELS_X86)
      {&kAvx512Kernels, has_avx512()},
      {&kAvx2Kernels, has_avx2()},
#endif
      {&kPortableKernels, true},
  };
  count = static_cast<int>(sizeof all / sizeof all[0]);
  return all;
}

std::string supported_names() {
  std::string names;
  int count;
  const Candidate* all = candidates(count);
  for (int i = 0; i < count; ++i) {
    if (!all[i].supported) continue;
    if (!names.empty()) names += ' ';
    names += all[i].kernels->isa;
  }
  return names;
}

const CpuKernels& pick() {
  const char* forced = std::getenv("SPARSEKERNELS_CPU_ISA");
  int count;
  const Candidate* all = candidates(count);
  for (int i = 0; i < count; ++i) {
    if (!all[i].supported) continue;
    if (forced == nullptr || std::strcmp(forced, all[i].kernels->isa) == 0) return *all[i].kernels;
  }
  throw std::runtime_error(
      "sparsekernels: expected SPARSEKERNELS_CPU_ISA to be one of: " + supported_names() + ", got '" + forced + "'");
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& kernels = pick();
  return kernels;
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
  static const std::string names = sparsekernels::supported_names();
  return names.c_str();
}
}
