// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Reads tensors into micro-batches. Compiled once per instruction set, as vec.h is.
#pragma once

#include "sparse_conv2d/jit/pack_calls.h"
#include "sparse_conv2d/jit/pack_vectors.h"
#include "sparse_conv2d/jit/unpack.h"

namespace sparsekernels::jit {
namespace {

#if defined(SPARSEKERNELS_AVX512)

// Where a float of a plane is. kInterleaved: it begins a vector, and planes are interleaved.
template <bool kInterleaved>
inline float* place_in(const PackCall& t, float* plane, int64_t at) {
  return plane + (kInterleaved ? at / kLanes * t.vector_stride : at);
}

inline void clear_floats(float* at, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec<float>::zero().store(at + i);
  if (i < count) Vec16<float>::store(Vec<float>::zero(), at + i, first_lanes(count - i));
}

// Writes zeros to a plane. kInterleaved: whole vectors.
template <bool kInterleaved>
inline void clear_plane(const PackCall& t, float* plane, int64_t begin, int64_t end) {
  if (!kInterleaved) return clear_floats(plane + begin, end - begin);
  for (int64_t at = begin; at < end; at += kLanes) Vec<float>::zero().store(place_in<kInterleaved>(t, plane, at));
}

// One phase of a strip, as pack_columns visits it.
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

// The lanes of a vector and as many channels at a time.
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
    case kMostImages:
      return interleaved ? pack_columns<T, kMostImages, kNeighbors, true>(t)
                         : pack_columns<T, kMostImages, kNeighbors, false>(t);
  }
  __builtin_trap();  // of what no plan interleaves
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
