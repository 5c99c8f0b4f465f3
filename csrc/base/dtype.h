// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The dtypes that kernels take.
#pragma once

#include <cstdint>

namespace sparsekernels {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

// In bytes.
inline int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kFloat64:
      return 8;
  }
  __builtin_trap();
}

}  // namespace sparsekernels
