// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A tensor of four dimensions as kernels see it. Knows no torch.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace sparsekernels {

struct Activation {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t size[4] = {};    // batch, channels, height, width
  int64_t stride[4] = {};  // in elements
};

inline bool is_empty(const Activation& tensor) {
  return tensor.size[0] == 0 || tensor.size[1] == 0 || tensor.size[2] == 0 || tensor.size[3] == 0;
}

}  // namespace sparsekernels
