// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Writes vectors of sums back into tensors. Compiled once per instruction set, as vec.h is.
#pragma once

#include "sparse_conv2d/epilogue_vectors.h"
#include "sparse_conv2d/jit/pack_calls.h"
#include "sparse_conv2d/jit/pack_vectors.h"

namespace sparsekernels::jit {
namespace {

#if defined(SPARSEKERNELS_AVX512)

// `finished` of elements that are `stride` apart.
template <class T>
inline Vec<float> finished_strided(
    const PackedEpilogue& packed, Vec<float> sums, const T* to, int64_t stride, uint32_t mask) {
  if (packed.flags == 0) return sums;
  if (packed.flags & kAddsResidual) sums = sums + load_strided(residual_of(packed, to), stride, mask);
  return limited(packed, sums);
}

// 16 columns of vectors, from lane `lane` of the first on.
template <int kImages>
inline void load_columns(
    const float* vector, int64_t vector_stride, int lane, Vec<float> bias, Vec<float> (&vectors)[kImages]) {
  const __m512i places = indices_from(lane, 1);
#pragma GCC unroll 16
  for (int i = 0; i < kImages; ++i, vector += vector_stride) {
    vectors[i] = Vec<float>::load(vector);
    if (lane != 0) vectors[i].v = _mm512_permutex2var_ps(vectors[i].v, places, _mm512_loadu_ps(vector + vector_stride));
    vectors[i] = vectors[i] + bias;
  }
  separate<kImages>(vectors);
}

template <class T, int kImages, bool kNeighbors>
void unpack_columns(const UnpackCall& t) {
  const int64_t step = kNeighbors ? 1 : t.step[1] * t.column_stride, vector_stride = t.channels * kLanes;
  const bool as_one = kNeighbors && t.step[0] == 1 && t.pitch == t.columns && t.row_stride == t.pitch &&
                      t.first[0] + t.rows <= t.size[0] && t.first[1] + t.columns <= t.size[1];
  const int64_t columns = as_one ? t.rows * t.pitch : t.columns, rows = as_one ? 1 : t.rows;
  const ColumnMasks masks(t.first[1], t.step[1], as_one ? t.first[1] + columns : t.size[1], columns);
  for (int64_t c = 0; c < t.channels; ++c) {
    const Vec<float> bias = Vec<float>::broadcast(t.epilogue.bias[c]);
    const float* const results = t.vectors + c * kLanes;
    for (int64_t y = 0; y < rows; ++y) {
      const int64_t to_row = t.first[0] + y * t.step[0];
      if (to_row >= t.size[0]) break;
      const int64_t to = c * t.channel_stride + to_row * t.row_stride + t.first[1] * t.column_stride;
      // where the row begins: in vectors, and lanes of the first
      const int64_t at = y * t.pitch * kImages;
      const int lane = static_cast<int>(at % kLanes);
      const float* vector = results + at / kLanes * vector_stride;
      for (int64_t x = 0; x < columns; x += kLanes, vector += kImages * vector_stride) {
        const uint32_t mask = masks.at(x);
        Vec<float> vectors[kImages];
        load_columns<kImages>(vector, vector_stride, lane, bias, vectors);
#pragma GCC unroll 16
        for (int i = 0; i < kImages; ++i) {
          T* const image = static_cast<T*>(t.image[i]);
          if (image == nullptr) continue;
          T* const place = image + to + x * step;
          store_strided(finished_strided(t.epilogue, vectors[i], place, step, mask), place, step, mask);
        }
      }
    }
  }
}

// Every other column from `vectors`, those between from `odd_vectors`: of an input gradient, which has no epilogue.
template <class T, int kImages>
void unpack_pairs(const UnpackCall& t) {
  const int64_t vector_stride = t.channels * kLanes;
  for (int64_t c = 0; c < t.channels; ++c) {
    const Vec<float> bias = Vec<float>::broadcast(t.epilogue.bias[c]);
    for (int64_t y = 0; y < t.rows; ++y) {
      const int64_t to_row = t.first[0] + y * t.step[0];
      if (to_row >= t.size[0]) break;
      const int64_t to = c * t.channel_stride + to_row * t.row_stride + t.first[1];
      const int64_t at = y * t.pitch * kImages;
      const int lane = static_cast<int>(at % kLanes);
      const int64_t left = t.size[1] - t.first[1] < 2 * t.columns ? t.size[1] - t.first[1] : 2 * t.columns;
      int64_t place = c * kLanes + at / kLanes * vector_stride;
      for (int64_t x = 0; x < t.columns; x += kLanes, place += kImages * vector_stride) {
        Vec<float> even[kImages], odd[kImages];
        load_columns<kImages>(t.vectors + place, vector_stride, lane, bias, even);
        load_columns<kImages>(t.odd_vectors + place, vector_stride, lane, bias, odd);
#pragma GCC unroll 16
        for (int i = 0; i < kImages; ++i) {
          T* const image = static_cast<T*>(t.image[i]);
          if (image == nullptr) continue;
          Vec<float> both[2] = {even[i], odd[i]};
          interleave<2>(both);
          for (int half = 0; half < 2; ++half) {
            const uint32_t mask = first_lanes(left - 2 * x - half * kLanes);
            if (mask != 0) Vec16<T>::store(both[half], image + to + 2 * x + half * kLanes, mask);
          }
        }
      }
    }
  }
}

template <class T>
void unpack_channels(const UnpackCall& t) {
  const int64_t images = t.images, vector_stride = t.channels * kLanes, row_floats = t.pitch * images;
  const int64_t count = (t.rows - 1) * row_floats + t.columns * images;
  int64_t row = 0, column = 0, image = 0;  // of the next lane
  for (int64_t at = 0; at < count; at += kLanes) {
    T* lanes[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) {
      const int64_t y = t.first[0] + row * t.step[0], x = t.first[1] + column * t.step[1];
      T* const data = static_cast<T*>(t.image[image]);
      const bool writes = row < t.rows && column < t.columns && y < t.size[0] && x < t.size[1] && data != nullptr;
      lanes[j] = writes ? data + y * t.row_stride + x * t.column_stride : nullptr;
      if (++image < images) continue;
      image = 0;
      if (++column < t.pitch) continue;
      column = 0;
      ++row;
    }
    const float* const vector = t.vectors + at / kLanes * vector_stride;
    for (int64_t c = 0; c < t.channels; c += kLanes) {
      const uint32_t some = first_lanes(t.channels - c);
      Vec<float> square[kLanes];
      for (int64_t e = 0; e < kLanes; ++e) {
        square[e] = c + e < t.channels ? Vec<float>::load(vector + (c + e) * kLanes) : Vec<float>::zero();
        if (c + e < t.channels) square[e] = square[e] + Vec<float>::broadcast(t.epilogue.bias[c + e]);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j)
        if (lanes[j] != nullptr)
          Vec16<T>::store(finished(t.epilogue, square[j], lanes[j] + c, some), lanes[j] + c, some);
    }
  }
}

template <class T, int kImages>
void unpack_images(const UnpackCall& t) {
  if (t.odd_vectors != nullptr) return unpack_pairs<T, kImages>(t);
  if (t.step[1] * t.column_stride == 1) return unpack_columns<T, kImages, true>(t);
  return unpack_columns<T, kImages, false>(t);
}

template <class T>
void unpack_results(const UnpackCall& t) {
  if (t.order == VectorOrder::kChannels) return unpack_channels<T>(t);
  switch (t.images) {
    case 1:
      return unpack_images<T, 1>(t);
    case 2:
      return unpack_images<T, 2>(t);
    case 4:
      return unpack_images<T, 4>(t);
    case 8:
      return unpack_images<T, 8>(t);
    case kMostImages:
      return unpack_images<T, kMostImages>(t);
  }
  __builtin_trap();  // of what no plan interleaves
}

#endif

}  // namespace
}  // namespace sparsekernels::jit
