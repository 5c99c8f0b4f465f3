// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the bindings that take a dense weight share: the weight, and the words of its mask.
#pragma once

#include <functional>
#include <numeric>

#include "base/torch_glue.h"
#include "base/torch_threads.h"
#include "sparse_conv2d/glue.h"
#include "sparse_conv2d/outside.h"

namespace sparsekernels {
namespace {

constexpr int64_t kNoVersion = -1;

// Whether it became a copy.
inline bool make_contiguous(Handle& weight) {
  require_memory(weight);
  if (weight.is_contiguous()) return false;
  weight = contiguous(weight);
  return true;
}

inline int64_t elements_of(const int64_t* sizes, int64_t dim) {
  return std::accumulate(sizes, sizes + dim, int64_t{1}, std::multiplies<>());
}

inline DenseWeight dense_weight(const Handle& weight) {
  require_memory(weight);
  return {weight.data(), dtype_of(weight, "sparse_conv2d"), elements_of(weight.sizes(), weight.dim())};
}

// `guard`, of a weight or a mask with so many elements.
inline int64_t* mask_words(const Handle& guard, int64_t elements) {
  require(
      guard.dim() == 1 && guard.sizes()[0] == MaskWords::words_of(elements) &&
          guard.dtype() == aoti_torch_dtype_int64() && guard.device_type() == aoti_torch_device_type_cpu() &&
          guard.is_contiguous(),
      "sparse_conv2d: expected guard to be made for a weight of this size", guard);
  return static_cast<int64_t*>(guard.data());
}

inline int64_t nonzeros_outside(const DenseWeight& dense, const Handle& guard, int64_t version, double multiply_adds) {
  return Guard(mask_words(guard, dense.elements)).nonzeros_outside(dense, version, multiply_adds, torch_threads());
}

}  // namespace
}  // namespace sparsekernels
