// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The epilogue on vectors of 16 results. Compiled once per instruction set, as vec.h is.
#pragma once

#include "base/vec16.h"
#include "sparse_conv2d/epilogue.h"

namespace sparsekernels {
namespace {

inline Vec<float> limited(const PackedEpilogue& epilogue, Vec<float> value) {
  return limited(
      Limits{epilogue.low, epilogue.high, (epilogue.flags & kHasLow) != 0, (epilogue.flags & kHasHigh) != 0}, value);
}

// Where the residual of an element of the tensor is.
template <class T>
inline const T* residual_of(const PackedEpilogue& epilogue, const T* to) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(to) + epilogue.residual_bytes);
}

// Sums, with their bias, as they are stored to 16 elements of a tensor; or to those whose bit is set.
template <class T>
inline Vec<float> finished(const PackedEpilogue& epilogue, Vec<float> sums, const T* to) {
  if (epilogue.flags == 0) return sums;
  if (epilogue.flags & kAddsResidual) sums = sums + Vec16<T>::load(residual_of(epilogue, to));
  return limited(epilogue, sums);
}
template <class T>
inline Vec<float> finished(const PackedEpilogue& epilogue, Vec<float> sums, const T* to, uint32_t mask) {
  if (epilogue.flags == 0) return sums;
  if (epilogue.flags & kAddsResidual) sums = sums + Vec16<T>::load(residual_of(epilogue, to), mask);
  return limited(epilogue, sums);
}

}  // namespace
}  // namespace sparsekernels
