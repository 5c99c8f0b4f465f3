// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Training BatchNorm of contiguous planes, with a sum, limits and dropout in the same pass. Compiled once per
// instruction set, as vec.h is.
//
// A channel's planes are read from memory once and from the cache once more, forward as backward: the statistics first,
// range by range, then the result. Which elements are dropped follows from the seed and their places alone.
#pragma once

#include "base/vec16.h"
#include "batch_norm/call.h"
#include "batch_norm/cpu/philox.h"

namespace sparsekernels {
namespace {

constexpr uint32_t kAllLanes = 0xffff;

inline void store_lanes(Vec<float> value, float* to, uint32_t lanes) {
  if (lanes == kAllLanes) {
    Vec16<float>::store(value, to);
  } else {
    Vec16<float>::store(value, to, lanes);
  }
}

// Of the vector of elements from `at` on, the lanes that the plane has.
inline uint32_t lanes_of(int64_t at, int64_t plane) {
  return plane - at >= kLanes ? kAllLanes : (1u << (plane - at)) - 1;
}

// Calls body(offset of the tensor, offset of the words, lanes) for all of a channel that lies in images [begin, end)
// and elements [from, to) of the planes; from is a multiple of kLanes.
template <class Body>
inline void each_vec16(
    const BatchNormSpace& space, int64_t channel, int64_t begin, int64_t end, int64_t from, int64_t to, Body body) {
  for (int64_t image = begin; image < end; ++image) {
    const int64_t offset = space.offset(image, channel), word = space.word_offset(image, channel);
    int64_t i = from;
    for (; i + kLanes <= to; i += kLanes) body(offset + i, word + i / kLanes, kAllLanes);
    if (i < to) body(offset + i, word + i / kLanes, lanes_of(i, to));
  }
}

// Calls body(begin, end, from, to) for ranges of a channel of about kElements elements: a part of a plane, or planes.
template <int64_t kElements, class Body>
inline void each_range(const BatchNormSpace& space, Body body) {
  const int64_t images = space.plane >= kElements ? 1 : kElements / space.plane;
  for (int64_t begin = 0; begin < space.images; begin += images) {
    const int64_t end = begin + images < space.images ? begin + images : space.images;
    for (int64_t from = 0; from < space.plane; from += kElements)
      body(begin, end, from, from + kElements < space.plane ? from + kElements : space.plane);
  }
}

// How many elements on what is needed next lies: the same place of the next channel where one stays in the cache
// together with the one before, else of the next image. A channel's planes are far apart, where the processor does not
// look by itself.
inline int64_t prefetch_distance(const BatchNormSpace& space) {
  constexpr int64_t kInL2 = int64_t{1} << 16, kLine = 64 / sizeof(float);
  if (space.images * space.plane > kInL2) return space.channels * space.plane;
  return space.plane < kLine ? kLine : space.plane;
}

// Prefetches the element `distance` elements on, which may be behind the end.
inline void prefetch(const float* from, int64_t distance) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(distance) * sizeof(float);
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 3);
}

// In double: what is left of the lanes' own rounding is small.
inline double wide_sum(Vec<float> a) {
  float lanes[kLanes];
  a.store(lanes);
  double result = 0;
  for (const float lane : lanes) result += lane;
  return result;
}

constexpr int64_t kInL1 = 1024;  // elements
constexpr int64_t kSummedInFloat = 256;

struct Moments {
  double mean, variance;
};

// Mean and variance of each range around its own mean, merged (Chan, Golub & LeVeque, 1979): one pass through memory,
// and no cancellation.
inline Moments moments_of(const BatchNormForward& call, int64_t channel) {
  const int64_t distance = prefetch_distance(call.space);
  double count = 0, mean = 0, squares = 0;
  each_range<kInL1>(call.space, [&](int64_t begin, int64_t end, int64_t from, int64_t to) {
    Vec<float> total = Vec<float>::zero();
    each_vec16(call.space, channel, begin, end, from, to, [&](int64_t at, int64_t, uint32_t lanes) {
      prefetch(call.source + at, distance);
      total = total + Vec16<float>::load(call.source + at, lanes);
    });
    // around what is nearly the mean; what that is off by follows from the sum of the differences
    const double elements = static_cast<double>((end - begin) * (to - from));
    const float near = static_cast<float>(wide_sum(total) / elements);
    const Vec<float> shift = Vec<float>::broadcast(-near);
    Vec<float> off = Vec<float>::zero(), around = Vec<float>::zero();
    each_vec16(call.space, channel, begin, end, from, to, [&](int64_t at, int64_t, uint32_t lanes) {
      const Vec<float> difference = only(lanes, Vec16<float>::load(call.source + at, lanes) + shift);
      off = off + difference;
      around = fma(difference, difference, around);
    });
    const double differences = wide_sum(off), range_mean = near + differences / elements;
    const double both = count + elements, step = range_mean - mean;
    squares += wide_sum(around) - differences * differences / elements + step * step * (count * elements / both);
    mean += step * (elements / both);
    count = both;
  });
  return {mean, squares > 0 || squares != squares ? squares / count : 0};
}

// Which of 64 elements of a plane are kept.
struct Draw {
  uint64_t seed;
  uint32_t threshold;

  // Those of [at, at + 64), a bit each. The counter is that of the place in the plane, and the plane.
  uint64_t kept(int64_t at, int64_t plane) const {
    Words numbers[4];
    philox(
        static_cast<uint32_t>(at / 4), static_cast<uint32_t>(plane),
        static_cast<uint32_t>(static_cast<uint64_t>(plane) >> 32), seed, numbers);
    uint64_t result = 0;
    for (int w = 0; w < 4; ++w) result |= static_cast<uint64_t>(lanes_at_least(numbers[w], threshold)) << (kLanes * w);
    return result;
  }
};

// Of (source - center) * factor + shift + residual: far from zero, digits are lost in nothing but the difference.
template <bool kDrops, bool kAdds>
inline void normalize(const BatchNormForward& call, int64_t channel, float center, float factor, float shift) {
  const BatchNormSpace& space = call.space;
  const Vec<float> centers = Vec<float>::broadcast(-center);
  const Vec<float> factors = Vec<float>::broadcast(factor), shifts = Vec<float>::broadcast(shift);
  const Vec<float> scale = Vec<float>::broadcast(call.scale);
  const Limits limits = {call.low, call.high, call.has_low, call.has_high};
  const Draw draw = {call.seed, call.threshold};
  const int64_t distance = prefetch_distance(space);
  for (int64_t image = 0; image < space.images; ++image) {
    const float* const from = call.source + space.offset(image, channel);
    float* const to = call.dest + space.offset(image, channel);
    const float* const residual = kAdds ? call.residual + space.offset(image, channel) : nullptr;
    uint16_t* const words = call.kept == nullptr ? nullptr : call.kept + space.word_offset(image, channel);
    uint64_t drawn = 0;
    for (int64_t i = 0; i < space.plane; i += kLanes) {
      const uint32_t lanes = lanes_of(i, space.plane);
      if (kDrops) drawn = i % 64 == 0 ? draw.kept(i, image * space.channels + channel) : drawn >> kLanes;
      Vec<float> value = fma(Vec16<float>::load(from + i, lanes) + centers, factors, shifts);
      if (kAdds) {
        prefetch(residual + i, distance);
        value = value + Vec16<float>::load(residual + i, lanes);
      }
      uint32_t kept = lanes;
      if (call.has_low) kept &= lanes_above(value, call.low);
      if (call.has_high) kept &= lanes_below(value, call.high);
      value = limited(limits, value);
      if (kDrops) {
        const uint32_t left = static_cast<uint32_t>(drawn) & kAllLanes;
        value = only(left, value * scale);
        kept &= left;
      }
      prefetch(to + i, distance);  // a store waits for its line as a load does
      store_lanes(value, to + i, lanes);
      if (words != nullptr) words[i / kLanes] = static_cast<uint16_t>(kept);
    }
  }
}

// Channels [begin, end).
void batch_norm_forward(const BatchNormForward& call, int64_t begin, int64_t end) {
  for (int64_t channel = begin; channel < end; ++channel) {
    const Moments moments = moments_of(call, channel);
    const double rate = 1 / __builtin_sqrt(moments.variance + call.eps);
    const double factor = call.weight == nullptr ? rate : rate * call.weight[channel];
    const float center = static_cast<float>(moments.mean);
    const double shift = (call.bias == nullptr ? 0.0 : call.bias[channel]) + (center - moments.mean) * factor;
    call.statistics[channel] = center;
    call.statistics[call.space.channels + channel] = static_cast<float>(moments.variance);
    call.statistics[2 * call.space.channels + channel] = static_cast<float>(rate);
    const bool adds = call.residual != nullptr;
    const auto body = call.threshold != 0 ? (adds ? normalize<true, true> : normalize<true, false>)
                                          : (adds ? normalize<false, true> : normalize<false, false>);
    body(call, channel, center, static_cast<float>(factor), static_cast<float>(shift));
  }
}

// The gradients that pass, scaled, of a vector of elements.
inline Vec<float> passed(const BatchNormBackward& call, Vec<float> scale, int64_t at, int64_t word, uint32_t lanes) {
  const Vec<float> gradient = Vec16<float>::load(call.gradient + at, lanes) * scale;
  return call.kept == nullptr ? gradient : only(call.kept[word], gradient);
}

// Channels [begin, end).
void batch_norm_backward(const BatchNormBackward& call, int64_t begin, int64_t end) {
  const BatchNormSpace& space = call.space;
  const Vec<float> scale = Vec<float>::broadcast(call.scale);
  for (int64_t channel = begin; channel < end; ++channel) {
    const float mean = call.statistics[channel];
    const double rate = call.statistics[2 * space.channels + channel];
    const Vec<float> shift = Vec<float>::broadcast(-mean);
    const int64_t distance = prefetch_distance(space);
    WideSum gradient_sum, product_sum, difference_sum;  // products with, and differences, source - mean
    each_range<kSummedInFloat>(space, [&](int64_t first, int64_t last, int64_t from, int64_t to) {
      Vec<float> one = Vec<float>::zero(), other = Vec<float>::zero(), off = Vec<float>::zero();
      each_vec16(space, channel, first, last, from, to, [&](int64_t at, int64_t word, uint32_t lanes) {
        prefetch(call.gradient + at, distance);
        prefetch(call.source + at, distance);
        const Vec<float> gradient = passed(call, scale, at, word, lanes);
        if (call.residual != nullptr) {
          prefetch(call.residual + at, distance);
          store_lanes(gradient, call.residual + at, lanes);
        }
        one = one + gradient;
        const Vec<float> difference = only(lanes, Vec16<float>::load(call.source + at, lanes) + shift);
        off = off + difference;
        other = fma(gradient, difference, other);
      });
      gradient_sum.add(one);
      product_sum.add(other);
      difference_sum.add(off);
    });
    const double gradients = gradient_sum.total();
    const double elements = static_cast<double>(space.images * space.plane);
    // the mean was rounded
    const double products = product_sum.total() - gradients * (difference_sum.total() / elements);
    call.parameters[channel] = static_cast<float>(products * rate);
    call.parameters[space.channels + channel] = static_cast<float>(gradients);
    if (call.dest == nullptr) continue;
    const double factor = call.weight == nullptr ? rate : rate * call.weight[channel];
    const double slope = products * rate * rate / elements;
    // factor * (g - mean(g) - (x - mean) * slope)
    const Vec<float> factors = Vec<float>::broadcast(static_cast<float>(factor));
    const Vec<float> slopes = Vec<float>::broadcast(static_cast<float>(-slope));
    const Vec<float> level = Vec<float>::broadcast(static_cast<float>(-gradients / elements));
    each_vec16(space, channel, 0, space.images, 0, space.plane, [&](int64_t at, int64_t word, uint32_t lanes) {
      const Vec<float> gradient = passed(call, scale, at, word, lanes);
      const Vec<float> around = Vec16<float>::load(call.source + at, lanes) + shift;
      const Vec<float> result = fma(around, slopes, gradient + level) * factors;
      prefetch(call.dest + at, distance);
      store_lanes(result, call.dest + at, lanes);
    });
  }
}

}  // namespace
}  // namespace sparsekernels
