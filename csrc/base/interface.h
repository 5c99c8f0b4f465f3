// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What is exported by name, and the version of what Python and the compiled libraries agree on.
#pragma once

#define SPARSEKERNELS_EXPORT __attribute__((visibility("default")))

namespace sparsekernels {

// The schemas of the operators (schemas.txt) and the exported functions. To be raised, here and in
// sparsekernels/_library.py, with every change of these: tests/test_interface.py compares the schemas. Python looks for
// this text in a library before it loads it: to load one is to register its kernels.
constexpr char kInterface[] = "sparsekernels interface 11;";

}  // namespace sparsekernels
