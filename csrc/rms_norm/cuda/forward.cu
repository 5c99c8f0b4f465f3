// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// RMSNorm forward. A row is shared by kLanes threads, each of which keeps kVectors 16-byte vectors of it in registers:
// thread l holds the vectors l, l + kLanes, l + 2 kLanes... Which kernel runs, and with it the order of the sum,
// depends on the length of a row alone.
#include <cstdint>

#include "rms_norm/cuda/launch.h"
#include "rms_norm/cuda/rows.cuh"

namespace sparsekernels::cuda {
namespace {

template <int kLanes>
constexpr int kThreads = kLanes > 128 ? kLanes : 128;

// Enough blocks of a multiprocessor that some load while others sum or store: 1024 threads with 64 registers each, or
// 640 with 96 where a thread holds eight vectors of the weight as well, or weights of another dtype.
template <bool kCommon, int kLanes, int kVectors>
constexpr int kMinBlocks = (kLanes >= 512 || (kCommon && kVectors < 8) ? 1024 : 640) / kThreads<kLanes>;

// input + residual, rounded to T.
template <typename T>
__device__ Vector<T> add(const Vector<T>& input, const Vector<T>& residual) {
  Compute<T> sum[kWidth<T>], other[kWidth<T>];
  unpack(input, sum);
  unpack(residual, other);
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) sum[j] += other[j];
  return pack<T>(sum);
}

template <typename T>
__device__ void add_squares(Compute<T>& sum, const Vector<T>& packed) {
  Compute<T> x[kWidth<T>];
  unpack(packed, x);
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) sum = multiply_add(x[j], x[j], sum);
}

template <typename T, typename W>
__device__ Vector<T> normalize(
    const Vector<T>& packed, Compute<T> reciprocal_rms, const W& packed_weight, const RmsNormForward& call) {
  Compute<T> x[kWidth<T>], weight[kWidth<T>];
  unpack(packed, x);
  unpack_weight(packed_weight, call.unit_offset, weight);
  if (call.cast_before) {
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) x[j] *= reciprocal_rms;
    unpack(pack<T>(x), x);
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) x[j] *= weight[j];
  } else {
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) x[j] = x[j] * reciprocal_rms * weight[j];
  }
  return pack<T>(x);
}

// Rows of up to kLanes * kVectors vectors. Every thread works on kRows rows at once, so that short rows also have
// enough loads in flight. kCommon: 16-byte accesses throughout and a weight of dtype T or none; else the accesses may
// be of single elements, and the weight of any dtype.
template <typename T, bool kCommon, int kLanes, int kVectors, int kRows>
__global__ void __launch_bounds__(kThreads<kLanes>, kMinBlocks<kCommon, kLanes, kVectors>)
    forward_rows(const __grid_constant__ RmsNormForward call, const RowConstants<Compute<T>> constants) {
  using A = Compute<T>;
  constexpr int kGroups = kThreads<kLanes> / kLanes;
  constexpr int kStep = kLanes * kWidth<T>;
  // Weights are on their way before the sum where registers allow it, else they come one or two vectors at a time.
  constexpr bool kWeightFirst = kCommon && kLanes * kVectors <= 2048;
  constexpr int kWeights = kWeightFirst ? kVectors : kVectors > 1 && kLanes < 512 ? 2 : 1;
  // The sum with the residual is written as soon as it is there, so that nothing of it is kept; where eight vectors
  // take most of the registers, the loads of all would come first.
  constexpr bool kSumFirst = kLanes < 512;
  __shared__ A scratch[kThreads<kLanes> / 32];

  const RowSpace& space = call.space;
  const int64_t block_row = static_cast<int64_t>(blockIdx.x) * (kGroups * kRows);
  if (kLanes <= 32 && block_row + threadIdx.x / 32 * (32 / kLanes) >= space.rows) return;  // a warp with no row
  const auto row = [&](int r) { return block_row + r * kGroups + threadIdx.x / kLanes; };
  const auto exists = [&](int r) { return kGroups * kRows == 1 || row(r) < space.rows; };

  // This thread's part of a row starts at `first`; columns count from there.
  const int first = threadIdx.x % kLanes * kWidth<T>, cols = static_cast<int>(space.cols) - first;
  const bool wide = kCommon || constants.wide;
  Vector<T> x[kRows][kVectors];
  const T* residual[kRows];
  T *output[kRows], *sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    // Threads beyond the last row read it again, and write nothing.
    const Place place = place_of(space, exists(r) ? row(r) : space.rows - 1);
    const T* input = row_at<const T>(space, call.input, place) + first;
    residual[r] = row_at<const T>(space, call.residual, place) + first;
    output[r] = row_at<T>(space, call.output, place) + first;
    sum[r] = row_at<T>(space, call.sum, place) + first;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) x[r][k] = load(input, k * kStep, cols, wide);
  }
  if (call.residual.data != nullptr) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        x[r][k] = add<T>(x[r][k], load(residual[r], k * kStep, cols, wide));
        if (kSumFirst && exists(r)) store(sum[r], k * kStep, cols, wide, x[r][k]);
      }
    }
  }
  const Weight<T, kCommon> weight = {call.weight, call.weight_dtype, wide, first, cols};
  typename Weight<T, kCommon>::Loaded w[kWeights];
  if constexpr (kWeightFirst) weight.load_at(w, 0, kStep);

  A squares[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) add_squares<T>(squares[r], x[r][k]);
  }
  sum_over_lanes<kLanes>(squares, scratch);

  UnknownZero zero;
  zero.renew();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const A reciprocal_rms = reciprocal_sqrt(multiply_add(squares[r], constants.per_col, constants.eps));
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!kWeightFirst && k % kWeights == 0) weight.load_at(w, k * kStep, kStep);
      if (!exists(r)) continue;
      const Vector<T> again = zero.plus(x[r][k]);
      if (!kSumFirst && call.residual.data != nullptr) store(sum[r], k * kStep, cols, wide, again);
      store(output[r], k * kStep, cols, wide, normalize<T>(again, reciprocal_rms, w[k % kWeights], call));
    }
  }
}

// Rows of any length: a block visits its row twice, the second time out of the L2 cache.
constexpr int kLongThreads = 1024;

template <typename T, bool kCommon>
__global__ void __launch_bounds__(kLongThreads)
    forward_long_rows(const __grid_constant__ RmsNormForward call, const RowConstants<Compute<T>> constants) {
  using A = Compute<T>;
  constexpr int64_t kStep = kLongThreads * kWidth<T>;
  constexpr int kUnroll = kCommon ? 4 : 1;
  __shared__ A scratch[kLongThreads / 32];

  const RowSpace& space = call.space;
  const int64_t cols = space.cols, first = threadIdx.x * kWidth<T>;
  const bool wide = kCommon || constants.wide, has_residual = call.residual.data != nullptr;
  const Place place = place_of(space, blockIdx.x);
  const T* input = row_at<const T>(space, call.input, place);
  const T* residual = row_at<const T>(space, call.residual, place);
  T* output = row_at<T>(space, call.output, place);
  T* sum = row_at<T>(space, call.sum, place);

  A squares[1] = {};
#pragma unroll kUnroll
  for (int64_t col = first; col < cols; col += kStep) {
    Vector<T> x = load(input, col, cols, wide);
    if (has_residual) {
      x = add<T>(x, load(residual, col, cols, wide));
      store(sum, col, cols, wide, x);
    }
    add_squares<T>(squares[0], x);
  }
  sum_over_lanes<kLongThreads>(squares, scratch);

  const A reciprocal_rms = reciprocal_sqrt(multiply_add(squares[0], constants.per_col, constants.eps));
  const Weight<T, kCommon> weight = {call.weight, call.weight_dtype, wide, 0, cols};
#pragma unroll kUnroll
  for (int64_t col = first; col < cols; col += kStep) {
    const Vector<T> x = has_residual ? load<T, kWidth<T>, false>(sum, col, cols, wide)  // this thread's own
                                     : load(input, col, cols, wide);
    typename Weight<T, kCommon>::Loaded w[1];
    weight.load_at(w, col, 0);
    store(output, col, cols, wide, normalize<T>(x, reciprocal_rms, w[0], call));
  }
}

template <typename A>
struct Kernel {
  int64_t max_vectors;  // the longest row
  int threads, rows;    // of a block
  void (*run)(RmsNormForward, RowConstants<A>);
};

template <typename T, bool kCommon, int kLanes, int kVectors, int kRows>
constexpr Kernel<Compute<T>> row_kernel() {
  constexpr int threads = kThreads<kLanes>;
  return {kLanes * kVectors, threads, threads / kLanes * kRows, forward_rows<T, kCommon, kLanes, kVectors, kRows>};
}

template <typename T, bool kCommon>
const Kernel<Compute<T>>& kernel_for(int64_t cols) {
  static constexpr Kernel<Compute<T>> kernels[] = {
      // lanes, vectors, rows: 64 bytes of input in flight a thread; in bfloat16 rows of
      row_kernel<T, kCommon, 8, 1, 4>(),     // 64
      row_kernel<T, kCommon, 16, 1, 4>(),    // 128
      row_kernel<T, kCommon, 32, 1, 4>(),    // 256
      row_kernel<T, kCommon, 32, 2, 2>(),    // 512
      row_kernel<T, kCommon, 32, 4, 1>(),    // 1K
      row_kernel<T, kCommon, 32, 8, 1>(),    // 2K
      row_kernel<T, kCommon, 128, 4, 1>(),   // 4K
      row_kernel<T, kCommon, 256, 4, 1>(),   // 8K
      row_kernel<T, kCommon, 512, 4, 1>(),   // 16K
      row_kernel<T, kCommon, 512, 8, 1>(),   // 32K
      row_kernel<T, kCommon, 1024, 8, 1>(),  // 64K
      {INT64_MAX, kLongThreads, 1, forward_long_rows<T, kCommon>},
  };
  const Kernel<Compute<T>>* kernel = kernels;
  while ((cols + kWidth<T> - 1) / kWidth<T> > kernel->max_vectors) ++kernel;
  return *kernel;
}

template <typename T>
cudaError_t forward(const RmsNormForward& call, cudaStream_t stream) {
  using A = Compute<T>;
  const RowSpace& space = call.space;
  bool wide = space.cols % kWidth<T> == 0 && reinterpret_cast<uintptr_t>(call.weight) % 16 == 0;
  for (const RowTensor* tensor : {&call.input, &call.residual, &call.output, &call.sum}) {
    wide = wide && rows_are_aligned(space, *tensor, sizeof(T));
  }
  constexpr bool kHasCommon = !std::is_same_v<T, double>;  // float64 is there for gradient checks alone
  const bool common = kHasCommon && wide && (call.weight == nullptr || call.weight_dtype == call.dtype);
  const Kernel<A>& kernel = common ? kernel_for<T, kHasCommon>(space.cols) : kernel_for<T, false>(space.cols);
  const int64_t blocks = (space.rows + kernel.rows - 1) / kernel.rows;
  return launch(kernel.run, blocks, kernel.threads, 0, stream, call, row_constants<A>(call, wide));
}

}  // namespace

cudaError_t rms_norm_forward(const RmsNormForward& call, cudaStream_t stream) {
  if (call.space.rows == 0 || call.space.cols == 0) return cudaSuccess;
  switch (call.dtype) {
    case DType::kFloat32:
      return forward<float>(call, stream);
    case DType::kBFloat16:
      return forward<__nv_bfloat16>(call, stream);
    case DType::kFloat16:
      return forward<__half>(call, stream);
    case DType::kFloat64:
      return forward<double>(call, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsekernels::cuda
