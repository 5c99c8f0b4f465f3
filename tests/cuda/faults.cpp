// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Kernels with one fault each, and their twins without it, for test_emulation.py: `wrong` chooses.
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <map>
#include <string>

namespace {

EMULATED_DYNAMIC_SHARED(float, dynamic_shared);

constexpr int kThreads = 64;

struct Call {
  const float* from;
  float* to;
  unsigned* counter;
  int count;
  bool wrong;
};

// Each thread writes its own word and reads its neighbor's.
__global__ void shared_race(Call call) {
  __shared__ float words[kThreads];
  words[threadIdx.x] = call.from[threadIdx.x];
  if (!call.wrong) __syncthreads();
  call.to[threadIdx.x] = words[(threadIdx.x + 1) % kThreads];
}

// The next round overwrites what a slower thread still reads.
__global__ void shared_race_after_reading(Call call) {
  __shared__ float word;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) word = call.from[round];
    __syncthreads();
    call.to[threadIdx.x + round * kThreads] = word;
    if (!call.wrong) __syncthreads();
  }
}

__global__ void warp_race(Call call) {
  __shared__ float words[kThreads];
  words[threadIdx.x] = call.from[threadIdx.x];
  if (!call.wrong) __syncwarp();
  call.to[threadIdx.x] = words[threadIdx.x ^ 1];
}

// __syncwarp orders the threads of a warp alone.
__global__ void warp_barrier_between_warps(Call call) {
  __shared__ float words[kThreads];
  words[threadIdx.x] = call.from[threadIdx.x];
  if (call.wrong) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  call.to[threadIdx.x] = words[threadIdx.x ^ 32];
}

// A shuffle orders no memory.
__global__ void shuffle_is_no_barrier(Call call) {
  __shared__ float words[kThreads];
  words[threadIdx.x] = call.from[threadIdx.x];
  float sum = __shfl_xor_sync(0xffffffffu, call.from[threadIdx.x], 1);
  if (!call.wrong) __syncwarp();
  sum += words[threadIdx.x ^ 2];
  call.to[threadIdx.x] = sum;
}

__global__ void unwritten_shared(Call call) {
  __shared__ float words[kThreads];
  if (threadIdx.x < kThreads - (call.wrong ? 1 : 0)) words[threadIdx.x] = call.from[threadIdx.x];
  __syncthreads();
  call.to[threadIdx.x] = words[kThreads - 1 - threadIdx.x];
}

__global__ void unwritten_global(Call call) {
  if (threadIdx.x > 0 || !call.wrong) call.to[threadIdx.x] = 1;
  __syncthreads();
  call.to[threadIdx.x] += 1;
}

__global__ void shared_bounds(Call call) {
  __shared__ float words[kThreads];
  float* all = words;
  all[threadIdx.x + (call.wrong ? 1 : 0)] = call.from[threadIdx.x];
  __syncthreads();
  call.to[threadIdx.x] = all[threadIdx.x];
}

__global__ void dynamic_shared_bounds(Call call) {
  extern __shared__ float dynamic_shared[];
  dynamic_shared[threadIdx.x] = call.from[threadIdx.x];
  call.to[threadIdx.x] = dynamic_shared[threadIdx.x];
}

__global__ void reads_beyond(Call call) {
  const int at = static_cast<int>(threadIdx.x) + (call.wrong ? 1 : 0);
  call.to[threadIdx.x] = call.from[at];
}

__global__ void writes_before(Call call) {
  call.to[static_cast<int>(threadIdx.x) - (call.wrong ? 1 : 0)] = call.from[threadIdx.x];
}

__global__ void misaligned(Call call) {
  if (threadIdx.x > 0) return;
  const float4 four = *reinterpret_cast<const float4*>(call.from + (call.wrong ? 1 : 0));
  call.to[0] = four.x + four.w;
}

__global__ void misaligned_shared(Call call) {
  __shared__ float a[kThreads];
  alignas(16) __shared__ float b[kThreads];
  a[threadIdx.x] = b[threadIdx.x] = call.from[threadIdx.x];
  __syncthreads();
  if (threadIdx.x > 0) return;
  const float4 four = *reinterpret_cast<const float4*>(call.wrong ? a : b);
  call.to[0] = four.x + four.w;
}

__global__ void misaligned_read_only(Call call) {
  if (threadIdx.x == 0) call.to[0] = __ldg(reinterpret_cast<const float2*>(call.from + (call.wrong ? 1 : 0))).y;
}

// Threads of a block through global memory.
__global__ void global_race(Call call) {
  call.to[threadIdx.x] = call.from[threadIdx.x];
  if (!call.wrong) __syncthreads();
  if (threadIdx.x == 0) call.to[kThreads] = call.to[kThreads - 1];
}

// Two blocks write one word.
__global__ void blocks_write_one_word(Call call) {
  if (threadIdx.x == 0) call.to[call.wrong ? blockIdx.x / 2 : blockIdx.x] = 1;
}

__global__ void plain_beside_atomic(Call call) {
  if (threadIdx.x > 0) return;
  if (call.wrong && blockIdx.x == 1) {
    *call.counter += 1;
  } else {
    atomicAdd(call.counter, 1u);
  }
}

// The last block finishes up, as threadFenceReduction of CUDA's samples.
__global__ void last_block(Call call) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    call.to[blockIdx.x + 1] = call.from[blockIdx.x];
    if (!call.wrong) __threadfence();
    last = atomicInc(call.counter, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x > 0) return;
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += call.to[block + 1];
  call.to[0] = sum;
}

// What a barrier and the fence of one thread pass on: all that the block wrote.
__global__ void last_block_reads_all(Call call) {
  __shared__ bool last;
  call.to[blockIdx.x * kThreads + threadIdx.x] = call.from[threadIdx.x];
  if (!call.wrong) __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(call.counter, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += call.to[block * kThreads + threadIdx.x];
  __syncthreads();
  call.to[threadIdx.x] = sum;
}

__global__ void barrier_of_some(Call call) {
  if (!call.wrong || threadIdx.x < 40) __syncthreads();
  call.to[threadIdx.x] = 1;
}

__global__ void barrier_after_return(Call call) {
  if (call.wrong && threadIdx.x == 5) return;
  __syncthreads();
  call.to[threadIdx.x] = 1;
}

__global__ void warp_barrier_of_some(Call call) {
  if (!call.wrong || threadIdx.x % 2 == 0) __syncwarp();
  if (threadIdx.x % 2 == 1) __syncthreads();
  if (threadIdx.x % 2 == 0) __syncthreads();
  call.to[threadIdx.x] = 1;
}

__global__ void shuffle_from_nobody(Call call) {
  const unsigned mask = call.wrong ? 0x0000ffffu : 0xffffffffu;
  float value = 0;
  if (threadIdx.x < 16 || !call.wrong) value = __shfl_sync(mask, call.from[threadIdx.x], 20);
  call.to[threadIdx.x] = value;
}

__global__ void not_in_its_mask(Call call) {
  const unsigned other = __ballot_sync(call.wrong ? 0x7fffffffu : 0xffffffffu, call.from[threadIdx.x] > 0);
  call.to[threadIdx.x] = static_cast<float>(other);
}

__global__ void copy_not_waited_for(Call call) {
  alignas(16) __shared__ float words[kThreads];
  if (threadIdx.x < kThreads / 4) __pipeline_memcpy_async(words + threadIdx.x * 4, call.from + threadIdx.x * 4, 16);
  __pipeline_commit();
  if (!call.wrong) __pipeline_wait_prior(0);
  __syncthreads();
  call.to[threadIdx.x] = words[threadIdx.x];
  __pipeline_wait_prior(0);
}

__global__ void copy_waited_for_by_its_thread_alone(Call call) {
  alignas(16) __shared__ float words[kThreads];
  if (threadIdx.x < kThreads / 4) __pipeline_memcpy_async(words + threadIdx.x * 4, call.from + threadIdx.x * 4, 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  if (!call.wrong) __syncthreads();
  call.to[threadIdx.x] = words[threadIdx.x];
}

__global__ void copy_that_outlives_its_thread(Call call) {
  alignas(16) __shared__ float words[kThreads];
  if (threadIdx.x < kThreads / 4) __pipeline_memcpy_async(words + threadIdx.x * 4, call.from + threadIdx.x * 4, 16);
  __pipeline_commit();
  if (!call.wrong) __pipeline_wait_prior(0);
  call.to[threadIdx.x] = 1;
}

__global__ void copy_of_two_bytes(Call call) {
  __shared__ float words[kThreads];
  __pipeline_memcpy_async(words + threadIdx.x, call.from + threadIdx.x, call.wrong ? 2 : 4);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  call.to[threadIdx.x] = words[threadIdx.x];
}

// The launch ends, and the process goes on.
__global__ void wild_pointer(Call call) {
  call.to[threadIdx.x] = 1;
  if (call.wrong) *reinterpret_cast<volatile float*>(uintptr_t{0x10000} * (threadIdx.x + 1)) = 1;
}

// Nothing is wrong with these: what warps and blocks compute together, against sums in test_emulation.py.
__global__ void collectives(Call call) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool odd = lane % 2 == 1;
  float* to = call.to + threadIdx.x * 16;
  to[0] = __shfl_sync(0xffffffffu, lane, 3);
  to[1] = __shfl_xor_sync(0xffffffffu, lane, 5);
  to[2] = __shfl_up_sync(0xffffffffu, lane, 2, 8);
  to[3] = __shfl_down_sync(0xffffffffu, lane, 2, 8);
  to[4] = __ballot_sync(0xffffffffu, odd) == 0xaaaaaaaau;
  to[5] = __any_sync(0xffffffffu, lane == 31);
  to[6] = __all_sync(0xffffffffu, lane < 31);
  to[7] = static_cast<float>(__reduce_add_sync(0xffffffffu, lane));
  to[8] = static_cast<float>(__reduce_min_sync(0xffffffffu, lane - 3));
  to[9] = static_cast<float>(__reduce_max_sync(0xffffffffu, static_cast<unsigned>(lane)));
  to[10] = static_cast<float>(__syncthreads_count(odd));
  to[11] = static_cast<float>(__syncthreads_or(threadIdx.x == 63));
  to[12] = static_cast<float>(__syncthreads_and(threadIdx.x < 63));
  to[13] = static_cast<float>(__reduce_xor_sync(0xffffffffu, static_cast<unsigned>(lane)));
  to[14] = odd ? __shfl_sync(0xaaaaaaaau, lane, 1) : __shfl_sync(0x55555555u, lane, 0);
  to[15] = static_cast<float>(blockIdx.x * 100 + gridDim.x * 10 + blockDim.x);
}

__global__ void bits(Call call) {
  if (threadIdx.x > 0) return;
  float* to = call.to;
  to[0] = __popcll(0xf0f0ull);
  to[1] = __ffs(8);
  to[2] = __clz(1);
  to[3] = __brev(1u) == 0x80000000u;
  to[4] = __funnelshift_r(0x80000000u, 3u, 31) == 7;
  to[5] = __half2float(__half(1.0f / 3)) == 1365.0f / 4096;
  to[6] = rsqrtf(4);
  to[7] = __ffsll(1ll << 40);
}

using Kernel = void (*)(Call);
const std::map<std::string, Kernel> kernels = {
#define KERNEL(name) {#name, name}
    KERNEL(shared_race),
    KERNEL(shared_race_after_reading),
    KERNEL(warp_race),
    KERNEL(warp_barrier_between_warps),
    KERNEL(shuffle_is_no_barrier),
    KERNEL(unwritten_shared),
    KERNEL(unwritten_global),
    KERNEL(shared_bounds),
    KERNEL(dynamic_shared_bounds),
    KERNEL(reads_beyond),
    KERNEL(writes_before),
    KERNEL(misaligned),
    KERNEL(misaligned_shared),
    KERNEL(misaligned_read_only),
    KERNEL(global_race),
    KERNEL(blocks_write_one_word),
    KERNEL(plain_beside_atomic),
    KERNEL(last_block),
    KERNEL(last_block_reads_all),
    KERNEL(barrier_of_some),
    KERNEL(barrier_after_return),
    KERNEL(warp_barrier_of_some),
    KERNEL(shuffle_from_nobody),
    KERNEL(not_in_its_mask),
    KERNEL(copy_not_waited_for),
    KERNEL(copy_waited_for_by_its_thread_alone),
    KERNEL(copy_that_outlives_its_thread),
    KERNEL(copy_of_two_bytes),
    KERNEL(wild_pointer),
    KERNEL(collectives),
    KERNEL(bits),
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int launch(
    const char* name, int blocks, size_t shared_bytes, const float* from, float* to, unsigned* counter, int count,
    int wrong) {
  cudaLaunchConfig_t config;
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  return cudaLaunchKernelEx(&config, kernels.at(name), Call{from, to, counter, count, wrong != 0});
}
