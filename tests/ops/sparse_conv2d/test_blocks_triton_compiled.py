# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What Triton makes of the kernels for blocks: registers, shared memory, widths of accesses, tensor-core products."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton_compiling
from triton_compiling import ARCHITECTURES

from sparsekernels import BlockSparse
from sparsekernels.ops.convolution import geometry_of
from sparsekernels.ops.sparse_conv2d import block_triton as implementation
from sparsekernels.ops.sparse_conv2d import block_triton_kernels

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def every_pass(
    weight_shape: tuple[int, ...],
    image: tuple[int, ...],
    block: tuple[int, int],
    dtype: torch.dtype = BF16,
    sparsity: float = 0.9,
    residual: bool = False,
    **options: Any,
) -> Callable[[], None]:
    def run() -> None:
        torch.manual_seed(0)
        outputs, inputs, *kernel = weight_shape
        shape = (outputs, inputs, *(kernel or (1, 1)))
        g = geometry_of(shape, **{"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options})
        pattern = BlockSparse.from_dense(torch.randn(shape).to(dtype), block=block, sparsity=sparsity)
        call = pattern.crow_indices, pattern.col_indices, list(block)
        x = torch.empty(image, dtype=dtype, device="cpu").contiguous(memory_format=torch.channels_last)
        bias = torch.empty(outputs, dtype=dtype)
        y = implementation.forward(x, pattern.values, bias, *call, outputs, g)
        if residual:
            implementation.forward(x, pattern.values, None, *call, outputs, g, y, 0.0, 6.0)
        implementation.input_gradient(y, pattern.values, *call, g, x.size(1), x.size(2), x.size(3), True)
        implementation.weight_gradient(y, x, *call, g, pattern.values.numel())

    return run


COMPILED: dict[str, Callable[[], None]] = {
    "linear, 128x128": every_pass((1024, 1024), (4096, 1024, 1, 1), (128, 128)),
    "linear, 32x32": every_pass((1024, 1024), (4096, 1024, 1, 1), (32, 32), residual=True),
    "linear, 64x64, float32": every_pass((1024, 1024), (4096, 1024, 1, 1), (64, 64), FP32),
    "linear, 16x16, 1 row": every_pass((1024, 1024), (1, 1024, 1, 1), (16, 16)),
    "3x3, 64x64": every_pass((256, 256, 3, 3), (16, 256, 14, 14), (64, 64), padding=1),
    "3x3, 32x32, float32": every_pass((128, 128, 3, 3), (16, 128, 14, 14), (32, 32), FP32, padding=1),
    "ragged": every_pass((120, 100, 3, 3), (3, 100, 9, 9), (24, 40), padding=1),
    "groups, float16": every_pass((128, 32, 3, 3), (4, 64, 8, 8), (32, 32), FP16, sparsity=0.5, padding=1, groups=2),
}

EVERYWHERE = ("3x3, 64x64", "ragged")
"""The cases that are compiled for every architecture; the others are for 9.0 alone."""

# Bytes of registers that a thread spills. None elsewhere.
SPILLED = {
    (80, "ragged", "gradient"): 8,
}

BUILDS = [
    (architecture, case)
    for architecture in ARCHITECTURES
    for case in COMPILED
    if architecture == 90 or case in EVERYWHERE
]
by_build = pytest.mark.parametrize(("architecture", "case"), BUILDS)


@by_build
def test_kernels_compile_and_fit(architecture: int, case: str) -> None:
    for record in triton_compiling.compiled(__file__, architecture)[case]:
        assert record["shared"] <= 100 * 1024  # two programs on sm_90, one on sm_80
        assert record["stack"] <= SPILLED.get((architecture, case, record["kernel"]), 0)
        assert record["registers"] * 32 * record["warps"] <= 65536


@by_build
def test_products_are_the_tensor_cores(architecture: int, case: str) -> None:
    """float32 is multiplied without them where torch does not allow tf32: its default for matrices."""
    records = [
        one
        for one in triton_compiling.compiled(__file__, architecture)[case]
        if one["kernel"] in ("product", "gradient")
    ]
    assert len(records) >= 3
    for record in records:
        operands = {name.split()[1] for name in record["products"] if " " in name} if record["products"] else set()
        if case == "linear, 64x64, float32":
            assert not record["products"]
        elif architecture < 100:
            wanted = "tf32" if "float32" in case else "f16" if "float16" in case else "bf16"
            assert operands == {wanted}
        else:
            assert record["products"]


@pytest.mark.parametrize("case", COMPILED)
def test_products_of_many_pixels_are_those_of_hopper(case: str) -> None:
    for record in triton_compiling.compiled(__file__, 90)[case]:
        if record["kernel"] == "product" and "1 row" not in case and case != "linear, 64x64, float32":
            assert any(name.startswith("wgmma") for name in record["products"])


@by_build
def test_pixels_are_read_16_bytes_at_a_time(architecture: int, case: str) -> None:
    for record in triton_compiling.compiled(__file__, architecture)[case]:
        if record["kernel"] in ("product", "gradient"):
            least = 4 if "1 row" in case else 16
            assert record["accesses"].count(16) >= least
            assert 2 not in record["accesses"]


if __name__ == "__main__":
    names = ("pack", "product", "finish", "gradient", "gather_sums")
    wanted = {case: call for case, call in COMPILED.items() if (int(sys.argv[1]), case) in BUILDS}
    triton_compiling.print_compiled(sys.argv, [(block_triton_kernels, name) for name in names], wanted)
