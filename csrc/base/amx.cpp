// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "base/amx.h"

#include <cstdlib>
#include <cstring>

#include "base/fork_safe_mutex.h"

#if defined(SPARSEKERNELS_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace sparsekernels {
namespace {

constexpr const char* kNone = "the processor has no AMX for bfloat16";
[[maybe_unused]] constexpr const char* kRefused = "the system does not let this process use AMX";

// Null, or why not.
const char* ask() {
  const char* const asked = std::getenv("SPARSEKERNELS_CPU_AMX");
  if (asked != nullptr && std::strcmp(asked, "0") == 0) return "SPARSEKERNELS_CPU_AMX=0";
#if defined(SPARSEKERNELS_X86) && defined(__linux__)
  uint32_t a, b, c, d;
  constexpr uint32_t kBf16 = 1u << 22, kTile = 1u << 24, kOsxsave = 1u << 27;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTile) == 0) return kNone;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kOsxsave) == 0) return kNone;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kTileState = 3u << 17;  // XTILECFG and XTILEDATA
  if ((low & kTileState) != kTileState) return kRefused;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? nullptr : kRefused;
#else
  return kNone;
#endif
}

}  // namespace

const char* amx_missing() {
  static MadeOnce<const char*> missing;
  return missing.get(ask);
}

bool may_use_amx() {
  return amx_missing() == nullptr;
}

}  // namespace sparsekernels
