// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Packs tensors into vectors and unpacks them. Compiled once per instruction set, as vec.h is.
#pragma once

#include "base/dtype.h"
#include "base/vec16.h"
#include "sparse_conv2d/epilogue_vectors.h"
#include "sparse_conv2d/tiled/pack_calls.h"

namespace sparsekernels::tiled {
namespace {

// Bits [begin, end) of 16, both counted from `at`.
inline uint32_t bits_between(int64_t begin, int64_t end, int64_t at) {
  begin -= at;
  end -= at;
  if (begin < 0) begin = 0;
  if (end > kLanes) end = kLanes;
  return begin < end ? ((1u << end) - 1) & ~((1u << begin) - 1) : 0u;
}

// Where a row of the tensor lies in the planes, or a negative number.
inline int64_t place(int64_t at, int32_t step, const int64_t* phases, int64_t stride) {
  const int64_t phase = step == 1 ? phases[0] : phases[at % step];
  return phase < 0 ? -1 : phase + (step == 1 ? at : at / step) * stride;
}

inline uint32_t lanes_inside(const PackCall& t, int64_t row, int64_t column) {
  uint32_t mask = 0;
  for (int j = 0; j < kLanes; ++j) {
    const bool inside =
        row >= t.row_begin[j] && row < t.row_end[j] && column >= t.column_begin[j] && column < t.column_end[j];
    mask |= static_cast<uint32_t>(inside) << j;
  }
  return mask;
}

// The rows that lie inside the image for every lane.
struct CommonRows {
  int64_t begin, end;

  explicit CommonRows(const PackCall& t) : begin(0), end(t.rows) {
    for (int j = 0; j < kLanes; ++j) {
      if (t.row_begin[j] > begin) begin = t.row_begin[j];
      if (t.row_end[j] < end) end = t.row_end[j];
    }
  }
};

// The columns and rows that lie inside the image for any lane: what is outside needs no reading.
struct Extent {
  int64_t begin, end;

  Extent(const int32_t (&begins)[kLanes], const int32_t (&ends)[kLanes], int64_t limit) : begin(limit), end(0) {
    for (int j = 0; j < kLanes; ++j) {
      if (begins[j] >= ends[j]) continue;
      if (begins[j] < begin) begin = begins[j];
      if (ends[j] > end) end = ends[j];
    }
    if (begin > end) begin = end = 0;
  }
};

// Zero vectors where no lane lies inside the image: the rows and columns around it.
inline void clear_outside(const PackCall& t, const Extent& rows, const Extent& columns) {
  for (int64_t y = 0; y < t.rows; ++y) {
    const int64_t row = place(y, t.row_step, t.row_phase, t.plane_row);
    if (row < 0) continue;
    const bool inside = y >= rows.begin && y < rows.end;
    for (int64_t x = 0; x < t.columns; ++x) {
      if (inside && x == columns.begin) x = columns.end;
      if (x >= t.columns) break;
      const int64_t column = place(x, t.column_step, t.column_phase, kLanes);
      if (column < 0) continue;
      for (int64_t c = 0; c < t.channels; ++c) Vec<float>::zero().store(t.vectors + c * t.plane_channel + row + column);
    }
  }
}

// 16 columns of every lane, as they are read or written.
struct ColumnSet {
  int64_t first;
  int count;
  bool whole;     // every lane has all of them
  bool adjacent;  // their vectors lie side by side
  uint32_t masks[kLanes];
  int64_t at[kLanes];  // of each column's vector in a row; negative: not held

  ColumnSet() = default;
  ColumnSet(const PackCall& t, const Extent& columns, int64_t x)
      : first(x), count(columns.end - x < kLanes ? static_cast<int>(columns.end - x) : kLanes) {
    whole = count == kLanes;
    adjacent = t.column_step == 1 && count == kLanes;
    for (int j = 0; j < kLanes; ++j) {
      masks[j] = bits_between(t.column_begin[j], t.column_end[j], x) & ((1u << count) - 1);
      whole = whole && masks[j] == 0xffffu;
    }
    for (int e = 0; e < count; ++e) at[e] = place(x + e, t.column_step, t.column_phase, kLanes);
  }
};

constexpr int kColumnSets = 16;  // of a row that are described at a time

template <class T>
inline void pack_column_set(
    const PackCall& t, const ColumnSet& set, const T* from, int64_t y, bool inside, int64_t prefetch_distance,
    float* vectors) {
  Vec<float> square[kLanes];
  if (inside && set.whole) {
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      square[j] = Vec16<T>::load(from + t.lane[j]);
      __builtin_prefetch(from + t.lane[j] + prefetch_distance);
    }
  } else {
    for (int j = 0; j < kLanes; ++j) {
      const bool reads = y >= t.row_begin[j] && y < t.row_end[j];
      square[j] = Vec16<T>::load(from + t.lane[j], reads ? set.masks[j] : 0);
    }
  }
  transpose(square);
  if (set.adjacent) {
#pragma GCC unroll 16
    for (int e = 0; e < kLanes; ++e) square[e].store(vectors + set.at[0] + e * kLanes);
  } else {
    for (int e = 0; e < set.count; ++e)
      if (set.at[e] >= 0) square[e].store(vectors + set.at[e]);
  }
}

template <class T>
inline void unpack_column_set(
    const PackCall& t, const ColumnSet& set, T* to, int64_t y, bool inside, int64_t prefetch_distance,
    const float* vectors, Vec<float> bias) {
  Vec<float> square[kLanes];
  if (set.adjacent) {
#pragma GCC unroll 16
    for (int e = 0; e < kLanes; ++e) square[e] = Vec<float>::load(vectors + set.at[0] + e * kLanes) + bias;
  } else {
    for (int e = 0; e < kLanes; ++e)
      square[e] = e < set.count ? Vec<float>::load(vectors + set.at[e]) + bias : Vec<float>::zero();
  }
  transpose(square);
  if (inside && set.whole) {
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      Vec16<T>::store(finished(t.epilogue, square[j], to + t.lane[j]), to + t.lane[j]);
      __builtin_prefetch(to + t.lane[j] + prefetch_distance, 1);
    }
  } else {
    for (int j = 0; j < kLanes; ++j) {
      const bool writes = y >= t.row_begin[j] && y < t.row_end[j];
      T* const at = to + t.lane[j];
      if (writes && set.masks[j] != 0)
        Vec16<T>::store(finished(t.epilogue, square[j], at, set.masks[j]), at, set.masks[j]);
    }
  }
}

// 16 columns of every lane's row at a time, transposed to one vector a column.
template <class T, bool kPacks>
void pack_or_unpack_columns(const PackCall& t) {
  T* const data = static_cast<T*>(t.data);
  const Extent rows(t.row_begin, t.row_end, t.rows), columns(t.column_begin, t.column_end, t.columns);
  const CommonRows common(t);
  if (kPacks) clear_outside(t, rows, columns);
  ColumnSet sets[kColumnSets];
  for (int64_t x = columns.begin; x < columns.end; x += kLanes * kColumnSets) {
    int held = 0;
    for (int64_t at = x; at < columns.end && held < kColumnSets; at += kLanes) sets[held++] = ColumnSet(t, columns, at);
    for (int64_t c = 0; c < t.channels; ++c) {
      const Vec<float> bias = Vec<float>::broadcast(!kPacks && t.epilogue.bias != nullptr ? t.epilogue.bias[c] : 0.0f);
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        const int64_t row = place(y, t.row_step, t.row_phase, t.plane_row);
        if (row < 0) continue;
        float* const vectors = t.vectors + c * t.plane_channel + row;
        T* const from = data + c * t.channel_stride + y * t.row_stride;
        // The next row, or the next channel's first: kLanes streams are more than the processor follows by itself.
        const int64_t prefetch_distance =
            y + 1 < rows.end ? t.row_stride : t.channel_stride - (y - rows.begin) * t.row_stride;
        const bool inside = y >= common.begin && y < common.end;
        for (int i = 0; i < held; ++i) {
          const ColumnSet& set = sets[i];
          if (kPacks) {
            pack_column_set<T>(t, set, from + set.first, y, inside, prefetch_distance, vectors);
          } else {
            unpack_column_set<T>(t, set, from + set.first, y, inside, prefetch_distance, vectors, bias);
          }
        }
      }
    }
  }
}

// 16 channels of every lane's pixel at a time, transposed to one vector in each of 16 planes.
template <class T, bool kPacks>
void pack_or_unpack_channels(const PackCall& t) {
  T* const data = static_cast<T*>(t.data);
  for (int64_t y = 0; y < t.rows; ++y) {
    const int64_t row = place(y, t.row_step, t.row_phase, t.plane_row);
    for (int64_t x = 0; row >= 0 && x < t.columns; ++x) {
      const int64_t column = place(x, t.column_step, t.column_phase, kLanes);
      if (column < 0) continue;
      const uint32_t inside = lanes_inside(t, y, x);
      const int64_t base = y * t.row_stride + x * t.column_stride;
      for (int64_t c = 0; c < t.channels; c += kLanes) {
        const int count = t.channels - c < kLanes ? static_cast<int>(t.channels - c) : kLanes;
        const uint32_t some = (1u << count) - 1;
        float* const vectors = t.vectors + c * t.plane_channel + row + column;
        Vec<float> square[kLanes];
        if (kPacks) {
          if (inside == 0xffffu && count == kLanes) {
#pragma GCC unroll 16
            for (int j = 0; j < kLanes; ++j) square[j] = Vec16<T>::load(data + t.lane[j] + base + c);
          } else {
            for (int j = 0; j < kLanes; ++j)
              square[j] = Vec16<T>::load(data + t.lane[j] + base + c, inside >> j & 1 ? some : 0);
          }
          transpose(square);
          for (int e = 0; e < count; ++e) square[e].store(vectors + e * t.plane_channel);
        } else {
          for (int e = 0; e < kLanes; ++e) {
            square[e] = e < count ? Vec<float>::load(vectors + e * t.plane_channel) : Vec<float>::zero();
            if (t.epilogue.bias != nullptr && e < count)
              square[e] = square[e] + Vec<float>::broadcast(t.epilogue.bias[c + e]);
          }
          transpose(square);
          for (int j = 0; j < kLanes; ++j) {
            if ((inside >> j & 1) == 0) continue;
            T* const to = data + t.lane[j] + base + c;
            if (count == kLanes) {
              Vec16<T>::store(finished(t.epilogue, square[j], to), to);
            } else {
              Vec16<T>::store(finished(t.epilogue, square[j], to, some), to, some);
            }
          }
        }
      }
    }
  }
}

// The 16 lanes are neighbors in the tensor: nothing to transpose.
template <class T, bool kPacks>
void pack_or_unpack_lanes(const PackCall& t) {
  T* const data = static_cast<T*>(t.data) + t.lane[0];
  int64_t begin = 0, end = t.columns;  // inside the image for every lane
  for (int j = 0; j < kLanes; ++j) {
    if (t.column_begin[j] > begin) begin = t.column_begin[j];
    if (t.column_end[j] < end) end = t.column_end[j];
  }
  const CommonRows common(t);
  for (int64_t c = 0; c < t.channels; ++c) {
    const Vec<float> bias = Vec<float>::broadcast(!kPacks && t.epilogue.bias != nullptr ? t.epilogue.bias[c] : 0.0f);
    for (int64_t y = 0; y < t.rows; ++y) {
      float* const vectors = t.vectors + c * t.plane_channel + t.row_phase[0] + y * t.plane_row;
      T* const row = data + c * t.channel_stride + y * t.row_stride;
      const bool inside = y >= common.begin && y < common.end;
      int64_t x = 0;
      const auto some = [&](int64_t until) {
        for (; x < until; ++x) {
          const uint32_t mask = lanes_inside(t, y, x);
          T* const at = row + x * t.column_stride;
          if (kPacks) {
            Vec16<T>::load(at, mask).store(vectors + x * kLanes);
          } else {
            Vec16<T>::store(finished(t.epilogue, Vec<float>::load(vectors + x * kLanes) + bias, at, mask), at, mask);
          }
        }
      };
      some(inside && begin < end ? begin : t.columns);
      for (; x < end; ++x) {
        T* const at = row + x * t.column_stride;
        if (kPacks) {
          Vec16<T>::load(at).store(vectors + x * kLanes);
        } else {
          Vec16<T>::store(finished(t.epilogue, Vec<float>::load(vectors + x * kLanes) + bias, at), at);
        }
      }
      some(t.columns);
    }
  }
}

// Any strides, one element after another.
template <class T, bool kPacks>
void pack_or_unpack_scattered(const PackCall& t) {
  T* const data = static_cast<T*>(t.data);
  for (int64_t c = 0; c < t.channels; ++c) {
    const float bias = !kPacks && t.epilogue.bias != nullptr ? t.epilogue.bias[c] : 0.0f;
    for (int64_t y = 0; y < t.rows; ++y) {
      const int64_t row = place(y, t.row_step, t.row_phase, t.plane_row);
      for (int64_t x = 0; row >= 0 && x < t.columns; ++x) {
        const int64_t column = place(x, t.column_step, t.column_phase, kLanes);
        if (column < 0) continue;
        const uint32_t inside = lanes_inside(t, y, x);
        float* const vector = t.vectors + c * t.plane_channel + row + column;
        T* const from = data + c * t.channel_stride + y * t.row_stride + x * t.column_stride;
        for (int j = 0; j < kLanes; ++j) {
          if (kPacks) {
            vector[j] = inside >> j & 1 ? widen(from[t.lane[j]]) : 0.0f;
          } else if (inside >> j & 1) {
            T* const to = from + t.lane[j];
            float sum = vector[j] + bias;
            if (t.epilogue.flags & kAddsResidual) sum += widen(*residual_of(t.epilogue, to));
            if (t.epilogue.flags & kHasLow && sum < t.epilogue.low) sum = t.epilogue.low;
            if (t.epilogue.flags & kHasHigh && sum > t.epilogue.high) sum = t.epilogue.high;
            narrow(sum, *to);
          }
        }
      }
    }
  }
}

template <class T, bool kPacks>
void pack_or_unpack(const PackCall& t) {
  switch (t.order) {
    case VectorOrder::kColumns:
      return pack_or_unpack_columns<T, kPacks>(t);
    case VectorOrder::kChannels:
      return pack_or_unpack_channels<T, kPacks>(t);
    case VectorOrder::kLanes:
      return pack_or_unpack_lanes<T, kPacks>(t);
    case VectorOrder::kScattered:
      return pack_or_unpack_scattered<T, kPacks>(t);
  }
}

template <class T>
constexpr PackKernels pack_kernels_of() {
  return {.pack = pack_or_unpack<T, true>, .unpack = pack_or_unpack<T, false>};
}

}  // namespace
}  // namespace sparsekernels::tiled
