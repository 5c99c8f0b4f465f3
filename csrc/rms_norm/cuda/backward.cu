// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// RMSNorm backward. A row lies in the registers of kLanes threads as in the forward pass. A fixed grid visits the rows,
// so that every thread adds up its columns of grad_weight in registers; partial_sums.cuh adds up the blocks.
#include <algorithm>
#include <cstdint>

#include "rms_norm/cuda/launch.h"
#include "rms_norm/cuda/partial_sums.cuh"
#include "rms_norm/cuda/row_gradients.cuh"

namespace sparsekernels::cuda {
namespace {

template <int kLanes>
constexpr int kThreads = kLanes > 256 ? kLanes : 256;

// Of each multiprocessor: with 128 registers each, they fill it.
constexpr int kResidentThreads = 512;

// Rows of up to kLanes * kVectors vectors; kRows and kCommon as in the forward pass.
template <typename T, bool kCommon, int kLanes, int kVectors, int kRows>
__global__ void __launch_bounds__(kThreads<kLanes>, kResidentThreads / kThreads<kLanes>) backward_rows(
    const __grid_constant__ RmsNormBackward call, const __grid_constant__ PartialSums partials,
    const RowConstants<Compute<T>> constants) {
  using A = Compute<T>;
  constexpr int kGroups = kThreads<kLanes> / kLanes, kBlockRows = kGroups * kRows;
  constexpr int kStep = kLanes * kWidth<T>;
  __shared__ A scratch[2][kThreads<kLanes> / 32 * 2 * kRows];

  const RowSpace& space = call.space;
  const int first = threadIdx.x % kLanes * kWidth<T>, cols = static_cast<int>(space.cols) - first;
  const bool wide = kCommon || constants.wide;
  const Weight<T, kCommon> weight = {call.weight, call.weight_dtype, wide, first, cols};
  // A weight that stays packed stays in registers; another is read again for every vector, mostly from the L1 cache.
  typename Weight<T, kCommon>::Loaded w[kCommon ? kVectors : 1];
  if constexpr (kCommon) weight.load_at(w, 0, kStep);
  UnknownZero zero;
  const auto weight_at = [&](int k) {
    if constexpr (!kCommon) weight.load_at(w, k * kStep, 0);
    return zero.plus(w[kCommon ? k : 0]);
  };
  A grad_weight[kVectors][kWidth<T>] = {};

  int turn = 0;
  for (int64_t block_row = static_cast<int64_t>(blockIdx.x) * kBlockRows; block_row < space.rows;
       block_row += static_cast<int64_t>(gridDim.x) * kBlockRows) {
    const auto row = [&](int r) { return block_row + r * kGroups + threadIdx.x / kLanes; };
    const auto exists = [&](int r) { return kBlockRows == 1 || row(r) < space.rows; };
    Vector<T> x[kRows][kVectors], g[kRows][kVectors];
    const T* grad_sum[kRows];
    T* grad_input[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // Threads beyond the last row read it again, and keep nothing of it.
      const Place place = place_of(space, exists(r) ? row(r) : space.rows - 1);
      const T* input_row = row_at<const T>(space, call.input, place) + first;
      const T* grad_output_row = row_at<const T>(space, call.grad_output, place) + first;
      grad_sum[r] = row_at<const T>(space, call.grad_sum, place) + first;
      grad_input[r] = row_at<T>(space, call.grad_input, place) + first;
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        x[r][k] = load(input_row, k * kStep, cols, wide);
        g[r][k] = load(grad_output_row, k * kStep, cols, wide);
        // There are no registers to hold it until the sum is there.
        if (call.grad_sum.data != nullptr && k * kStep < cols) prefetch(grad_sum[r] + k * kStep);
      }
    }

    zero.renew();
    A sums[2 * kRows] = {};
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const auto w_k = weight_at(k);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        add_products<T>(sums[2 * r], sums[2 * r + 1], x[r][k], g[r][k], w_k, constants.unit_offset);
    }
    sum_over_lanes<kLanes>(sums, scratch[turn]);
    turn ^= 1;

    zero.renew();
    RowFactors<A> factors[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) factors[r] = row_factors(sums[2 * r], sums[2 * r + 1], constants);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const auto w_k = weight_at(k);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (!exists(r)) continue;
        const Vector<T> added = call.grad_sum.data != nullptr ? load(grad_sum[r], k * kStep, cols, wide) : Vector<T>{};
        const Vector<T> result = gradients<T>(
            zero.plus(x[r][k]), zero.plus(g[r][k]), w_k, added, factors[r], constants.unit_offset, grad_weight[k]);
        if (call.grad_input.data != nullptr) store(grad_input[r], k * kStep, cols, wide, result);
      }
    }
  }
  if (call.grad_weight == nullptr) return;

  // Threads a multiple of kLanes apart hold the same columns: first those of a warp, then warp by warp.
  if constexpr (kLanes < 32) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) {
#pragma unroll
        for (int distance = kLanes; distance < 32; distance *= 2) {
          grad_weight[k][j] += __shfl_xor_sync(0xffffffffu, grad_weight[k][j], distance);
        }
      }
    }
  }
  constexpr int kSharers = kThreads<kLanes> / (kLanes > 32 ? kLanes : 32);
  A* partial = partial_sums_of_block<A>(partials) + first;
  if constexpr (kSharers == 1) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (k * kStep < cols) store_wide(partial + k * kStep, pack<A>(grad_weight[k]));
    }
  } else {
    alignas(16) __shared__ A columns[kLanes * kVectors * kWidth<T>];
    const int sharer = threadIdx.x / (kLanes > 32 ? kLanes : 32);
    for (int s = 0; s < kSharers; ++s) {
      __syncthreads();
      if (sharer != s || threadIdx.x % 32 >= kLanes) continue;
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        A* so_far = columns + first + k * kStep;
        if (s > 0) {
          A before[kWidth<T>];
          unpack(load_wide<Packed<A, kWidth<T>>, false>(so_far), before);
#pragma unroll
          for (int j = 0; j < kWidth<T>; ++j) grad_weight[k][j] += before[j];
        }
        if (s < kSharers - 1) {
          store_wide(so_far, pack<A>(grad_weight[k]));
        } else if (k * kStep < cols) {
          store_wide(partial + k * kStep, pack<A>(grad_weight[k]));
        }
      }
    }
  }
  sum_partials<kThreads<kLanes>, A>(partials, call.grad_weight, call.weight_dtype, space.cols);
}

// Rows of any length: a block visits each of its rows twice, the second time out of the L2 cache, and adds up
// grad_weight in shared memory where there is room for it, else in its part of the workspace.
constexpr int kLongThreads = 512;

template <typename T, bool kCommon>
__global__ void __launch_bounds__(kLongThreads) backward_long_rows(
    const __grid_constant__ RmsNormBackward call, const __grid_constant__ PartialSums partials,
    const RowConstants<Compute<T>> constants) {
  using A = Compute<T>;
  constexpr int64_t kStep = kLongThreads * kWidth<T>;
  constexpr int kUnroll = kCommon ? 4 : 1;
  __shared__ A scratch[2][kLongThreads / 32 * 2];
  extern __shared__ uint4 dynamic_shared[];

  const RowSpace& space = call.space;
  const int64_t cols = space.cols, first = threadIdx.x * kWidth<T>;
  const bool wide = kCommon || constants.wide, has_grad_sum = call.grad_sum.data != nullptr;
  const Weight<T, kCommon> weight = {call.weight, call.weight_dtype, wide, 0, cols};
  A* partial = partial_sums_of_block<A>(partials);
  A* columns = partials.in_shared_memory ? reinterpret_cast<A*>(dynamic_shared) : partial;

  int turn = 0;
  for (int64_t row = blockIdx.x; row < space.rows; row += gridDim.x) {
    const Place place = place_of(space, row);
    const T* input = row_at<const T>(space, call.input, place);
    const T* grad_output = row_at<const T>(space, call.grad_output, place);
    const T* grad_sum = row_at<const T>(space, call.grad_sum, place);
    T* grad_input = row_at<T>(space, call.grad_input, place);
    typename Weight<T, kCommon>::Loaded w[1];

    A sums[2] = {};
#pragma unroll kUnroll
    for (int64_t col = first; col < cols; col += kStep) {
      weight.load_at(w, col, 0);
      add_products<T>(
          sums[0], sums[1], load(input, col, cols, wide), load(grad_output, col, cols, wide), w[0],
          constants.unit_offset);
    }
    sum_over_lanes<kLongThreads>(sums, scratch[turn]);
    turn ^= 1;

    const RowFactors<A> factors = row_factors(sums[0], sums[1], constants);
#pragma unroll kUnroll
    for (int64_t col = first; col < cols; col += kStep) {
      weight.load_at(w, col, 0);
      const Vector<T> added = has_grad_sum ? load(grad_sum, col, cols, wide) : Vector<T>{};
      A grad_weight[kWidth<T>] = {};
      if (call.grad_weight != nullptr && row != blockIdx.x) {
        unpack(load_wide<Packed<A, kWidth<T>>, false>(columns + col), grad_weight);  // this thread's own
      }
      const Vector<T> result = gradients<T>(
          load(input, col, cols, wide), load(grad_output, col, cols, wide), w[0], added, factors, constants.unit_offset,
          grad_weight);
      if (call.grad_input.data != nullptr) store(grad_input, col, cols, wide, result);
      if (call.grad_weight != nullptr) store_wide(columns + col, pack<A>(grad_weight));
    }
  }
  if (call.grad_weight == nullptr) return;
  if (partials.in_shared_memory) {
    for (int64_t col = first; col < cols; col += kStep) {
      store_wide(partial + col, load_wide<Packed<A, kWidth<T>>, false>(columns + col));
    }
  }
  sum_partials<kLongThreads, A>(partials, call.grad_weight, call.weight_dtype, cols);
}

template <typename A>
struct Kernel {
  int64_t max_vectors;  // the longest row
  int threads, rows;    // of a block
  void (*run)(RmsNormBackward, PartialSums, RowConstants<A>);
};

template <typename T, bool kCommon, int kLanes, int kVectors, int kRows>
constexpr Kernel<Compute<T>> row_kernel() {
  constexpr int threads = kThreads<kLanes>;
  return {kLanes * kVectors, threads, threads / kLanes * kRows, backward_rows<T, kCommon, kLanes, kVectors, kRows>};
}

template <typename T, bool kCommon>
const Kernel<Compute<T>>& kernel_for(int64_t cols) {
  static constexpr Kernel<Compute<T>> kernels[] = {
      // lanes, vectors, rows: 64 bytes of each input in flight a thread; in bfloat16 rows of
      row_kernel<T, kCommon, 8, 1, 4>(),    // 64
      row_kernel<T, kCommon, 16, 1, 4>(),   // 128
      row_kernel<T, kCommon, 32, 1, 4>(),   // 256
      row_kernel<T, kCommon, 32, 2, 2>(),   // 512
      row_kernel<T, kCommon, 32, 4, 1>(),   // 1K
      row_kernel<T, kCommon, 128, 2, 2>(),  // 2K
      row_kernel<T, kCommon, 128, 4, 1>(),  // 4K
      row_kernel<T, kCommon, 256, 4, 1>(),  // 8K
      row_kernel<T, kCommon, 512, 4, 1>(),  // 16K
      {INT64_MAX, kLongThreads, 1, backward_long_rows<T, kCommon>},
  };
  const Kernel<Compute<T>>* kernel = kernels;
  while ((cols + kWidth<T> - 1) / kWidth<T> > kernel->max_vectors) ++kernel;
  return *kernel;
}

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// How the rows are shared among blocks: by the shape and the device alone.
struct Partition {
  int64_t blocks = 0;
  int64_t pitch = 0;
};

template <typename T>
cudaError_t partition(const RowSpace& space, Partition& result) {
  int device, multiprocessors;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  const auto& kernel = kernel_for<T, false>(space.cols);  // the shape is the same for both
  result.blocks = std::min<int64_t>(
      divide_up(space.rows, kernel.rows), static_cast<int64_t>(multiprocessors) * (kResidentThreads / kernel.threads));
  result.pitch = divide_up(space.cols, kPitchElements) * kPitchElements;
  return cudaSuccess;
}

// Bytes of dynamic shared memory for one row of sums, or 0 where a block has no room for them.
template <typename Run>
cudaError_t shared_bytes_for(Run* kernel, size_t wanted, size_t& bytes) {
  int device, limit;
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
    return error;
  }
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel)) return error;
  const int most = limit - static_cast<int>(attributes.sharedSizeBytes);
  bytes = wanted <= static_cast<size_t>(std::max(most, 0)) ? wanted : 0;
  // The device's own limit, not this call's: another thread may launch the same kernel with more at this moment.
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, std::max(most, 0));
}

template <typename T>
cudaError_t backward(const RmsNormBackward& call, cudaStream_t stream) {
  using A = Compute<T>;
  const RowSpace& space = call.space;
  bool wide = space.cols % kWidth<T> == 0 && reinterpret_cast<uintptr_t>(call.weight) % 16 == 0;
  for (const RowTensor* tensor : {&call.grad_output, &call.input, &call.grad_sum, &call.grad_input}) {
    wide = wide && rows_are_aligned(space, *tensor, sizeof(T));
  }
  constexpr bool kHasCommon = !std::is_same_v<T, double>;  // float64 is there for gradient checks alone
  const bool common = kHasCommon && wide && (call.weight == nullptr || call.weight_dtype == call.dtype);
  const Kernel<A>& kernel = common ? kernel_for<T, kHasCommon>(space.cols) : kernel_for<T, false>(space.cols);

  Partition shares;
  if (const cudaError_t error = partition<T>(space, shares)) return error;
  PartialSums partials = {};
  size_t shared_bytes = 0;
  if (call.grad_weight != nullptr) {
    if (call.workspace == nullptr) return cudaErrorInvalidValue;
    partials.data = static_cast<char*>(call.workspace) + kProgressBytes;
    partials.pitch = shares.pitch;
    if (shares.blocks > 1) {
      if (const cudaError_t error = progress_for(stream, call.workspace, partials.progress)) return error;
    }
    if (kernel.max_vectors == INT64_MAX) {
      const size_t wanted = static_cast<size_t>(shares.pitch) * sizeof(A);
      if (const cudaError_t error = shared_bytes_for(kernel.run, wanted, shared_bytes)) return error;
      partials.in_shared_memory = shared_bytes > 0;
    }
  }
  return launch(
      kernel.run, shares.blocks, kernel.threads, shared_bytes, stream, call, partials, row_constants<A>(call, wide));
}

// Calls function(T()) with the type that dtype stands for.
template <typename Function>
auto with_type(DType dtype, Function function) {
  switch (dtype) {
    case DType::kBFloat16:
      return function(__nv_bfloat16());
    case DType::kFloat16:
      return function(__half());
    case DType::kFloat64:
      return function(double());
    case DType::kFloat32:
      return function(float());
  }
  __builtin_trap();
}

}  // namespace

size_t rms_norm_workspace_bytes(const RmsNormBackward& call) {
  if (call.grad_weight == nullptr || call.space.rows == 0 || call.space.cols == 0) return 0;
  return with_type(call.dtype, [&](auto type) -> size_t {
    Partition shares;
    if (partition<decltype(type)>(call.space, shares) != cudaSuccess) return 0;
    return kProgressBytes + static_cast<size_t>(shares.blocks * shares.pitch) * sizeof(Compute<decltype(type)>);
  });
}

cudaError_t rms_norm_backward(const RmsNormBackward& call, cudaStream_t stream) {
  if (call.space.cols == 0) return cudaSuccess;
  if (call.space.rows == 0) {
    if (call.grad_weight == nullptr) return cudaSuccess;
    const size_t bytes = static_cast<size_t>(call.space.cols * element_size(call.weight_dtype));
    return cudaMemsetAsync(call.grad_weight, 0, bytes, stream);
  }
  return with_type(call.dtype, [&](auto type) { return backward<decltype(type)>(call, stream); });
}

}  // namespace sparsekernels::cuda
