// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Convolutions to plan and lay out.
#pragma once

#include <cstdint>
#include <random>

#include "sparse_conv2d/lattice.h"

namespace sparsekernels {
namespace tests {

struct Layer {
  ConvGeometry geometry;
  Activation input, output;
};

// NCHW without gaps, or channels last.
inline Activation activation(int64_t batch, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  Activation tensor;
  const int64_t size[4] = {batch, channels, height, width};
  for (int d = 0; d < 4; ++d) tensor.size[d] = size[d];
  tensor.stride[0] = channels * height * width;
  tensor.stride[1] = channels_last ? 1 : height * width;
  tensor.stride[2] = width * (channels_last ? channels : 1);
  tensor.stride[3] = channels_last ? channels : 1;
  return tensor;
}

// A square image and kernel, padded so that its size stays.
inline Layer square_layer(
    int64_t batch, int64_t channels, int64_t outputs, int64_t size, int64_t kernel, bool channels_last = false) {
  Layer layer;
  for (int d = 0; d < 2; ++d) {
    layer.geometry.kernel[d] = kernel;
    layer.geometry.padding[d] = kernel / 2;
  }
  layer.input = activation(batch, channels, size, size, channels_last);
  layer.output = activation(batch, outputs, size, size, channels_last);
  return layer;
}

// Any stride, dilation, padding that differs before and after, and groups.
inline Layer random_layer(std::mt19937& random) {
  const auto pick = [&](int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
  };
  Layer layer;
  ConvGeometry& geometry = layer.geometry;
  geometry.groups = pick(1, 2);
  int64_t input[2], output[2];
  for (int d = 0; d < 2; ++d) {
    geometry.kernel[d] = pick(1, 4);
    geometry.stride[d] = pick(1, 3);
    geometry.dilation[d] = pick(1, 3);
    geometry.padding[d] = pick(0, 4);
    const int64_t after = pick(0, 4), reach = geometry.dilation[d] * (geometry.kernel[d] - 1) + 1;
    input[d] = pick(1, 24);
    while (input[d] + geometry.padding[d] + after < reach) ++input[d];
    output[d] = (input[d] + geometry.padding[d] + after - reach) / geometry.stride[d] + 1;
  }
  const bool channels_last = pick(0, 2) == 0;
  const int64_t batch = pick(1, 20);
  layer.input = activation(batch, geometry.groups * pick(1, 5), input[0], input[1], channels_last);
  layer.output = activation(batch, geometry.groups * pick(1, 5), output[0], output[1], channels_last);
  return layer;
}

}  // namespace tests
}  // namespace sparsekernels
