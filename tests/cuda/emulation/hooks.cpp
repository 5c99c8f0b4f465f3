// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the compiler calls at every load and store of a source that is compiled with -fsanitize=thread, alignment and
// bounds. The sanitizers' own libraries are not linked: these take their place.
#include <cstdio>
#include <cstring>

#include "state.h"

namespace {

using emulated::Access;

inline void hook(const void* address, size_t bytes, Access what, const void* place) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (emulated::current == nullptr || (at >= emulated::stacks_begin && at < emulated::stacks_end)) return;
  emulated::check(at, bytes, what, place);
}

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

struct Type {
  uint16_t kind, info;
  char name[1];
};

struct Mismatch {
  SourceLocation location;
  const Type* type;
  unsigned char log_alignment, check;
};

struct OutOfBounds {
  SourceLocation location;
  const Type *array, *index;
};

}  // namespace

extern "C" {

#define HOOKS(bytes)                                                   \
  void __tsan_read##bytes(void* address) {                             \
    hook(address, bytes, Access::kRead, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_write##bytes(void* address) {                            \
    hook(address, bytes, Access::kWrite, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_unaligned_read##bytes(void* address) {                   \
    hook(address, bytes, Access::kRead, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_unaligned_write##bytes(void* address) {                  \
    hook(address, bytes, Access::kWrite, __builtin_return_address(0)); \
  }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
  hook(address, bytes, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  hook(address, bytes, Access::kWrite, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// Calls of memcpy and memset that the compiler left in kernels, whose objects have them renamed.
void* emulated_memcpy(void* to, const void* from, size_t bytes) {
  hook(from, bytes, Access::kRead, __builtin_return_address(0));
  hook(to, bytes, Access::kWrite, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* emulated_memset(void* to, int value, size_t bytes) {
  hook(to, bytes, Access::kWrite, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}

void __ubsan_handle_type_mismatch_v1(const Mismatch* what, const void*) {
  const size_t alignment = size_t{1} << what->log_alignment;
  emulated::fault(
      "alignment", __builtin_return_address(0), "%s:%u: %s at an address that is no multiple of %zu",
      what->location.file, what->location.line, what->type->name, alignment);
}
void __ubsan_handle_out_of_bounds(const OutOfBounds* what, size_t index) {
  emulated::fault(
      "bounds", __builtin_return_address(0), "%s:%u: index %zu of %s", what->location.file, what->location.line, index,
      what->array->name);
}
}
