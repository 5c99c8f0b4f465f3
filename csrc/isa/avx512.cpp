// Every CPU kernel, compiled with the flags that CMakeLists.txt gives to this file.
#define SPARSEKERNELS_AVX512
#include "batch_norm/cpu/kernel.h"
#include "max_pool2d/cpu/indices.h"
#include "max_pool2d/cpu/kernel.h"
#include "rms_norm/cpu/kernel.h"
#include "sparse_conv2d/jit/pack.h"
#include "sparse_conv2d/tiled/microkernels.h"
#include "sparse_conv2d/tiled/pack.h"

#include "isa/kernels.h"

namespace sparsekernels {

const CpuKernels kAvx512Kernels = {
    "avx512",
    {rms_norm_kernels_of<float>(), rms_norm_kernels_of<BFloat16>(), rms_norm_kernels_of<Float16>(),
     rms_norm_kernels_of<double>()},
    {line_kernels_of<float>(), line_kernels_of<BFloat16>(), line_kernels_of<Float16>()},
    {jit_pack_kernels_of<float>(), jit_pack_kernels_of<BFloat16>(), jit_pack_kernels_of<Float16>()},
    tile_kernels(),
    widen_elements,
    narrow_elements,
    max_pool2d_planes,
    max_pool2d_places,
    batch_norm_forward,
    batch_norm_backward};

}  // namespace sparsekernels
