// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The emulation of a CUDA device: what the headers beside this one call. docs/cuda_kernels.md says what it checks.
//
// Kernels are compiled as C++ with -fsanitize=thread, alignment and bounds, whose hooks report every load and store
// (hooks.cpp). A __shared__ object is a thread_local one of a library: the compiler asks where it lies (memory.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulated {

// Constant within a thread, so that calls of them may be merged.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();

// Runs body(context) in every thread of every block. Returns a cudaError.
int run(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* context);

// Barriers. `kind` and `value`: what __syncthreads_count and its kin add up; returned: the number of nonzero values.
int block_barrier(bool value);
void warp_barrier(unsigned mask);

// A step of a warp in which every lane of mask gives a word and gets one: combine(given, lane) of all 32 words.
enum class Warp { kShuffle, kBallot, kAdd, kMin, kMax, kUnsignedMin, kUnsignedMax, kAnd, kOr, kXor };
uint64_t warp_step(Warp what, unsigned mask, uint64_t given, int source_lane);
unsigned lane_index();

// Loads and stores as the hooks report them, for what is done on a kernel's behalf.
enum class Access { kRead, kWrite, kAtomic, kPrefetch };
void access(const void* address, size_t bytes, Access what);
void require_aligned(const void* address, size_t bytes);

// Around an atomic operation: others may run before it; it passes on what its thread knows.
void before_atomic(const void* address, size_t bytes);
void fence();
void yield();

// Copies that are in flight until their thread waits for them.
void copy_async(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
void wait_for_copies(unsigned but_last);

// What the device is and has.
struct Device {
  int multiprocessors = 3;
  int shared_bytes = 227 * 1024;  // of a block, at most
  uint64_t seed = 0;
};
extern Device device;
void set_dynamic_limit(const void* kernel, int bytes);
int static_shared_bytes(const void* kernel);  // as far as it ran already
void fill(void* address, int value, size_t bytes);
void add_memory(const void* address, size_t bytes, const char* name, bool initialized);
bool has_memory(const void* address);
void remove_memory(const void* address);

// A fault: reported once for each kind and place. `place` is an address in the code.
void fault(const char* kind, const void* place, const char* format, ...) __attribute__((format(printf, 3, 4)));

}  // namespace emulated
