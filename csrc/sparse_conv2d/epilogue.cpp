// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/epilogue.h"

#include <algorithm>
#include <cstring>

#include "base/workspace.h"
#include "isa/kernels.h"

namespace sparsekernels {

PackedEpilogue pack_epilogue(const Epilogue& epilogue, int64_t rows, DType dtype, const void* dest, float* floats) {
  PackedEpilogue packed = {};
  packed.bias = floats + kEpilogueHeader;
  packed.low = epilogue.low;
  packed.high = epilogue.high;
  if (epilogue.low > -std::numeric_limits<float>::infinity()) packed.flags |= kHasLow;
  if (epilogue.high < std::numeric_limits<float>::infinity()) packed.flags |= kHasHigh;
  if (epilogue.residual != nullptr) {
    packed.flags |= kAddsResidual;
    packed.residual_bytes = distance(epilogue.residual, dest);
  }
  static_assert(kEpilogueHeader * sizeof(float) == sizeof(int64_t) + 2 * sizeof(float), "what kernels read");
  std::memcpy(floats, &packed.residual_bytes, sizeof(int64_t));
  floats[2] = packed.low;
  floats[3] = packed.high;
  if (epilogue.bias != nullptr) {
    cpu_kernels().widen(epilogue.bias, rows, dtype, floats + kEpilogueHeader);
  } else {
    std::fill_n(floats + kEpilogueHeader, rows, 0.0f);
  }
  return packed;
}

PackedEpilogue packed_epilogue(const Epilogue& epilogue, int64_t rows, DType dtype, const void* dest) {
  thread_local Workspace workspace;
  float* floats;
  WorkspaceLayout own;
  own.add(&floats, kEpilogueHeader + rows);
  own.allocate(workspace);
  return pack_epilogue(epilogue, rows, dtype, dest, floats);
}

}  // namespace sparsekernels
