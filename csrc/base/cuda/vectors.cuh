// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What CUDA kernels share: elements packed in registers, 16-byte accesses, and how a kernel is launched.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace sparsekernels::cuda {

// The type that T is computed in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float reciprocal_sqrt(float value) {
  return rsqrtf(value);
}
__device__ inline double reciprocal_sqrt(double value) {
  return rsqrt(value);
}

// a * b + c, rounded once. Sums of products are written with it, so that no two kernels can differ in what the compiler
// fuses.
__device__ inline float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ inline double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

// Neighboring elements of a row in registers, packed as in memory: half the registers of floats, for 2-byte types.
template <typename T, int N>
struct Packed {
  static constexpr int kWords = N * sizeof(T) / 4;
  uint32_t words[kWords];
};

// What one 16-byte access moves.
template <typename T>
constexpr int kWidth = 16 / sizeof(T);
template <typename T>
using Vector = Packed<T, kWidth<T>>;

template <typename T, int N, typename A>
__device__ void unpack(const Packed<T, N>& packed, A (&values)[N]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    // The upper half of a float: one instruction an element.
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const uint32_t word = packed.words[j / 2];
      values[j] = static_cast<A>(__uint_as_float(j % 2 == 0 ? word << 16 : word & 0xffff0000u));
    }
  } else {
    T elements[N];
    memcpy(elements, packed.words, sizeof(elements));
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if constexpr (std::is_same_v<T, __half>) {
        values[j] = static_cast<A>(__half2float(elements[j]));
      } else {
        values[j] = static_cast<A>(elements[j]);
      }
    }
  }
}

// Rounds to nearest, ties to even.
template <typename T, int N, typename A>
__device__ Packed<T, N> pack(const A (&values)[N]) {
  Packed<T, N> packed;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(values[j], values[j + 1]);
      memcpy(&packed.words[j / 2], &pair, 4);
    }
  } else if constexpr (std::is_same_v<T, __half>) {
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      const __half2 pair = __floats2half2_rn(values[j], values[j + 1]);
      memcpy(&packed.words[j / 2], &pair, 4);
    }
  } else {
    static_assert(std::is_same_v<T, A>);
    memcpy(packed.words, values, sizeof(values));
  }
  return packed;
}

// The widest access that divides kBytes and needs no more than 16-byte alignment.
template <int kBytes>
using Access = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes % 8 == 0, uint2, uint32_t>>;

// Where nothing writes while the kernel runs, a load may move up past stores.
template <bool kReadOnly, typename U>
__device__ U load_one(const U* from) {
  if constexpr (kReadOnly) {
    return __ldg(from);
  } else {
    return *from;
  }
}

// `from` is aligned to 16 bytes, or to the whole size of P.
template <typename P, bool kReadOnly = true, typename T>
__device__ P load_wide(const T* from) {
  using Part = Access<sizeof(P)>;
  P packed;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(P) / sizeof(Part)); ++i) {
    const Part part = load_one<kReadOnly>(reinterpret_cast<const Part*>(from) + i);
    memcpy(packed.words + i * sizeof(Part) / 4, &part, sizeof(Part));
  }
  return packed;
}

template <typename P, typename T>
__device__ void store_wide(T* to, const P& packed) {
  using Part = Access<sizeof(P)>;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(P) / sizeof(Part)); ++i) {
    Part part;
    memcpy(&part, packed.words + i * sizeof(Part) / 4, sizeof(Part));
    reinterpret_cast<Part*>(to)[i] = part;
  }
}

// Elements `col` and up of a row of `cols`; zeros beyond its end. wide: the row is aligned to 16 bytes and cols is a
// multiple of N; col always is. Where it is not wide the same thread loads the same elements one by one, so the order
// of a sum does not depend on the alignment.
template <typename T, int N = kWidth<T>, bool kReadOnly = true>
__device__ Packed<T, N> load(const T* row, int64_t col, int64_t cols, bool wide) {
  Packed<T, N> packed = {};
  if (wide) {
    if (col < cols) packed = load_wide<Packed<T, N>, kReadOnly>(row + col);
  } else {
    T elements[N];
    memcpy(elements, packed.words, sizeof(elements));
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (col + j < cols) elements[j] = load_one<kReadOnly>(row + col + j);
    }
    memcpy(packed.words, elements, sizeof(elements));
  }
  return packed;
}

template <typename T, int N>
__device__ void store(T* row, int64_t col, int64_t cols, bool wide, const Packed<T, N>& packed) {
  if (wide) {
    if (col < cols) store_wide(row + col, packed);
  } else {
    T elements[N];
    memcpy(elements, packed.words, sizeof(elements));
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (col + j < cols) row[col + j] = elements[j];
    }
  }
}

// Host: launches `kernel`, or returns why it cannot.
template <typename... Parameters>
cudaError_t launch(
    void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream,
    const Parameters&... arguments) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace sparsekernels::cuda
