// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Reads tensors into image blocks and writes vectors back. Compiled once per instruction set, as vec.h is.
#pragma once

#include "base/vec16.h"
#include "sparse_conv2d/epilogue_vectors.h"
#include "sparse_conv2d/jit/pack_calls.h"

namespace sparsekernels::jit {
namespace {

#if defined(SPARSEKERNELS_AVX512)

// The bits of `count` lanes.
inline uint32_t first_lanes(int64_t count) {
  return count <= 0 ? 0 : count >= kLanes ? 0xffffu : (1u << count) - 1;
}

// Lanes i of 16 where 0 <= first + i * step < size.
inline uint32_t lanes_within(int64_t first, int64_t step, int64_t size) {
  const int64_t below = first >= 0 ? 0 : (-first + step - 1) / step;
  const int64_t until = first >= size ? 0 : (size - first + step - 1) / step;
  return first_lanes(until) & ~first_lanes(below);
}

inline __m512i indices_from(int first, int step) {
  const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_mullo_epi32(count, _mm512_set1_epi32(step)));
}

// The lower eight bits, each followed by a zero.
inline uint32_t spread_bits(uint32_t bits) {
  bits &= 0xff;
  bits = (bits | bits << 4) & 0x0f0f;
  bits = (bits | bits << 2) & 0x3333;
  return (bits | bits << 1) & 0x5555;
}

// Elements `stride` apart, where the mask has a bit; no others are touched.
template <class T>
inline Vec<float> load_strided(const T* from, int64_t stride, uint32_t mask) {
  if (stride == 1) return Vec16<T>::load(from, mask);
  if (stride == 2) {
    const Vec<float> low = Vec16<T>::load(from, spread_bits(mask));
    const Vec<float> high = Vec16<T>::load(from + kLanes, spread_bits(mask >> 8));
    return {_mm512_permutex2var_ps(low.v, indices_from(0, 2), high.v)};
  }
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = mask >> i & 1 ? widen(from[i * stride]) : 0.0f;
  return Vec<float>::load(lanes);
}

template <class T>
inline void store_strided(Vec<float> value, T* to, int64_t stride, uint32_t mask) {
  if (stride == 1) return Vec16<T>::store(value, to, mask);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (stride < int64_t{1} << 26) {
      _mm512_mask_i32scatter_ps(
          to, static_cast<__mmask16>(mask), indices_from(0, static_cast<int>(stride)), value.v, 4);
      return;
    }
  }
  float lanes[kLanes];
  value.store(lanes);
  for (int i = 0; i < kLanes; ++i)
    if (mask >> i & 1) narrow(lanes[i], to[i * stride]);
}

// vectors[i] holds 16 columns of image i; then their elements in the order column, image. Or back.
template <int kImages>
inline void interleave(Vec<float> (&vectors)[kImages]) {
  if constexpr (kImages == kLanes) {
    transpose(vectors);
  } else if constexpr (kImages > 1) {
    constexpr int kHalf = kImages / 2;
    Vec<float> even[kHalf], odd[kHalf];
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      even[i] = vectors[2 * i];
      odd[i] = vectors[2 * i + 1];
    }
    interleave<kHalf>(even);
    interleave<kHalf>(odd);
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      vectors[2 * i].v = _mm512_permutex2var_ps(even[i].v, low, odd[i].v);
      vectors[2 * i + 1].v = _mm512_permutex2var_ps(even[i].v, high, odd[i].v);
    }
  }
}

template <int kImages>
inline void separate(Vec<float> (&vectors)[kImages]) {
  if constexpr (kImages == kLanes) {
    transpose(vectors);
  } else if constexpr (kImages > 1) {
    constexpr int kHalf = kImages / 2;
    Vec<float> even[kHalf], odd[kHalf];
    const __m512i evens = indices_from(0, 2), odds = indices_from(1, 2);
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      even[i].v = _mm512_permutex2var_ps(vectors[2 * i].v, evens, vectors[2 * i + 1].v);
      odd[i].v = _mm512_permutex2var_ps(vectors[2 * i].v, odds, vectors[2 * i + 1].v);
    }
    separate<kHalf>(even);
    separate<kHalf>(odd);
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      vectors[2 * i] = even[i];
      vectors[2 * i + 1] = odd[i];
    }
  }
}

inline void clear_floats(float* at, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec<float>::zero().store(at + i);
  if (i < count) Vec16<float>::store(Vec<float>::zero(), at + i, first_lanes(count - i));
}

// The masks of a row's chunks of 16 columns.
class ColumnMasks {
 public:
  ColumnMasks() = default;
  ColumnMasks(int64_t first, int64_t step, int64_t size, int64_t count) : first_(first), step_(step), size_(size) {
    for (int64_t i = 0; i < kHeld && i * kLanes < count; ++i)
      held_[i] =
          static_cast<uint16_t>(lanes_within(first + i * kLanes * step, step, size) & first_lanes(count - i * kLanes));
    count_ = count;
  }
  uint32_t at(int64_t x) const {
    if (x < kHeld * kLanes) return held_[x / kLanes];
    return lanes_within(first_ + x * step_, step_, size_) & first_lanes(count_ - x);
  }

 private:
  static constexpr int64_t kHeld = 16;
  int64_t first_, step_, size_, count_;
  uint16_t held_[kHeld];
};

// Where a float of a plane is. kInterleaved: it begins a vector, and planes are interleaved.
template <bool kInterleaved>
inline float* place_in(const PackCall& t, float* plane, int64_t at) {
  return plane + (kInterleaved ? at / kLanes * t.vector_stride : at);
}

// Writes zeros to a plane. kInterleaved: whole vectors.
template <bool kInterleaved>
inline void clear_plane(const PackCall& t, float* plane, int64_t begin, int64_t end) {
  if (!kInterleaved) return clear_floats(plane + begin, end - begin);
  for (int64_t at = begin; at < end; at += kLanes) Vec<float>::zero().store(place_in<kInterleaved>(t, plane, at));
}

// One phase of a strip, as pack_columns walks over it.
struct PhaseRows {
  int64_t top, left;
  int64_t begin, end;     // rows of the plane that lie in the image
  int64_t rows, columns;  // those that are read; all as one row where they lie side by side in tensor and plane
  ColumnMasks masks;

  PhaseRows() = default;
  PhaseRows(const PackCall& t, int64_t phase, bool neighbors) {
    top = t.first[0][phase / t.phases[1]];
    left = t.first[1][phase % t.phases[1]];
    const int64_t above = top >= 0 ? 0 : (-top + t.step[0] - 1) / t.step[0];
    const int64_t below = top >= t.size[0] ? 0 : (t.size[0] - top + t.step[0] - 1) / t.step[0];
    begin = above < t.rows ? above : t.rows;
    end = below < begin ? begin : below < t.rows ? below : t.rows;
    const bool as_one = neighbors && t.step[0] == 1 && left == 0 && t.pitch == t.size[1] && t.row_stride == t.pitch;
    columns = as_one ? (end - begin) * t.pitch : t.pitch;
    rows = as_one && end > begin ? 1 : end - begin;
    masks = ColumnMasks(left, t.step[1], as_one ? columns : t.size[1], columns);
  }
};

// 16 columns of each image at a time.
template <class T, int kImages, bool kNeighbors, bool kInterleaved>
void pack_columns(const PackCall& t) {
  const int64_t step = kNeighbors ? 1 : t.step[1] * t.column_stride, phases = t.phases[0] * t.phases[1];
  constexpr int64_t kHeld = 12;
  PhaseRows held[kHeld];
  for (int64_t first = 0; first < phases; first += kHeld) {
    const int64_t last = first + kHeld < phases ? first + kHeld : phases;
    for (int64_t phase = first; phase < last; ++phase) held[phase - first] = PhaseRows(t, phase, kNeighbors);
    for (int64_t c = 0; c < t.channels; ++c) {
      for (int64_t phase = first; phase < last; ++phase) {
        const PhaseRows& p = held[phase - first];
        float* const plane = place_in<kInterleaved>(t, t.planes + c * t.channel_floats, phase * t.phase_floats);
        clear_plane<kInterleaved>(t, plane, 0, p.begin * t.pitch * kImages);
        clear_plane<kInterleaved>(t, plane, p.end * t.pitch * kImages, t.rows * t.pitch * kImages);
        for (int64_t y = 0; y < p.rows; ++y) {
          const int64_t row = (p.begin + y) * t.pitch * kImages;
          const int64_t from =
              c * t.channel_stride + (p.top + (p.begin + y) * t.step[0]) * t.row_stride + p.left * t.column_stride;
          for (int64_t x = 0; x < p.columns; x += kLanes) {
            const uint32_t mask = p.masks.at(x);
            Vec<float> vectors[kImages];
#pragma GCC unroll 16
            for (int i = 0; i < kImages; ++i) {
              const T* const image = static_cast<const T*>(t.image[i]);
              vectors[i] = Vec<float>::zero();
              if (image != nullptr && mask != 0) vectors[i] = load_strided(image + from + x * step, step, mask);
            }
            interleave<kImages>(vectors);
            const int64_t rest = (p.columns - x) * kImages;
#pragma GCC unroll 16
            for (int i = 0; i < kImages; ++i) {
              float* const to = place_in<kInterleaved>(t, plane, row + x * kImages + i * kLanes);
              if (rest >= i * kLanes + kLanes || (kInterleaved && rest > i * kLanes)) {
                vectors[i].store(to);
              } else {
                Vec16<float>::store(vectors[i], to, first_lanes(rest - i * kLanes));
              }
            }
          }
        }
      }
    }
  }
}

// One image with neighboring columns, of which even and odd ones go to a plane each: both out of the same loads.
template <class T>
void pack_alternating(const PackCall& t) {
  const __m512i evens = indices_from(0, 2), odds = indices_from(1, 2);
  const T* const image = static_cast<const T*>(t.image[0]);
  const int64_t width = t.size[1];
  for (int64_t phase = 0; phase < t.phases[0]; ++phase) {
    const PhaseRows p(t, phase * 2, false);
    for (int64_t c = 0; c < t.channels; ++c) {
      float* const planes[2] = {
          t.planes + c * t.channel_floats + phase * 2 * t.phase_floats,
          t.planes + c * t.channel_floats + (phase * 2 + 1) * t.phase_floats};
      float* const even = planes[t.first[1][0] == 0 ? 0 : 1];
      float* const odd = planes[t.first[1][0] == 0 ? 1 : 0];
      for (float* plane : planes) {
        clear_floats(plane, p.begin * t.pitch);
        clear_floats(plane + p.end * t.pitch, (t.rows - p.end) * t.pitch);
      }
      for (int64_t y = p.begin; y < p.end; ++y) {
        const T* const row = image + c * t.channel_stride + (p.top + y * t.step[0]) * t.row_stride;
        for (int64_t x = 0; x < t.pitch; x += kLanes) {
          const int64_t left = width - 2 * x;
          const Vec<float> low = Vec16<T>::load(row + 2 * x, first_lanes(left));
          const Vec<float> high = Vec16<T>::load(row + 2 * x + kLanes, first_lanes(left - kLanes));
          const uint32_t mask = first_lanes(t.pitch - x);
          Vec16<float>::store({_mm512_permutex2var_ps(low.v, evens, high.v)}, even + y * t.pitch + x, mask);
          Vec16<float>::store({_mm512_permutex2var_ps(low.v, odds, high.v)}, odd + y * t.pitch + x, mask);
        }
      }
    }
  }
}

// Whether `pack_alternating` reads it.
inline bool alternates(const PackCall& t) {
  const bool both = t.phases[1] == 2 && t.first[1][0] + t.first[1][1] == 1 && t.first[1][0] * t.first[1][1] == 0;
  return both && t.images == 1 && t.step[1] == 2 && t.column_stride == 1 &&
         plane_order(t.vector_stride) == PlaneOrder::kPlanar;
}

// Sixteen lanes of a vector and sixteen channels at a time.
template <class T, bool kInterleaved>
void pack_channels(const PackCall& t) {
  const int64_t images = t.images;
  for (int64_t phase = 0; phase < t.phases[0] * t.phases[1]; ++phase) {
    const int64_t top = t.first[0][phase / t.phases[1]], left = t.first[1][phase % t.phases[1]];
    for (int64_t y = 0; y < t.rows; ++y) {
      const int64_t row = phase * t.phase_floats + y * t.pitch * images;
      const int64_t from_row = top + y * t.step[0];
      const bool inside = from_row >= 0 && from_row < t.size[0];
      for (int64_t at = 0; at < t.pitch * images; at += kLanes) {
        const T* lanes[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) {
          const int64_t column = left + (at + j) / images * t.step[1];
          const T* const image = static_cast<const T*>(t.image[(at + j) % images]);
          const bool reads = inside && column >= 0 && column < t.size[1] && image != nullptr;
          lanes[j] = reads ? image + from_row * t.row_stride + column * t.column_stride : nullptr;
        }
        const uint32_t mask = first_lanes(t.pitch * images - at);
        for (int64_t c = 0; c < t.channels; c += kLanes) {
          const uint32_t some = first_lanes(t.channels - c);
          Vec<float> square[kLanes];
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j)
            square[j] = lanes[j] == nullptr ? Vec<float>::zero() : Vec16<T>::load(lanes[j] + c, some);
          transpose(square);
          float* const to = place_in<kInterleaved>(t, t.planes + c * t.channel_floats, row + at);
          for (int64_t e = 0; e < kLanes && c + e < t.channels; ++e) {
            if (kInterleaved) {
              square[e].store(to + e * t.channel_floats);
            } else {
              Vec16<float>::store(square[e], to + e * t.channel_floats, mask);
            }
          }
        }
      }
    }
  }
}

template <class T, bool kNeighbors>
void pack_images(const PackCall& t) {
  const bool interleaved = plane_order(t.vector_stride) == PlaneOrder::kInterleaved;
  switch (t.images) {
    case 1:
      return interleaved ? pack_columns<T, 1, kNeighbors, true>(t) : pack_columns<T, 1, kNeighbors, false>(t);
    case 2:
      return interleaved ? pack_columns<T, 2, kNeighbors, true>(t) : pack_columns<T, 2, kNeighbors, false>(t);
    case 4:
      return interleaved ? pack_columns<T, 4, kNeighbors, true>(t) : pack_columns<T, 4, kNeighbors, false>(t);
    case 8:
      return interleaved ? pack_columns<T, 8, kNeighbors, true>(t) : pack_columns<T, 8, kNeighbors, false>(t);
    default:
      return interleaved ? pack_columns<T, 16, kNeighbors, true>(t) : pack_columns<T, 16, kNeighbors, false>(t);
  }
}

template <class T>
void pack_planes(const PackCall& t) {
  const int64_t used = t.phases[0] * t.phases[1] * t.phase_floats;
  for (int64_t c = 0; c < t.channels && t.behind_floats > 0; ++c)
    clear_floats(t.planes + c * t.channel_floats + used, t.behind_floats);
  if (t.order == VectorOrder::kChannels)
    return plane_order(t.vector_stride) == PlaneOrder::kInterleaved ? pack_channels<T, true>(t)
                                                                    : pack_channels<T, false>(t);
  if (alternates(t)) return pack_alternating<T>(t);
  if (t.step[1] * t.column_stride == 1) return pack_images<T, true>(t);
  return pack_images<T, false>(t);
}

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
  for (int64_t at = 0; at < count; at += kLanes) {
    T* lanes[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) {
      const int64_t row = (at + j) / row_floats, column = (at + j) % row_floats / images;
      const int64_t y = t.first[0] + row * t.step[0], x = t.first[1] + column * t.step[1];
      T* const image = static_cast<T*>(t.image[(at + j) % images]);
      const bool writes = row < t.rows && column < t.columns && y < t.size[0] && x < t.size[1] && image != nullptr;
      lanes[j] = writes ? image + y * t.row_stride + x * t.column_stride : nullptr;
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
    default:
      return unpack_images<T, 16>(t);
  }
}

inline void gather_floats(const GatherCall& t) {
  for (int64_t at = 0; at < t.floats; at += kLanes) {
    const __m512i places = _mm512_loadu_si512(t.places + at);
    const __mmask16 inside = _mm512_cmpge_epi32_mask(places, _mm512_setzero_si512());
    float* to = t.planes + (plane_order(t.vector_stride) == PlaneOrder::kPlanar ? at : at / kLanes * t.vector_stride);
    const float* from = t.source;
    for (int64_t c = 0; c < t.channels; ++c, from += t.source_channel, to += t.channel_floats)
      _mm512_storeu_ps(to, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, places, from, 4));
  }
}

template <class T>
constexpr PackKernels pack_kernels_of() {
  return {
      .pack = pack_planes<T>,
      .unpack = unpack_results<T>,
      .gather = sizeof(T) == sizeof(float) ? gather_floats : nullptr};
}

#else

template <class T>
constexpr PackKernels pack_kernels_of() {
  return {};
}

#endif

}  // namespace
}  // namespace sparsekernels::jit
