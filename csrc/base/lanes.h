// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The vector that kernels compute with, and how planes of such vectors lie. Without inline functions of external
// linkage: this is compiled once per instruction set.
#pragma once

#include <cstdint>

namespace sparsekernels {

constexpr int kLanes = 16;        // floats of a vector: a cache line, an AVX-512 register, two of AVX2
constexpr int kVectorBytes = 64;  // of such a vector
constexpr int kLineBytes = 64;    // of a cache line

// How the planes of several channels lie in memory: one after another, so that the vectors of a plane follow each
// other; or vector by vector, the first of all channels and then the second of all channels.
enum class PlaneOrder { kPlanar, kInterleaved };

// By the distance from a vector of a plane to its next one, in floats.
static constexpr PlaneOrder plane_order(int64_t vector_stride) {
  return vector_stride == kLanes ? PlaneOrder::kPlanar : PlaneOrder::kInterleaved;
}

}  // namespace sparsekernels
