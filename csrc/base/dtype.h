// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The dtypes that kernels take.
#pragma once

#include <cstdint>

namespace sparsekernels {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

}  // namespace sparsekernels
