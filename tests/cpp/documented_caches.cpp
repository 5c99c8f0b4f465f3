// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The caches of the machine that docs/sparse_kernels.md was measured on (48 KB and 2 MB), whatever machine tests run
// on: stands in for base/caches.cpp.
#include "base/caches.h"

namespace sparsekernels {

const Caches& caches() {
  static const Caches sizes = {768, 32768};
  return sizes;
}

}  // namespace sparsekernels
