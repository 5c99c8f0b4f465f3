// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the kernels that iterate over rows share: weights, where a row lies, sums over the threads of a row.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "base/cuda/ptx.cuh"
#include "base/cuda/vectors.cuh"
#include "rms_norm/call.h"

namespace sparsekernels::cuda {

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

}  // namespace sparsekernels::cuda
