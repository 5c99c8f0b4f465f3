// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What one call of training BatchNorm with a sum, limits and dropout behind it is: pointers and sizes. Knows no torch.
#pragma once

#include <cstdint>

#include "base/lanes.h"

namespace sparsekernels {

// float32 [images, channels, plane] without gaps. Bit i % kLanes of word i / kLanes of a plane of `kept` says whether
// the gradient of element i passes: it lay between the limits and was not dropped.
struct BatchNormSpace {
  int64_t images = 0, channels = 0, plane = 0;

  int64_t words() const { return (plane + kLanes - 1) / kLanes; }  // of a plane
  int64_t offset(int64_t image, int64_t channel) const { return (image * channels + channel) * plane; }
  int64_t word_offset(int64_t image, int64_t channel) const { return (image * channels + channel) * words(); }
};

// dest = drop(min(max((source - mean) / sqrt(var + eps) * weight + bias + residual, low), high)), of each channel.
struct BatchNormForward {
  BatchNormSpace space;
  const float* source = nullptr;
  const float* residual = nullptr;  // or null: 0
  float* dest = nullptr;
  const float* weight = nullptr;  // or null: 1
  const float* bias = nullptr;    // or null: 0
  float* statistics = nullptr;  // [3, channels]: mean, variance (of the elements, not an estimate), 1 / sqrt(var + eps)
  uint16_t* kept = nullptr;     // null where every gradient passes
  double eps = 0;
  bool has_low = false, has_high = false;
  float low = 0, high = 0;
  // An element is dropped where its random number is below; 0: none is. The others are multiplied by scale.
  uint32_t threshold = 0;
  float scale = 1;
  uint64_t seed = 0;
};

// With g = gradient * scale where it passes and h = (source - mean) / sqrt(var + eps), of each channel:
//     dest = weight / sqrt(var + eps) * (g - mean(g) - h * mean(g * h)),  dweight = sum(g * h),  dbias = sum(g)
// and dresidual = g.
struct BatchNormBackward {
  BatchNormSpace space;
  const float* gradient = nullptr;
  const float* source = nullptr;
  float* dest = nullptr;              // or null, where it is not wanted
  float* residual = nullptr;          // where g goes, or null
  const float* weight = nullptr;      // or null: 1
  const float* statistics = nullptr;  // of the forward pass
  const uint16_t* kept = nullptr;     // of the forward pass
  float* parameters = nullptr;        // [2, channels]: dweight, dbias
  float scale = 1;
};

}  // namespace sparsekernels
