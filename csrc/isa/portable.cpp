// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Every CPU kernel, compiled with the flags that CMakeLists.txt gives to this file.
#include "sparse_conv2d/block/portable.h"
#include "batch_norm/cpu/kernel.h"
#include "fingerprint/cpu/hash.h"
#include "masked_attention/cpu/kernel.h"
#include "masked_matmul/cpu/kernel.h"
#include "max_pool2d/cpu/indices.h"
#include "max_pool2d/cpu/kernel.h"
#include "packed_linear/cpu/kernel.h"
#include "rms_norm/cpu/kernel.h"
#include "sparse_conv2d/element_vectors.h"
#include "sparse_conv2d/jit/pack.h"
#include "sparse_conv2d/nonzero_words.h"
#include "sparse_conv2d/tiled/microkernels.h"
#include "sparse_conv2d/tiled/pack.h"

#include "isa/kernels.h"

namespace sparsekernels {

const CpuKernels kPortableKernels = {
    .isa = "portable",
    .has_jit = false,
    .rms_norm =
        {rms_norm_kernels_of<float>(), rms_norm_kernels_of<BFloat16>(), rms_norm_kernels_of<Float16>(),
         rms_norm_kernels_of<double>()},
    .tiled_pack =
        {tiled::pack_kernels_of<float>(), tiled::pack_kernels_of<BFloat16>(), tiled::pack_kernels_of<Float16>()},
    .jit_pack = {jit::pack_kernels_of<float>(), jit::pack_kernels_of<BFloat16>(), jit::pack_kernels_of<Float16>()},
    .tiles = tiled::tile_kernels(),
    .count_nonzeros =
        {count_nonzeros<float>, count_nonzeros<uint16_t>, count_nonzeros<uint16_t>, count_nonzeros<double>},
    .elements =
        {element_kernels_of<float>(), element_kernels_of<uint16_t>(), element_kernels_of<uint16_t>(),
         element_kernels_of<double>()},
    .widen = widen_elements,
    .narrow = narrow_elements,
    .packed_linear = {packed_kernels_of<float>(), packed_kernels_of<BFloat16>(), packed_kernels_of<Float16>()},
    .max_pool2d = max_pool2d_planes,
    .max_pool2d_lines = max_pool2d_lines,
    .max_pool2d_places = max_pool2d_places,
    .hash64 = hash64,
    .batch_norm_forward = batch_norm_forward,
    .batch_norm_backward = batch_norm_backward,
    .masked = masked_kernels(),
    .attention = attention_kernels()};

namespace block {

const Kernels kPortableKernels = {
    .name = "portable",
    .begin = [](int, int) {},
    .product = portable_product,
    .scatter = nullptr,
    .end = [] {},
    .lay_weights = portable_lay_weights,
    .pack = portable_pack,
    .unpack = portable_unpack,
    .gradient = {portable_gradient_product, portable_pack_lines, portable_pack_pairs, portable_finish},
    .panels = nullptr};

}  // namespace block

}  // namespace sparsekernels
