// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A few rows by packed weights where the processor expands elements of 16 bits (AVX512-VBMI2); compiled with the flags
// that CMakeLists.txt gives to this file.
#define SPARSEKERNELS_AVX512
#define SPARSEKERNELS_VBMI2_KERNELS
#include "packed_linear/cpu/kernel.h"

namespace sparsekernels {

const PackedLinearKernels kPackedVbmi2[3] = {
    packed_kernels_of<float>(), packed_kernels_of<BFloat16>(), packed_kernels_of<Float16>()};

}  // namespace sparsekernels
