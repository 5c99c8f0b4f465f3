// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A linear layer for 1 to 16 rows is bound by reading its weight, so the weight is read compressed and each byte of it
// once. docs/cuda_kernels.md has the reasons and the floor.
//
// A warp takes a row of the weight. Columns come in panels of 1024 * kWordsOfLane: lane l has the words l *
// kWordsOfLane and up of the bitmap, 32 columns each. It goes through its bits, and multiplies what it finds. The
// values of the panel are brought to shared memory with 16-byte copies; the lanes know where theirs begin from a sum
// over the warp. The input lies in shared memory so that lane l reads bank l, whichever column it is at: [column of
// lane][lane].
//
// More than 400 lines: one kernel and how its calls are cut, which depend on each other line by line.
#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cstdint>

#include "base/cuda/vectors.cuh"
#include "sparse_conv2d/cuda/bitmap_linear.h"

namespace sparsekernels::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMostWords = 8;   // of a lane in a panel
constexpr int kMostGroups = 8;  // rows of a warp in a block, where there are several panels
constexpr int kVectorBytes = 16;
constexpr int kAhead = 2;  // values that a lane may read beyond its last

// How a call is cut: by its shape and density.
struct Tiling {
  int words;  // of 32 bits, of a lane in a panel
  int panels;
  int row_words;    // of 32 bits, of a row of the bitmap
  int value_bytes;  // of shared memory for the values of a warp: a multiple of 16
  int panel_bytes;  // for the input
};

// The input of one column, as a lane reads it: kRows elements, in planes of at most 16 bytes. A lone 2-byte element
// would share its bank with the next lane's, so it is kept as a float.
template <typename T, int kRows>
struct Input {
  using Stored = std::conditional_t<kRows * sizeof(T) < 4, float, T>;
  static constexpr int kBytes = kRows * sizeof(Stored);
  static constexpr int kPlanes = kBytes > kVectorBytes ? kBytes / kVectorBytes : 1;
  static constexpr int kPlaneRows = kRows / kPlanes;
  using Plane = Packed<Stored, kPlaneRows>;
};

// Lanes whose numbers differ in bit kHalf exchange: each keeps the sums of one half of its rows.
template <int kHalf, int kRows>
__device__ void halve(float (&acc)[kRows], int lane) {
  if constexpr (kHalf > 0) {
    const bool upper = (lane & kHalf) != 0;
#pragma unroll
    for (int r = 0; r < kHalf; ++r) {
      const float kept = upper ? acc[kHalf + r] : acc[r], sent = upper ? acc[r] : acc[kHalf + r];
      acc[r] = kept + __shfl_xor_sync(kAllLanes, sent, kHalf);
    }
    halve<kHalf / 2>(acc, lane);
  }
}

// The sums over the warp: lane l gets that of acc[l % kRows]. The order of each is fixed.
template <int kRows>
__device__ float sum_over_warp(float (&acc)[kRows]) {
  halve<kRows / 2>(acc, threadIdx.x % 32);
#pragma unroll
  for (int distance = kRows; distance < 32; distance *= 2) acc[0] += __shfl_xor_sync(kAllLanes, acc[0], distance);
  return acc[0];
}

// Brings columns `begin` and up of the input to shared memory: every thread of the block.
template <typename T, int kRows>
__device__ void load_panel(const BitmapLinear& call, bool wide, int64_t begin, int lane_columns, char* panel) {
  using In = Input<T, kRows>;
  const int lane = threadIdx.x % 32, vectors = lane_columns / kWidth<T>;
  for (int item = threadIdx.x / 32; item < vectors * In::kPlanes; item += kWarps) {
    const int plane = item / vectors, column = item % vectors * kWidth<T>;
    const int64_t at = begin + static_cast<int64_t>(lane) * lane_columns + column;
    float x[In::kPlaneRows][kWidth<T>];
#pragma unroll
    for (int r = 0; r < In::kPlaneRows; ++r) {
      const int row = plane * In::kPlaneRows + r;
      Vector<T> packed = {};
      if (row < call.rows) {
        packed = load(static_cast<const T*>(call.input) + row * call.in, at, call.in, wide);
      }
      unpack(packed, x[r]);
    }
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) {
      typename In::Stored entry[In::kPlaneRows];
#pragma unroll
      for (int r = 0; r < In::kPlaneRows; ++r) entry[r] = static_cast<typename In::Stored>(x[r][j]);
      typename In::Plane packed;
      memcpy(packed.words, entry, sizeof(packed));
      const int64_t index = (static_cast<int64_t>(plane) * lane_columns + column + j) * 32 + lane;
      store_wide(panel + index * sizeof(packed), packed);
    }
  }
}

// The words of a lane, and what they are in: the row, and where its values lie.
struct RowOfBits {
  uint32_t words[kMostWords];
  int begin, end;
};

__device__ inline void load_bits(
    const BitmapLinear& call, const Tiling& tiling, int64_t row, int panel, RowOfBits& bits) {
#pragma unroll
  for (int j = 0; j < kMostWords; ++j) bits.words[j] = 0;
  bits.begin = bits.end = 0;
  if (row >= call.out) return;
  const int first = (panel * 32 + static_cast<int>(threadIdx.x % 32)) * tiling.words;
  const uint32_t* from = reinterpret_cast<const uint32_t*>(call.words) + row * tiling.row_words + first;
  if (tiling.words >= 4) {
#pragma unroll
    for (int q = 0; q < kMostWords / 4; ++q) {
      if (q * 4 < tiling.words && first + q * 4 < tiling.row_words) {
        const uint4 four = __ldg(reinterpret_cast<const uint4*>(from) + q);
        bits.words[4 * q] = four.x;
        bits.words[4 * q + 1] = four.y;
        bits.words[4 * q + 2] = four.z;
        bits.words[4 * q + 3] = four.w;
      }
    }
  } else if (first < tiling.row_words) {
    if (tiling.words == 2) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
      bits.words[0] = two.x;
      bits.words[1] = two.y;
    } else {
      bits.words[0] = __ldg(from);
    }
  }
  bits.begin = __ldg(call.crow_indices + row);
  bits.end = __ldg(call.crow_indices + row + 1);
}

// The values [begin, begin + count) to `to`, from the vector of 16 bytes on in which the first one lies. What is in
// such a vector and not in values, at the ends of these, is zero.
template <typename T>
__device__ void copy_values(const BitmapLinear& call, int begin, int count, int head, char* to) {
  const int lane = threadIdx.x % 32, vectors = (head + count + kWidth<T> - 1) / kWidth<T>;
  const int64_t first = static_cast<int64_t>(begin) - head;
  const T* from = static_cast<const T*>(call.values) + first;
  if (first >= 0 && first + static_cast<int64_t>(vectors) * kWidth<T> <= call.nnz) {
    for (int v = lane; v < vectors; v += 32) {
      __pipeline_memcpy_async(to + v * kVectorBytes, from + v * kWidth<T>, kVectorBytes);
    }
  } else {
#pragma unroll 1
    for (int i = lane; i < vectors * kWidth<T>; i += 32) {
      const bool there = first + i >= 0 && first + i < call.nnz;
      reinterpret_cast<T*>(to)[i] = there ? from[i] : T(0.0f);
    }
  }
  __pipeline_commit();
}

// A lane's values, two at a time. Staged ones of two bytes are read four bytes at a time, one word ahead.
template <typename T, bool kStaged>
class Values {
 public:
  __device__ Values(const T* from, bool any) : from_(from) {
    if constexpr (kWords) {
      const int odd = static_cast<int>(reinterpret_cast<uintptr_t>(from) / sizeof(T) % 2);
      shift_ = 16 * odd;
      words_ = reinterpret_cast<const uint32_t*>(from - odd);
      if (any) word_ = *words_;
    }
  }

  // The second may be beyond the end.
  __device__ void take_pair(float (&pair)[2]) {
    if constexpr (kWords) {
      const uint32_t next = *++words_;
      Packed<T, 2> packed;
      packed.words[0] = __funnelshift_r(word_, next, shift_);
      unpack(packed, pair);
      word_ = next;
    } else {
      pair[0] = static_cast<float>(from_[0]);
      pair[1] = static_cast<float>(from_[1]);
      from_ += 2;
    }
  }

  __device__ float take_last() const {
    if constexpr (kWords) {
      Packed<T, 2> packed;
      float pair[2];
      packed.words[0] = word_ >> shift_;
      unpack(packed, pair);
      return pair[0];
    } else {
      return static_cast<float>(from_[0]);
    }
  }

 private:
  static constexpr bool kWords = kStaged && sizeof(T) == 2;
  const T* from_;
  unsigned shift_ = 0;
  const uint32_t* words_ = nullptr;
  uint32_t word_ = 0;
};

// A nonzero word of a lane, its lowest bit on top, and where in the panel the column of bit 0 then lies.
struct alignas(8) Bits {
  uint32_t word;
  uint32_t offset;
};

// Goes through the bits of a lane, whose words lie 32 apart. panel: the lane's entry of its first column.
template <typename T, int kRows, bool kStaged>
__device__ void multiply(
    const T* from, int count, const Bits* bits, const char* panel, int plane_bytes, float (&acc)[kRows]) {
  using In = Input<T, kRows>;
  constexpr int kColumnBytes = 32 * sizeof(typename In::Plane);
  Values<T, kStaged> values(from, count > 0);
  uint32_t word = 0;
  const char* column = panel;
  const auto add = [&](float value) {
    if (word == 0) {
      const uint2 entry = load_one<false>(reinterpret_cast<const uint2*>(bits));
      word = entry.x;
      column = panel + entry.y;
      bits += 32;
    }
    const int at = 31 - __clz(static_cast<int>(word));
    word ^= 1u << at;
#pragma unroll
    for (int plane = 0; plane < In::kPlanes; ++plane) {
      float x[In::kPlaneRows];
      unpack(load_wide<typename In::Plane, false>(column - at * kColumnBytes + plane * plane_bytes), x);
#pragma unroll
      for (int r = 0; r < In::kPlaneRows; ++r) {
        float& sum = acc[plane * In::kPlaneRows + r];
        sum = multiply_add(value, x[r], sum);
      }
    }
  };
#pragma unroll 2
  for (int pairs = count / 2; pairs > 0; --pairs) {
    float pair[2];
    values.take_pair(pair);
    add(pair[0]);
    add(pair[1]);
  }
  if (count % 2 != 0) add(values.take_last());
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads, kRows <= 4 ? 4 : 2)
    bitmap_rows(const __grid_constant__ BitmapLinear call, const Tiling tiling, const bool wide) {
  extern __shared__ uint4 bitmap_shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  char* panel = reinterpret_cast<char*>(bitmap_shared);
  char* staged = panel + tiling.panel_bytes + warp * tiling.value_bytes;
  char* after = panel + tiling.panel_bytes + kWarps * tiling.value_bytes;
  const int bits_bytes = tiling.words * 32 * static_cast<int>(sizeof(Bits));
  Bits* bits = reinterpret_cast<Bits*>(after + warp * bits_bytes) + lane;
  after += kWarps * bits_bytes;
  float* sums = reinterpret_cast<float*>(after) + warp * kMostGroups * kRows;
  int* done = reinterpret_cast<int*>(after + kWarps * kMostGroups * kRows * 4) + warp * kMostGroups;

  using Plane = typename Input<T, kRows>::Plane;
  const int lane_columns = tiling.words * 32, plane_bytes = lane_columns * 32 * static_cast<int>(sizeof(Plane));
  const int64_t groups = (call.out + kWarps - 1) / kWarps;
  for (int p = 0; p < tiling.panels; ++p) {
    if (p > 0) __syncthreads();
    load_panel<T, kRows>(call, wide, static_cast<int64_t>(p) * 32 * lane_columns, lane_columns, panel);
    __syncthreads();

    RowOfBits next;
    load_bits(call, tiling, static_cast<int64_t>(blockIdx.x) * kWarps + warp, p, next);
    int turn = 0;
    for (int64_t group = blockIdx.x; group < groups; group += gridDim.x, ++turn) {
      const int64_t row = group * kWarps + warp;
      if (row >= call.out) break;

      // The words that are not zero, and how many bits there are before this lane's.
      int count = 0;
      Bits* kept = bits;
#pragma unroll
      for (int q = 0; q < kMostWords / 4; ++q) {
        if (q * 4 >= tiling.words) break;
#pragma unroll
        for (int j = 4 * q; j < 4 * q + 4; ++j) {
          const uint32_t word = next.words[j];
          const uint2 entry = {__brev(word), static_cast<uint32_t>((j * 32 + 31) * 32 * sizeof(Plane))};
          if (j < tiling.words) *reinterpret_cast<uint2*>(kept) = entry;  // the next one takes the place of a zero
          kept += word != 0 ? 32 : 0;
          count += __popc(word);
        }
      }
      int before = count;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(kAllLanes, before, distance);
        if (lane >= distance) before += other;
      }
      const int all = __shfl_sync(kAllLanes, before, 31);
      before -= count;
      // Within the values, whatever the indices say.
      const int begin = min(max(next.begin, 0) + (p > 0 ? done[turn] : 0), static_cast<int>(call.nnz));
      const int total = max(min(all, min(next.end, static_cast<int>(call.nnz)) - begin), 0);
      count = max(min(count, total - before), 0);

      // How far into a vector of 16 bytes the first value lies.
      const T* values = static_cast<const T*>(call.values);
      const int head = static_cast<int>(reinterpret_cast<uintptr_t>(values + begin) % kVectorBytes / sizeof(T));
      const bool fits = (head + total + kAhead) * static_cast<int>(sizeof(T)) <= tiling.value_bytes;
      __syncwarp();  // all have read what was staged before
      if (fits) copy_values<T>(call, begin, total + kAhead, head, staged);
      load_bits(call, tiling, row + static_cast<int64_t>(gridDim.x) * kWarps, p, next);

      float acc[kRows] = {};
      const char* entries = panel + lane * sizeof(Plane);
      if (fits) {
        __pipeline_wait_prior(0);
        __syncwarp();
        const T* own = reinterpret_cast<const T*>(staged) + head + before;
        multiply<T, kRows, true>(own, count, bits, entries, plane_bytes, acc);
      } else {
        multiply<T, kRows, false>(values + begin + before, count, bits, entries, plane_bytes, acc);
      }

      float sum = sum_over_warp(acc);
      if (lane < kRows) {
        if (p > 0) sum += sums[turn * kRows + lane];
        if (p + 1 < tiling.panels) {
          sums[turn * kRows + lane] = sum;
        } else if (lane < call.rows) {
          if (call.bias != nullptr) sum += static_cast<float>(static_cast<const T*>(call.bias)[row]);
          static_cast<T*>(call.output)[lane * call.out + row] = static_cast<T>(sum);
        }
      }
      if (p + 1 < tiling.panels) {
        const int so_far = (p > 0 ? done[turn] : 0) + total;
        __syncwarp();
        if (lane == 0) done[turn] = so_far;
      }
    }
  }
}

// The longest panel with which two blocks fit where 163 KB are, and three where 227 KB are; shorter ones leave lanes
// unevenly busy.
template <typename T, int kRows>
Tiling tiling_of(const BitmapLinear& call, int& shared_bytes) {
  constexpr int kEnough = 72 * 1024;
  Tiling tiling = {};
  tiling.row_words = static_cast<int>((call.in + 127) / 128 * 4);
  for (int words = kMostWords; words > 0; words /= 2) {
    const int64_t columns = 1024 * words;
    if (words > 1 && columns / 2 >= call.in) continue;
    const double density =
        static_cast<double>(call.nnz) / (static_cast<double>(call.in) * static_cast<double>(call.out));
    const auto expected = static_cast<int64_t>(static_cast<double>(columns) * density * 1.25) + 64;
    const int64_t elements = std::min(expected, columns) + kWidth<T> + kAhead;
    tiling.words = words;
    tiling.panels = static_cast<int>((call.in + columns - 1) / columns);
    tiling.value_bytes = static_cast<int>((elements * sizeof(T) + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
    tiling.panel_bytes = static_cast<int>(columns) * Input<T, kRows>::kBytes;
    const int bits_bytes = words * 32 * static_cast<int>(sizeof(Bits)), sums_bytes = kMostGroups * (kRows + 1) * 4;
    shared_bytes = tiling.panel_bytes + kWarps * (tiling.value_bytes + bits_bytes + sums_bytes);
    if (shared_bytes <= kEnough) break;
  }
  return tiling;
}

template <typename T, int kRows>
cudaError_t launch_rows(const BitmapLinear& call, cudaStream_t stream) {
  int device, multiprocessors, shared_of_multiprocessor, shared_of_block, shared_bytes;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&shared_of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)) {
    return error;
  }
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
    return error;
  }
  Tiling tiling = tiling_of<T, kRows>(call, shared_bytes);
  if (shared_bytes > shared_of_block) {  // values that do not fit are read where they are
    constexpr int kStep = kWarps * kVectorBytes;
    const int steps = std::min((shared_bytes - shared_of_block + kStep - 1) / kStep, tiling.value_bytes / kVectorBytes);
    tiling.value_bytes -= steps * kVectorBytes;
    shared_bytes -= steps * kStep;
  }
  // The device's own limit, not this call's: another thread may launch the same kernel with more at this moment.
  const auto kernel = bitmap_rows<T, kRows>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_of_block)) {
    return error;
  }
  // As many blocks as there is room for, so that the input is brought in once for many rows.
  constexpr int kReserved = 1024;
  const int resident = std::min(kRows <= 4 ? 4 : 2, shared_of_multiprocessor / (shared_bytes + kReserved));
  const int64_t groups = (call.out + kWarps - 1) / kWarps;
  int64_t blocks = std::min<int64_t>(groups, static_cast<int64_t>(multiprocessors) * std::max(resident, 1));
  if (tiling.panels > 1) blocks = std::max(blocks, (groups + kMostGroups - 1) / kMostGroups);
  const bool wide = call.in % kWidth<T> == 0 && reinterpret_cast<uintptr_t>(call.input) % kVectorBytes == 0;
  return launch(kernel, blocks, kThreads, static_cast<size_t>(shared_bytes), stream, call, tiling, wide);
}

template <typename T>
cudaError_t launch_for(const BitmapLinear& call, cudaStream_t stream) {
  if (call.rows == 1) return launch_rows<T, 1>(call, stream);
  if (call.rows == 2) return launch_rows<T, 2>(call, stream);
  if (call.rows <= 4) return launch_rows<T, 4>(call, stream);
  if (call.rows <= 8) return launch_rows<T, 8>(call, stream);
  return launch_rows<T, 16>(call, stream);
}

}  // namespace

cudaError_t bitmap_linear(const BitmapLinear& call, cudaStream_t stream) {
  if (call.rows == 0 || call.out == 0) return cudaSuccess;
  const bool small = call.in <= int64_t{1} << 30 && call.nnz <= INT32_MAX;
  if (call.rows < 0 || call.rows > kMaxBitmapRows || call.in <= 0 || !small) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(call.words) % kVectorBytes != 0) return cudaErrorInvalidValue;
  switch (call.dtype) {
    case DType::kFloat32:
      return launch_for<float>(call, stream);
    case DType::kBFloat16:
      return launch_for<__nv_bfloat16>(call, stream);
    case DType::kFloat16:
      return launch_for<__half>(call, stream);
    case DType::kFloat64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsekernels::cuda
