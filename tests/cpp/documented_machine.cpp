// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The machine that docs/sparse_kernels.md was measured on (AVX-512, caches of 48 KB and 2 MB), whatever machine tests
// run on: stands in for base/caches.cpp and jit/kernel_cache.cpp.
#include "base/caches.h"
#include "sparse_conv2d/jit/kernel_cache.h"

namespace sparsekernels {

const Caches& caches() {
  static const Caches sizes = {768, 32768};
  return sizes;
}

bool jit::jit_available() {
  return true;
}

}  // namespace sparsekernels
