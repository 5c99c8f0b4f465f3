// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// CUDA's language and device functions, as far as the kernels use them, for the emulated device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __device__
#define __host__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
// Of the alignment that is written, else of no more than its type's, where the compiler would give more. What has none
// written may lie at any multiple of 4: vectors and doubles need alignas here, which CUDA would not ask for.
#define __shared__ thread_local __attribute__((tls_model("global-dynamic"), aligned(1)))
#define __align__(bytes) alignas(bytes)
#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index())
// cudaLaunchConfig_t has members of these names, so they are no macros.
template <dim3 (*kSize)()>
struct EmulatedSize {
  struct X {
    operator unsigned() const { return kSize().x; }
  } x;
  struct Y {
    operator unsigned() const { return kSize().y; }
  } y;
  struct Z {
    operator unsigned() const { return kSize().z; }
  } z;
};
constexpr EmulatedSize<emulated::block_size> blockDim = {};
constexpr EmulatedSize<emulated::grid_size> gridDim = {};
constexpr int warpSize = 32;
constexpr unsigned kEveryLane = 0xffffffffu;

// Of dynamic shared memory, before a source that has `extern __shared__ type name[];` in this namespace: what is larger
// than static shared memory can be is dynamic, and as large as the launch says.
#define EMULATED_DYNAMIC_SHARED(type, name) __shared__ type name[(1 << 20) / sizeof(type)]

using std::max;
using std::min;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

// Bits

template <typename To, typename From>
To emulated_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned value) {
  return emulated_bits<float>(value);
}
inline unsigned __float_as_uint(float value) {
  return emulated_bits<unsigned>(value);
}
inline float __int_as_float(int value) {
  return emulated_bits<float>(value);
}
inline int __float_as_int(float value) {
  return emulated_bits<int>(value);
}
inline int __popc(unsigned value) {
  return __builtin_popcount(value);
}
inline int __popcll(unsigned long long value) {
  return __builtin_popcountll(value);
}
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline int __ffsll(long long value) {
  return __builtin_ffsll(value);
}
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline unsigned __brev(unsigned value) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (value >> i & 1u) << (31 - i);
  return reversed;
}
// The low word of high:low shifted right by shift % 32.
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) << (shift & 31) >> 32);
}

// Arithmetic

inline float rsqrtf(float value) {
  return 1.0f / std::sqrt(value);
}
inline double rsqrt(double value) {
  return 1.0 / std::sqrt(value);
}
using std::fma;
inline float fmaf(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}

// Memory. A vector is one access, which is aligned as a whole.

template <typename T>
T emulated_load(const T* from) {
  emulated::require_aligned(from, sizeof(T));
  return *from;
}
template <typename T>
T __ldg(const T* from) {
  return emulated_load(from);
}
template <typename T>
T __ldcg(const T* from) {
  return emulated_load(from);
}
template <typename T>
T __ldcs(const T* from) {
  return emulated_load(from);
}
template <typename T>
void __stcs(T* to, T value) {
  emulated::require_aligned(to, sizeof(T));
  *to = value;
}
inline void __threadfence() {
  emulated::fence();
}
inline void __threadfence_block() {
  emulated::fence();
}
inline void __nanosleep(unsigned) {
  emulated::yield();
}

// Atomics. The hooks must not see what these read and write: that is no plain access.

template <typename T, typename Change>
__attribute__((no_sanitize_thread, noinline)) T emulated_atomic(T* address, const Change& change) {
  emulated::before_atomic(address, sizeof(T));
  const T before = *address;
  *address = change(before);
  return before;
}
template <typename T>
__attribute__((no_sanitize_thread)) T atomicAdd(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T before) { return static_cast<T>(before + value); });
}
template <typename T>
__attribute__((no_sanitize_thread)) T atomicSub(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T before) { return static_cast<T>(before - value); });
}
template <typename T>
__attribute__((no_sanitize_thread)) T atomicMax(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T before) { return before > value ? before : value; });
}
template <typename T>
__attribute__((no_sanitize_thread)) T atomicMin(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T before) { return before < value ? before : value; });
}
template <typename T>
__attribute__((no_sanitize_thread)) T atomicExch(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T) { return value; });
}
template <typename T>
__attribute__((no_sanitize_thread)) T
atomicCAS(T* address, std::common_type_t<T> compared, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T before) { return before == compared ? value : before; });
}
inline __attribute__((no_sanitize_thread)) unsigned atomicInc(unsigned* address, unsigned limit) {
  return emulated_atomic(address, [=](unsigned before) { return before >= limit ? 0u : before + 1; });
}

// Barriers and warps

inline void __syncthreads() {
  emulated::block_barrier(false);
}
inline int __syncthreads_count(int predicate) {
  return emulated::block_barrier(predicate != 0);
}
inline int __syncthreads_or(int predicate) {
  return emulated::block_barrier(predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate) {
  return emulated::block_barrier(predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = kEveryLane) {
  emulated::warp_barrier(mask);
}

template <typename T>
uint64_t emulated_word(const T& value) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}
template <typename T>
T emulated_shuffle(unsigned mask, const T& value, int source) {
  const uint64_t word = emulated::warp_step(emulated::Warp::kShuffle, mask, emulated_word(value), source);
  T result;
  std::memcpy(&result, &word, sizeof(T));
  return result;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = static_cast<int>(emulated::lane_index());
  return emulated_shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32) {
  const int lane = static_cast<int>(emulated::lane_index()), source = lane ^ distance;
  return emulated_shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = static_cast<int>(emulated::lane_index()), source = lane - static_cast<int>(distance);
  return emulated_shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = static_cast<int>(emulated::lane_index()), source = lane + static_cast<int>(distance);
  return emulated_shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(emulated::warp_step(emulated::Warp::kBallot, mask, predicate != 0, 0));
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, !predicate) == 0;
}
template <typename T>
T emulated_reduce(emulated::Warp what, unsigned mask, T value) {
  static_assert(sizeof(T) == 4);
  return static_cast<T>(emulated::warp_step(what, mask, emulated_word(value), 0));
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value) {
  return emulated_reduce(emulated::Warp::kAdd, mask, value);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value) {
  return emulated_reduce(std::is_signed_v<T> ? emulated::Warp::kMin : emulated::Warp::kUnsignedMin, mask, value);
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value) {
  return emulated_reduce(std::is_signed_v<T> ? emulated::Warp::kMax : emulated::Warp::kUnsignedMax, mask, value);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return emulated_reduce(emulated::Warp::kAnd, mask, value);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return emulated_reduce(emulated::Warp::kOr, mask, value);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return emulated_reduce(emulated::Warp::kXor, mask, value);
}
