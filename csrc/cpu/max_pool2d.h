// Max pooling of contiguous planes: of a window's rows first, which are neighbours, then along the row that this gives.
// Compiled once per instruction set, as vec.h is.
#pragma once

#include "../max_pool2d.h"
#include "sparse/sixteen.h"

namespace sparsekernels {
namespace {

// The larger of two, lane by lane; NaN where either is.
inline Vec<float> larger(Vec<float> a, Vec<float> b) {
#if defined(SPARSEKERNELS_AVX512)
  // max gives b where either is NaN
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
#else
  float one[16], other[16];
  a.store(one);
  b.store(other);
  for (int i = 0; i < 16; ++i) one[i] = one[i] > other[i] || one[i] != one[i] ? one[i] : other[i];
  return Vec<float>::load(one);
#endif
}

// Sixteen floats that are `stride` apart, of which 16 * stride + 16 may be read.
inline Vec<float> load_apart(const float* from, int64_t stride) {
  if (stride == 1) return Vec<float>::load(from);
#if defined(SPARSEKERNELS_AVX512)
  if (stride == 2) {
    const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(from), evens, _mm512_loadu_ps(from + 16))};
  }
#endif
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = from[i * stride];
  return Vec<float>::load(lanes);
}

// To places [at, at + 16) of a plane, those whose bit is set.
template <class T>
inline void store_places(Vec<float> value, T* plane, int64_t at, uint32_t mask, int64_t line) {
  if (line == 16) return Sixteen<T>::store(value, plane + at, mask);
  const int64_t lane = at % 16;
  T* const first = plane + at / 16 * line;
  const uint32_t here = (1u << (16 - lane)) - 1;
  if (mask & here) Sixteen<T>::store(value, first + lane, mask & here);
  if (mask & ~here) Sixteen<T>::store(value, first + line + lane - 16, mask & ~here);
}

// Planes [begin, end). `row`: MaxPool2d::row_floats.
template <class T>
void max_pool_planes(const MaxPool2d& t, float* row, int64_t begin, int64_t end) {
  const float lowest = -__builtin_inff();
  for (int64_t x = 0; x < t.row_floats(); ++x) row[x] = lowest;
  const int64_t height = t.source_size[0], width = t.source_size[1];
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t image = plane / t.channels, channel = plane % t.channels;
    const T* const source = static_cast<const T*>(t.source) + image * t.source_image + channel * t.source_channel;
    T* const dest = static_cast<T*>(t.dest) + image * t.dest_image + channel * t.dest_channel;
    for (int64_t y = 0; y < t.dest_size[0]; ++y) {
      const int64_t top = y * t.stride[0] - t.padding[0], bottom = top + t.window[0];
      const int64_t first = top < 0 ? 0 : top, last = bottom > height ? height : bottom;
      for (int64_t x = 0; x < width; x += 16) {
        const uint32_t mask = width - x >= 16 ? 0xffffu : (1u << (width - x)) - 1;
        Vec<float> largest = Sixteen<T>::load(source + first * width + x, mask);
        for (int64_t from = first + 1; from < last; ++from)
          largest = larger(largest, Sixteen<T>::load(source + from * width + x, mask));
        Sixteen<float>::store(largest, row + t.padding[1] + x, mask);
      }
      for (int64_t x = 0; x < t.dest_size[1]; x += 16) {
        const int64_t rest = t.dest_size[1] - x;
        Vec<float> largest = load_apart(row + x * t.stride[1], t.stride[1]);
        for (int64_t k = 1; k < t.window[1]; ++k)
          largest = larger(largest, load_apart(row + x * t.stride[1] + k, t.stride[1]));
        store_places(largest, dest, y * t.dest_size[1] + x, rest >= 16 ? 0xffffu : (1u << rest) - 1, t.dest_line);
      }
    }
  }
}

void max_pool2d_planes(const MaxPool2d& call, float* row, int64_t begin, int64_t end) {
  if (call.dtype == DType::kBFloat16) return max_pool_planes<BFloat16>(call, row, begin, end);
  if (call.dtype == DType::kFloat16) return max_pool_planes<Float16>(call, row, begin, end);
  max_pool_planes<float>(call, row, begin, end);
}

}  // namespace
}  // namespace sparsekernels
