// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Max pooling of contiguous planes: of a window's rows first, which are neighbors, then along the row that this gives.
// Of channels that are neighbors as well. Compiled once per instruction set, as vec.h is.
#pragma once

#include <algorithm>

#include "base/vec16.h"
#include "max_pool2d/call.h"

namespace sparsekernels {
namespace {

// 16 floats that are `stride` apart, of which 16 * stride + 16 may be read.
inline Vec<float> load_apart(const float* from, int64_t stride) {
  if (stride == 1) return Vec<float>::load(from);
#if defined(SPARSEKERNELS_AVX512)
  if (stride == 2) {
    const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(from), evens, _mm512_loadu_ps(from + kLanes))};
  }
#endif
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = from[i * stride];
  return Vec<float>::load(lanes);
}

// To places [at, at + 16) of a plane, those whose bit is set.
template <class T>
inline void store_places(Vec<float> value, T* plane, int64_t at, uint32_t mask, int64_t vector_stride) {
  if (plane_order(vector_stride) == PlaneOrder::kPlanar) return Vec16<T>::store(value, plane + at, mask);
  const int64_t lane = at % kLanes;
  T* const first = plane + at / kLanes * vector_stride;
  const uint32_t here = (1u << (kLanes - lane)) - 1;
  if (mask & here) Vec16<T>::store(value, first + lane, mask & here);
  if (mask & ~here) Vec16<T>::store(value, first + vector_stride + lane - kLanes, mask & ~here);
}

#if defined(SPARSEKERNELS_AVX512)

// The largest of rows [first, last) of a plane, columns [column, column + 16); minus infinity outside.
template <class T>
inline Vec<float> largest_of_rows(const T* plane, int64_t width, int64_t first, int64_t last, int64_t column) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  const int64_t left = column < 0 ? -column : 0, until = width - column;
  if (left >= kLanes || until <= 0) return {lowest};
  const uint32_t within = (until >= kLanes ? 0xffffu : (1u << until) - 1) & (0xffffffffu << left);
  Vec<float> largest = {lowest};
  for (int64_t y = first; y < last; ++y) {
    const Vec<float> row = Vec16<T>::load(plane + y * width + column, within);
    largest = y == first ? row : larger(largest, row);
  }
  return {_mm512_mask_mov_ps(lowest, static_cast<__mmask16>(within), largest.v)};
}

// 16 results of a stride of 2 along the row, straight from the source: even and odd columns of the same loads. A
// row of largest ones in memory would be loaded again at once, across the vectors that were stored.
template <class T>
inline Vec<float> largest_of_pairs(const MaxPool2d& t, const T* plane, int64_t first, int64_t last, int64_t column) {
  const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  Vec<float> largest = {_mm512_set1_ps(-__builtin_inff())};
  for (int64_t k = 0; k < t.window[1]; k += 2) {
    const Vec<float> low = largest_of_rows(plane, t.source_size[1], first, last, column + k);
    const Vec<float> high = largest_of_rows(plane, t.source_size[1], first, last, column + k + kLanes);
    const Vec<float> even = {_mm512_permutex2var_ps(low.v, evens, high.v)};
    largest = k == 0 ? even : larger(largest, even);
    if (k + 1 < t.window[1]) largest = larger(largest, {_mm512_permutex2var_ps(low.v, odds, high.v)});
  }
  return largest;
}

// Windows of 2x2 that do not overlap, all of them inside.
inline bool is_halving(const MaxPool2d& t) {
  bool result = true;
  for (int d = 0; d < 2; ++d) result = result && t.window[d] == 2 && t.stride[d] == 2 && t.padding[d] == 0;
  return result;
}

// 16 results of such windows: of columns [0, 32) of two rows, or of 16 columns of four rows.
template <class T>
inline Vec<float> largest_of_quads(const T* from, int64_t next_row, int64_t next_columns) {
  const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  const Vec<float> low = larger(Vec16<T>::load(from), Vec16<T>::load(from + next_row));
  from += next_columns;
  const Vec<float> high = larger(Vec16<T>::load(from), Vec16<T>::load(from + next_row));
  return larger({_mm512_permutex2var_ps(low.v, evens, high.v)}, {_mm512_permutex2var_ps(low.v, odds, high.v)});
}

// Whether results lie side by side from plane to plane, and a vector of them is those of whole planes, or a part of
// one.
inline bool pools_small_planes(const MaxPool2d& t) {
  constexpr int64_t kSmallWidth = 8;
  const int64_t results = t.dest_size[0] * t.dest_size[1], elements = t.source_size[0] * t.source_size[1];
  const bool side_by_side = t.dest_channel == results && t.dest_image == t.channels * results &&
                            plane_order(t.dest_vector_stride) == PlaneOrder::kPlanar && t.source_channel == elements &&
                            t.source_image == t.channels * elements;
  return side_by_side && t.dest_size[1] <= kSmallWidth && t.padding[0] == 0 && t.padding[1] == 0 &&
         (kLanes % results == 0 || results % kLanes == 0) && elements < int64_t{1} << 24;
}

// A row of a small plane would leave most of a vector empty: a vector of results at a time, gathered.
inline void pool_small_planes(const MaxPool2d& t, int64_t begin, int64_t end) {
  const int64_t results = t.dest_size[0] * t.dest_size[1], elements = t.source_size[0] * t.source_size[1];
  const float* const source = static_cast<const float*>(t.source);
  float* const dest = static_cast<float*>(t.dest);
  for (int64_t part = 0; part < (results > kLanes ? results : kLanes); part += kLanes) {
    int32_t places[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t at = (part + i) % results, plane = (part + i) / results;
      const int64_t y = at / t.dest_size[1] * t.stride[0], x = at % t.dest_size[1] * t.stride[1];
      places[i] = static_cast<int32_t>(plane * elements + y * t.source_size[1] + x);
    }
    const __m512i first = _mm512_loadu_si512(places);
    const int64_t step = results < kLanes ? kLanes / results : 1;  // planes
    for (int64_t plane = begin; plane < end; plane += step) {
      const int64_t count = (end - plane) * results - part;
      const __mmask16 mask = count >= kLanes ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
      const float* const from = source + plane * elements;
      Vec<float> largest = {_mm512_set1_ps(-__builtin_inff())};
      for (int64_t y = 0; y < t.window[0]; ++y) {
        for (int64_t x = 0; x < t.window[1]; ++x) {
          const float* const tap = from + y * t.source_size[1] + x;
          largest = larger(largest, {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, first, tap, 4)});
        }
      }
      Vec16<float>::store(largest, dest + plane * results + part, mask);
    }
  }
}

#endif

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
    int64_t y = 0;
#if defined(SPARSEKERNELS_AVX512)
    const bool halves = plane_order(t.dest_vector_stride) == PlaneOrder::kPlanar && is_halving(t);
    for (; halves && width == kLanes && y + 2 <= t.dest_size[0]; y += 2)  // two rows of results are a vector
      Vec16<T>::store(largest_of_quads(source + 2 * y * width, width, 2 * width), dest + y * t.dest_size[1]);
#endif
    for (; y < t.dest_size[0]; ++y) {
      const int64_t top = y * t.stride[0] - t.padding[0], bottom = top + t.window[0];
      const int64_t first = top < 0 ? 0 : top, last = bottom > height ? height : bottom;
#if defined(SPARSEKERNELS_AVX512)
      int64_t x = 0;
      for (; halves && x + kLanes <= t.dest_size[1]; x += kLanes)
        Vec16<T>::store(largest_of_quads(source + top * width + 2 * x, width, kLanes), dest + y * t.dest_size[1] + x);
      for (; t.stride[1] == 2 && x < t.dest_size[1]; x += kLanes) {
        const int64_t rest = t.dest_size[1] - x;
        const Vec<float> largest = largest_of_pairs(t, source, first, last, 2 * x - t.padding[1]);
        store_places(
            largest, dest, y * t.dest_size[1] + x, rest >= kLanes ? 0xffffu : (1u << rest) - 1, t.dest_vector_stride);
      }
      if (t.stride[1] == 2) continue;
#endif
      for (int64_t x = 0; x < width; x += kLanes) {
        const uint32_t mask = width - x >= kLanes ? 0xffffu : (1u << (width - x)) - 1;
        Vec<float> largest = Vec16<T>::load(source + first * width + x, mask);
        for (int64_t from = first + 1; from < last; ++from)
          largest = larger(largest, Vec16<T>::load(source + from * width + x, mask));
        Vec16<float>::store(largest, row + t.padding[1] + x, mask);
      }
      for (int64_t x = 0; x < t.dest_size[1]; x += kLanes) {
        const int64_t rest = t.dest_size[1] - x;
        Vec<float> largest = load_apart(row + x * t.stride[1], t.stride[1]);
        for (int64_t k = 1; k < t.window[1]; ++k)
          largest = larger(largest, load_apart(row + x * t.stride[1] + k, t.stride[1]));
        store_places(
            largest, dest, y * t.dest_size[1] + x, rest >= kLanes ? 0xffffu : (1u << rest) - 1, t.dest_vector_stride);
      }
    }
  }
}

// 16 interleaved images at a time, [begin, end) of these: the vectors of all channels follow each other.
inline void pool_interleaved(const MaxPool2d& t, int64_t begin, int64_t end) {
  const int64_t width = t.source_size[1], floats = t.channels * kLanes;
  for (int64_t microbatch = begin; microbatch < end; ++microbatch) {
    const float* const source = static_cast<const float*>(t.source) + microbatch * t.source_image;
    float* to = static_cast<float*>(t.dest) + microbatch * t.dest_image;
    for (int64_t y = 0; y < t.dest_size[0]; ++y) {
      for (int64_t x = 0; x < t.dest_size[1]; ++x, to += t.dest_vector_stride) {
        const int64_t top = y * t.stride[0] - t.padding[0], left = x * t.stride[1] - t.padding[1];
        bool first = true;
        for (int64_t row = top; row < top + t.window[0]; ++row) {
          for (int64_t column = left; column < left + t.window[1]; ++column) {
            if (row < 0 || row >= t.source_size[0] || column < 0 || column >= width) continue;
            const float* const from = source + (row * width + column) * t.source_vector_stride;
            for (int64_t i = 0; i < floats; i += kLanes) {
              const Vec<float> value = Vec<float>::load(from + i);
              (first ? value : larger(Vec<float>::load(to + i), value)).store(to + i);
            }
            first = false;
          }
        }
      }
    }
  }
}

void max_pool2d_planes(const MaxPool2d& call, float* row, int64_t begin, int64_t end) {
  if (call.images > 1) return pool_interleaved(call, begin, end);
  if (call.dtype == DType::kBFloat16) return max_pool_planes<BFloat16>(call, row, begin, end);
  if (call.dtype == DType::kFloat16) return max_pool_planes<Float16>(call, row, begin, end);
#if defined(SPARSEKERNELS_AVX512)
  if (pools_small_planes(call)) return pool_small_planes(call, begin, end);
#endif
  max_pool_planes<float>(call, row, begin, end);
}

// Rows [begin, end) of the results of all images, whose channels are neighbors: the largest of lines of channels.
template <class T>
void max_pool_lines(const MaxPool2d& t, int64_t begin, int64_t end) {
  const int64_t width = t.source_size[1], channels = t.channels;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / t.dest_size[0], top = row % t.dest_size[0] * t.stride[0] - t.padding[0];
    const int64_t first = std::max<int64_t>(0, top), last = std::min(top + t.window[0], t.source_size[0]);
    const T* const source = static_cast<const T*>(t.source) + image * t.source_image;
    T* to = static_cast<T*>(t.dest) + row * t.dest_size[1] * channels;
    for (int64_t x = 0; x < t.dest_size[1]; ++x, to += channels) {
      const int64_t left = x * t.stride[1] - t.padding[1];
      const int64_t from = std::max<int64_t>(0, left), until = std::min(left + t.window[1], width);
      for (int64_t channel = 0; channel < channels; channel += kLanes) {
        const int64_t rest = channels - channel;
        const uint32_t mask = rest >= kLanes ? 0xffffu : (1u << rest) - 1;
        const T* const lines = source + channel;
        Vec<float> largest = Vec16<T>::load(lines + (first * width + from) * channels, mask);
        for (int64_t y = first; y < last; ++y)
          for (int64_t column = from; column < until; ++column)
            largest = larger(largest, Vec16<T>::load(lines + (y * width + column) * channels, mask));
        Vec16<T>::store(largest, to + channel, mask);
      }
    }
  }
}

void max_pool2d_lines(const MaxPool2d& call, int64_t begin, int64_t end) {
  if (call.dtype == DType::kBFloat16) return max_pool_lines<BFloat16>(call, begin, end);
  if (call.dtype == DType::kFloat16) return max_pool_lines<Float16>(call, begin, end);
  max_pool_lines<float>(call, begin, end);
}

}  // namespace
}  // namespace sparsekernels
