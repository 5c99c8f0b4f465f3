// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the kernels that iterate over rows share: 16-byte accesses, where a row lies, sums over the threads of a row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/cuda/ptx.cuh"
#include "rms_norm/call.h"

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

// The compiler would rather unpack a value once than each time, keep floats in registers across a sum, and spill. So
// every time gets a zero of its own that the compiler does not know: grids here have one dimension, blockIdx.y is 0.
class UnknownZero {
 public:
  __device__ void renew() { zero_ += blockIdx.y; }

  template <typename T, int N>
  __device__ Packed<T, N> plus(Packed<T, N> packed) const {
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < Packed<T, N>::kWords; ++i) packed.words[i] ^= zero_;
    }
    return packed;
  }

 private:
  uint32_t zero_ = 0;
};

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

// The weight as a kernel over rows of T reads it. kCommon: it is of dtype T itself, and a vector stays packed until it
// is used; else it may be of any dtype, known at run time only. A missing weight reads as ones.
template <typename T, bool kCommon>
struct Weight {
  static constexpr int N = kWidth<T>;
  using A = Compute<T>;
  using Stored = std::conditional_t<kCommon, T, A>;
  using Loaded = Packed<Stored, N>;

  const void* data;
  DType dtype;
  bool wide;
  int64_t first, cols;  // the element that column 0 stands for, and the elements from there to the end

  // The vectors at columns col, col + step...
  template <int kCount>
  __device__ void load_at(Loaded (&vectors)[kCount], int64_t col, int64_t step) const {
    if (data == nullptr) {
      A ones[N];
#pragma unroll
      for (int j = 0; j < N; ++j) ones[j] = 1;
#pragma unroll
      for (int k = 0; k < kCount; ++k) vectors[k] = pack<Stored>(ones);
    } else if (kCommon || dtype == DType::kFloat32) {
      load_as<std::conditional_t<kCommon, T, float>>(vectors, col, step);
    } else if (dtype == DType::kBFloat16) {
      load_as<__nv_bfloat16>(vectors, col, step);
    } else if (dtype == DType::kFloat16) {
      load_as<__half>(vectors, col, step);
    } else {
      load_as<double>(vectors, col, step);
    }
  }

 private:
  template <typename W, int kCount>
  __device__ void load_as(Loaded (&vectors)[kCount], int64_t col, int64_t step) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const auto stored = load<W, N>(static_cast<const W*>(data) + first, col + k * step, cols, kCommon || wide);
      if constexpr (std::is_same_v<W, Stored>) {
        vectors[k] = stored;
      } else {
        A values[N];
        unpack(stored, values);
        vectors[k] = pack<Stored>(values);
      }
    }
  }
};

// Elements of a weight as they are multiplied by. The branch is the same for all threads.
template <typename W, int N, typename A>
__device__ void unpack_weight(const Packed<W, N>& packed, bool unit_offset, A (&values)[N]) {
  unpack(packed, values);
  if (unit_offset) {
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] += 1;
  }
}

// Where a row lies: its place along each leading dimension.
struct Place {
  int64_t at[kMaxLeadingDims];
};

__device__ inline Place place_of(const RowSpace& space, int64_t row) {
  Place place = {};
  if (space.ndim > 1) {
#pragma unroll
    for (int d = kMaxLeadingDims - 1; d > 0; --d) {
      if (d >= space.ndim) continue;
      const int64_t size = space.sizes[d];
      const bool small = (row | size) >> 32 == 0;  // dividing 32-bit numbers takes a quarter of the time
      const int64_t above = small ? static_cast<uint32_t>(row) / static_cast<uint32_t>(size) : row / size;
      place.at[d] = row - above * size;
      row = above;
    }
  }
  place.at[0] = row;
  return place;
}

template <typename T>
__device__ T* row_at(const RowSpace& space, const RowTensor& tensor, const Place& place) {
  int64_t offset = place.at[0] * tensor.strides[0];
  if (space.ndim > 1) {
#pragma unroll
    for (int d = 1; d < kMaxLeadingDims; ++d) offset += place.at[d] * tensor.strides[d];
  }
  return static_cast<T*>(tensor.data) + offset;
}

// Sums each of `values` over the kLanes neighboring threads that share a row, in a fixed order; all of them get the
// sums. kLanes is a power of two. Above a warp every thread of the block must call, and `scratch` holds kCount values a
// warp, left alone until the next barrier but one.
template <int kLanes, int kCount, typename A>
__device__ void sum_over_lanes(A (&values)[kCount], A* scratch) {
#pragma unroll
  for (int distance = (kLanes < 32 ? kLanes : 32) / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], distance);
  }
  if constexpr (kLanes > 32) {
    constexpr int kWarps = kLanes / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (lane == 0) scratch[warp * kCount + i] = values[i];
    }
    __syncthreads();
    const int source = warp / kWarps * kWarps + lane % kWarps;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = scratch[source * kCount + i];
#pragma unroll
      for (int distance = kWarps / 2; distance > 0; distance /= 2) {
        values[i] += __shfl_xor_sync(0xffffffffu, values[i], distance);
      }
    }
  }
}

// What a kernel's rows have in common, ready to use.
template <typename A>
struct RowConstants {
  A per_col;  // 1 / cols
  A eps;
  bool wide;         // every row, and the weight, can be accessed 16 bytes at a time
  bool unit_offset;  // of the call
};

template <typename A, typename Call>
RowConstants<A> row_constants(const Call& call, bool wide) {
  return {static_cast<A>(1.0 / static_cast<double>(call.space.cols)), static_cast<A>(call.eps), wide, call.unit_offset};
}

// Host: whether every row of `tensor` starts at a multiple of 16 bytes.
inline bool rows_are_aligned(const RowSpace& space, const RowTensor& tensor, size_t element_size) {
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  for (int d = 0; d < space.ndim; ++d) {
    aligned = aligned && (space.sizes[d] <= 1 || tensor.strides[d] * static_cast<int64_t>(element_size) % 16 == 0);
  }
  return aligned;
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
