// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Max pooling for training: also where each largest element is, so that the gradient finds back. Compiled once per
// instruction set, as vec.h is.
#pragma once

#include "base/vec16.h"
#include "max_pool2d/call.h"

namespace sparsekernels {
namespace {

#if defined(SPARSEKERNELS_AVX512)

// The lanes of 16 columns, `stride` apart from `column` on, that a row has.
inline uint32_t lanes_in_row(int64_t column, int64_t stride, int64_t width) {
  if (column >= 0 && column + 15 * stride < width) return 0xffff;
  const int64_t left = column < 0 ? (stride - 1 - column) / stride : 0;
  const int64_t until = column < width ? (width - column + stride - 1) / stride : 0;
  if (left >= kLanes || until <= left) return 0;
  return (until >= kLanes ? 0xffffu : (1u << until) - 1) & (0xffffffffu << left);
}

// The elements of these columns, of which the row has `within`; zero in other lanes.
inline Vec<float> load_columns(const float* row, int64_t column, int64_t stride, int64_t width, uint32_t within) {
  if (stride == 1) return Vec16<float>::load(row + column, within);
  if (stride == 2) {
    const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const Vec<float> low = Vec16<float>::load(row + column, lanes_in_row(column, 1, width));
    const Vec<float> high = Vec16<float>::load(row + column + kLanes, lanes_in_row(column + kLanes, 1, width));
    return {_mm512_permutex2var_ps(low.v, evens, high.v)};
  }
  const __m512i ramp = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i apart = _mm512_mullo_epi32(ramp, _mm512_set1_epi32(static_cast<int>(stride)));
  const __mmask16 mask = static_cast<__mmask16>(within);
  return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, apart, row + column, 4)};
}

// Results [x, x + 16) of a row of windows that has `rest` left, from rows [first, last) of the plane.
inline void pool_vec16(
    const MaxPool2d& t, const float* plane, int64_t first, int64_t last, int64_t x, int64_t rest, float* dest,
    int32_t* places) {
  const int64_t width = t.source_size[1], stride = t.stride[1], left = x * stride - t.padding[1];
  const __m512i ramp = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i columns = _mm512_add_epi32(
      _mm512_mullo_epi32(ramp, _mm512_set1_epi32(static_cast<int>(stride))), _mm512_set1_epi32(static_cast<int>(left)));
  __m512 largest = _mm512_set1_ps(-__builtin_inff());
  // where all are minus infinity, the first that there is
  __m512i at = _mm512_add_epi32(
      _mm512_max_epi32(columns, _mm512_setzero_si512()), _mm512_set1_epi32(static_cast<int>(first * width)));
  for (int64_t y = first; y < last; ++y) {
    for (int64_t k = 0; k < t.window[1]; ++k) {
      const uint32_t within = lanes_in_row(left + k, stride, width);
      const __m512 value = load_columns(plane + y * width, left + k, stride, width, within).v;
      const uint32_t above = _mm512_cmp_ps_mask(value, largest, _CMP_GT_OQ);
      const uint32_t is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
      const __mmask16 taken = static_cast<__mmask16>((above | is_nan) & within);
      largest = _mm512_mask_mov_ps(largest, taken, value);
      at = _mm512_mask_add_epi32(at, taken, columns, _mm512_set1_epi32(static_cast<int>(y * width + k)));
    }
  }
  const __mmask16 mask = rest >= kLanes ? 0xffff : static_cast<__mmask16>((1u << rest) - 1);
  _mm512_mask_storeu_ps(dest, mask, largest);
  _mm512_mask_storeu_epi32(places, mask, at);
}

// Whether windows are of 2x2 and halve planes that follow each other, of so few columns that a row leaves lanes empty,
// and such that 64 elements are planes or a part of one.
inline bool halves_narrow_planes(const MaxPool2d& t) {
  for (int d = 0; d < 2; ++d)
    if (t.window[d] != 2 || t.stride[d] != 2 || t.padding[d] != 0) return false;
  const int64_t width = t.source_size[1], elements = t.source_size[0] * width;
  if (t.source_channel != elements || t.dest_channel != t.dest_size[0] * t.dest_size[1]) return false;
  if (width > 16 || (width & (width - 1)) != 0 || t.source_size[0] % 2 != 0 || width < 2) return false;
  return elements % 64 == 0 || 64 % elements == 0;
}

// 16 results at a time of 64 elements, while there are as many. Returns the first plane that is left.
inline int64_t pool_narrow_planes(const MaxPool2d& t, int32_t* places, int64_t begin, int64_t end) {
  constexpr int64_t kElements = 4 * kLanes;
  const int64_t width = t.source_size[1], elements = t.source_size[0] * width, half = width / 2;
  alignas(64) int32_t taps[4][kLanes], places_of_taps[4][kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    const int64_t corner = i / half * 2 * width + i % half * 2;
    for (int64_t tap = 0; tap < 4; ++tap) {
      const int64_t at = corner + tap / 2 * width + tap % 2;
      taps[tap][i] = static_cast<int32_t>(at % (2 * kLanes));  // of the first or of the last two vectors
      places_of_taps[tap][i] = static_cast<int32_t>(at % elements);
    }
  }
  const int64_t step = elements < kElements ? kElements / elements : 1;  // planes
  const float* const source = static_cast<const float*>(t.source);
  float* const dest = static_cast<float*>(t.dest);
  int64_t plane = begin;
  for (; plane + step <= end; plane += step) {
    for (int64_t first = 0; first < elements; first += kElements) {
      const int64_t at = plane * elements + first;
      __m512 loaded[4];
      for (int64_t v = 0; v < 4; ++v) loaded[v] = _mm512_loadu_ps(source + at + v * kLanes);
      const __m512i start = _mm512_set1_epi32(static_cast<int>(first));
      __m512 largest = _mm512_setzero_ps();
      __m512i place = _mm512_setzero_si512();
      for (int64_t tap = 0; tap < 4; ++tap) {
        const __m512i from = _mm512_load_si512(taps[tap]);
        const __m512 value = _mm512_mask_blend_ps(
            0xff00, _mm512_permutex2var_ps(loaded[0], from, loaded[1]),
            _mm512_permutex2var_ps(loaded[2], from, loaded[3]));
        const __mmask16 above = _mm512_cmp_ps_mask(value, largest, _CMP_GT_OQ);
        const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        const __mmask16 taken = tap == 0 ? 0xffff : static_cast<__mmask16>(above | is_nan);
        largest = _mm512_mask_mov_ps(largest, taken, value);
        place = _mm512_mask_add_epi32(place, taken, _mm512_load_si512(places_of_taps[tap]), start);
      }
      _mm512_storeu_ps(dest + at / 4, largest);
      _mm512_storeu_si512(places + at / 4, place);
    }
  }
  return plane;
}

#else

// Result x of a row of windows, from rows [first, last) of the plane.
inline void pool_one(
    const MaxPool2d& t, const float* plane, int64_t first, int64_t last, int64_t x, float* dest, int32_t* place) {
  const int64_t width = t.source_size[1], left = x * t.stride[1] - t.padding[1], right = left + t.window[1];
  const int64_t from = left < 0 ? 0 : left, to = right > width ? width : right;
  float largest = -__builtin_inff();
  int64_t at = first * width + from;
  for (int64_t y = first; y < last; ++y) {
    for (int64_t column = from; column < to; ++column) {
      const float value = plane[y * width + column];
      if (value > largest || value != value) {
        largest = value;
        at = y * width + column;
      }
    }
  }
  *dest = largest;
  *place = static_cast<int32_t>(at);
}

#endif

// Planes [begin, end), of float32 without gaps, and where in its plane each result was found: the first of elements
// that are equal, the last NaN.
void max_pool2d_places(const MaxPool2d& t, int32_t* places, int64_t begin, int64_t end) {
  const int64_t height = t.source_size[0], columns = t.dest_size[1];
#if defined(SPARSEKERNELS_AVX512)
  if (halves_narrow_planes(t)) begin = pool_narrow_planes(t, places, begin, end);
#endif
  for (int64_t plane = begin; plane < end; ++plane) {
    const float* const source = static_cast<const float*>(t.source) + plane * t.source_channel;
    for (int64_t y = 0; y < t.dest_size[0]; ++y) {
      const int64_t top = y * t.stride[0] - t.padding[0], bottom = top + t.window[0];
      const int64_t first = top < 0 ? 0 : top, last = bottom > height ? height : bottom;
      const int64_t row = plane * t.dest_channel + y * columns;
      float* const dest = static_cast<float*>(t.dest) + row;
#if defined(SPARSEKERNELS_AVX512)
      for (int64_t x = 0; x < columns; x += kLanes)
        pool_vec16(t, source, first, last, x, columns - x, dest + x, places + row + x);
#else
      for (int64_t x = 0; x < columns; ++x) pool_one(t, source, first, last, x, dest + x, places + row + x);
#endif
    }
  }
}

}  // namespace
}  // namespace sparsekernels
