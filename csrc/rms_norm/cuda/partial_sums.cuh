// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Column sums over the blocks of a grid, inside the kernel that makes them, and the same bits every time.
//
// Each block writes its partial sums to the workspace and reports that it has. The blocks that see all others do the
// same add the partial sums up, a few columns at a time, in the order of the blocks: which block takes which columns
// varies from run to run, the sums do not. Blocks wait for the others for a while, so that usually many of them share
// that work, but nothing depends on it: a block that waited in vain leaves, and the last to report finds everything
// there and takes the columns that are left. So no block needs another one to run beside it, and the kernel may share
// the device with anything.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "rms_norm/cuda/rows.cuh"

namespace sparsekernels::cuda {

// All zero when a kernel starts, and zero again when it ends.
struct alignas(16) Progress {
  unsigned reported;  // blocks that wrote their partial sums
  unsigned claimed;   // shares of the columns that were taken
  unsigned left;      // blocks that will look at this no more
};

// One row of sums a block, `pitch` elements apart: the columns, rounded up so that every vector fits and is aligned.
struct PartialSums {
  void* data;
  int64_t pitch;
  Progress* progress;     // not looked at by a grid of one block
  bool in_shared_memory;  // a block has room for its row in dynamic shared memory
};

constexpr int64_t kPitchElements = 32;

template <typename A>
__device__ void store_element(void* data, DType dtype, int64_t index, A value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[index] = static_cast<__nv_bfloat16>(value);
      break;
    case DType::kFloat16:
      static_cast<__half*>(data)[index] = static_cast<__half>(value);
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[index] = static_cast<double>(value);
      break;
  }
}

template <typename A>
__device__ A* partial_sums_of_block(const PartialSums& partials) {
  return static_cast<A*>(partials.data) + blockIdx.x * partials.pitch;
}

// Every thread of every block calls this once, after its block's partial sums are written.
template <int kThreads, typename A>
__device__ void sum_partials(const PartialSums& partials, void* result, DType result_dtype, int64_t cols) {
  constexpr int kWarps = kThreads / 32, kPolls = 32, kPollNanoseconds = 100;
  __shared__ A sums[kThreads];
  __shared__ bool complete;
  __shared__ unsigned claim;
  if (gridDim.x == 1) {
    __syncthreads();
#pragma unroll 1
    for (int64_t col = threadIdx.x; col < cols; col += kThreads) {
      store_element(result, result_dtype, col, static_cast<const A*>(partials.data)[col]);
    }
    return;
  }

  // A column is summed by `ways` threads of different warps, each of which takes every ways-th block.
  const int blocks = static_cast<int>(gridDim.x);
  int ways = 1;
  while (ways < kWarps && blocks > 16 * ways) ways *= 2;
  const int slice_cols = kThreads / ways, way = threadIdx.x / slice_cols;
  const int64_t slices = (cols + slice_cols - 1) / slice_cols, slices_a_claim = (slices + blocks - 1) / blocks;

  Progress& progress = *partials.progress;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // the partial sums of the block before its report
    int reported = static_cast<int>(atomicAdd(&progress.reported, 1u)) + 1;
    for (int poll = 0; slices > 1 && reported < blocks && poll < kPolls; ++poll) {
      __nanosleep(kPollNanoseconds);
      reported = static_cast<int>(atomicAdd(&progress.reported, 0u));
    }
    complete = reported == blocks;
    __threadfence();  // the reports before the partial sums of others
  }
  __syncthreads();
  while (complete) {
    if (threadIdx.x == 0) claim = atomicAdd(&progress.claimed, 1u);
    __syncthreads();
    const int64_t first = claim * slices_a_claim;
    if (first >= slices) break;
    for (int64_t slice = first; slice < first + slices_a_claim && slice < slices; ++slice) {
      const int64_t col = slice * slice_cols + threadIdx.x % slice_cols;
      A sum = 0;
      if (col < cols) {
        const A* column = static_cast<const A*>(partials.data) + col;
#pragma unroll 8
        for (int block = way; block < blocks; block += ways) sum += __ldcg(column + block * partials.pitch);
      }
      sums[threadIdx.x] = sum;
      __syncthreads();
      if (way == 0 && col < cols) {
        for (int w = 1; w < ways; ++w) sum += sums[threadIdx.x + w * slice_cols];
        store_element(result, result_dtype, col, sum);
      }
      __syncthreads();
    }
  }
  if (threadIdx.x == 0) {
    __threadfence();  // what this block reported and claimed before it leaves
    if (atomicAdd(&progress.left, 1u) == gridDim.x - 1) {
      __threadfence();  // what all others did before the zeros
      progress = {};
    }
  }
}

// A workspace begins with room for a Progress.
constexpr size_t kProgressBytes = 64;

constexpr int kMaxStreams = 1024;
static __device__ Progress progress_of_stream[kMaxStreams];

// Host: where the blocks of the next kernel on `stream` report. The kernels of one stream run one after another, and
// each leaves zeros behind, so each stream has one place for good. A kernel that is captured into a graph may run on
// any stream later: it uses its workspace, which the graph clears first. So do the streams beyond kMaxStreams, and
// cudaStreamPerThread, which is many streams.
inline cudaError_t progress_for(cudaStream_t stream, void* workspace, Progress*& progress) {
  static std::mutex mutex;
  static std::map<std::pair<int, cudaStream_t>, Progress*> known;
  static std::map<int, int> streams_of_device;

  cudaStreamCaptureStatus capture;
  if (const cudaError_t error = cudaStreamIsCapturing(stream, &capture)) return error;
  if (capture == cudaStreamCaptureStatusNone && stream != cudaStreamPerThread) {
    int device;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find({device, stream});
    if (found != known.end()) {
      progress = found->second;
      return cudaSuccess;
    }
    int& streams = streams_of_device[device];
    if (streams < kMaxStreams) {
      void* first;
      if (const cudaError_t error = cudaGetSymbolAddress(&first, progress_of_stream)) return error;
      progress = static_cast<Progress*>(first) + streams++;
      known[{device, stream}] = progress;
      return cudaSuccess;
    }
  }
  progress = static_cast<Progress*>(workspace);
  return cudaMemsetAsync(workspace, 0, kProgressBytes, stream);
}

}  // namespace sparsekernels::cuda
