# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What Triton makes of the kernels of fine-grained weights: registers, shared memory, accesses, instructions."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton_compiling
from triton_compiling import ARCHITECTURES

from sparsekernels import Unstructured
from sparsekernels.ops.convolution import LINEAR, geometry_of
from sparsekernels.ops.sparse_conv2d import expanded, expanded_kernels
from sparsekernels.ops.sparse_conv2d.bitmap import bitmap_of
from sparsekernels.ops.sparse_conv2d.expanded_routes import covering, product_tiling

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
KERNELS = ("expand", "gather", "product", "finish")


def pattern(*shape: int, dtype: torch.dtype = BF16) -> Unstructured:
    return Unstructured.from_dense(torch.randn(shape, dtype=dtype), torch.rand(shape) < 0.3)


def expand(weight: Unstructured, transposed: bool = False, channels_last: bool = False) -> None:
    """As a forward does, or an input gradient, of 16 rows or of images."""
    o, c = weight.shape[:2]
    geometry = geometry_of(weight.shape, 1, 0, 1, 1) if len(weight.shape) > 2 else LINEAR
    like = torch.empty(
        (2, o if transposed else c, 8, 8) if len(weight.shape) > 2 else (512, c, 1, 1), dtype=weight.dtype
    )
    like = like.contiguous(memory_format=torch.channels_last) if channels_last else like
    rows = expanded.as_rows(like, geometry)
    if transposed:
        crow, col, permutation = weight.transposed(1)
        bitmap = bitmap_of(crow, col, o * geometry.taps, permutation)
        assert bitmap is not None
        expanded._expanded_of_transposed(weight.values, permutation, bitmap, c, o, geometry, like, rows)
    else:
        bitmap = bitmap_of(weight.crow_indices, weight.col_indices, c * geometry.taps)
        indices = weight.crow_indices, weight.col_indices
        expanded._expanded(weight.values, None, bitmap, indices, o, c, geometry, like, rows)


def gather(weight: Unstructured) -> None:
    x = torch.randn(32, weight.shape[1], 1, 1, dtype=weight.dtype)
    g = torch.randn(32, weight.shape[0], 1, 1, dtype=weight.dtype)
    expanded.weight_gradient(g, x, weight.crow_indices, weight.col_indices, LINEAR)


def product(weight: Unstructured, rows: int, residual: Tensor | None = None, multiprocessors: int = 132) -> None:
    """By as many outputs as there are; a GPU of so many multiprocessors."""
    bitmap = bitmap_of(weight.crow_indices, weight.col_indices, weight.shape[1])
    assert bitmap is not None
    x, bias = torch.empty(rows, weight.shape[1], dtype=weight.dtype), torch.empty(weight.shape[0], dtype=weight.dtype)
    tiling = product_tiling(covering(rows), weight.shape[0], bitmap.words.size(1), weight.dtype, multiprocessors)
    expanded._product(x, weight.values, bias, bitmap, residual, 0.0 if residual is not None else None, None, tiling)


CASES: dict[str, Callable[[], None]] = {
    "expand, linear": lambda: expand(pattern(64, 256)),
    "expand, linear, float32": lambda: expand(pattern(64, 256, dtype=FP32)),
    "expand, linear, transposed": lambda: expand(pattern(64, 256), transposed=True),
    "expand, 3x3, channels last": lambda: expand(pattern(32, 16, 3, 3), channels_last=True),
    "expand, 3x3, transposed": lambda: expand(pattern(32, 16, 3, 3), transposed=True, channels_last=True),
    "gather": lambda: gather(pattern(64, 256)),
    "product, 1 row": lambda: product(pattern(128, 2048), 1),
    "product, 16 rows, residual": lambda: product(pattern(128, 2048), 16, torch.empty(16, 128, dtype=BF16), 1),
    "product, 100 rows": lambda: product(pattern(128, 2048), 100),
    "product, 128 rows, float16": lambda: product(pattern(128, 2048, dtype=FP16), 128, multiprocessors=1),
    "product, 16 rows, float32": lambda: product(pattern(128, 2048, dtype=FP32), 16, multiprocessors=1),
    "product, 48 rows, float32": lambda: product(pattern(128, 2048, dtype=FP32), 48),
}


SPILLED = {("product, 1 row", 100): 24, ("product, 16 rows, residual", 100): 24}
"""Bytes of registers that a thread spills. None elsewhere."""

by_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def compiled(architecture: int) -> dict[str, list[dict[str, Any]]]:
    return triton_compiling.compiled(__file__, architecture)


@by_architecture
@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_and_fit(architecture: int, case: str) -> None:
    for record in compiled(architecture)[case]:
        assert record["shared"] <= ARCHITECTURES[architecture] // 2  # two programs, which hide each other's waiting
        assert record["stack"] <= SPILLED.get((case, architecture), 0)
        assert record["registers"] * 32 * record["warps"] <= 65536 // 2


@by_architecture
def test_every_kernel_is_compiled(architecture: int) -> None:
    launched = {record["kernel"] for records in compiled(architecture).values() for record in records}
    assert launched == set(KERNELS)


@by_architecture
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("product")])
def test_bits_are_counted_once_for_four_elements(architecture: int, case: str) -> None:
    """By the instruction for that, into which the compiler has to make the steps that the kernel says."""
    (record,) = compiled(architecture)[case]
    fours = 64 * 64 // (4 * 32 * record["warps"])
    assert fours < record["popc"] <= 2 * fours  # and once for half a word, of which Triton 3.6 gives a thread fewer


@by_architecture
@pytest.mark.parametrize("case", ["expand, linear", "expand, linear, float32", "expand, linear, transposed"])
def test_dense_weights_are_written_16_bytes_at_a_time(architecture: int, case: str) -> None:
    (record,) = compiled(architecture)[case]
    itemsize = 4 if "float32" in case else 2
    assert record["accesses"].count(16) == 64 * 64 * itemsize // (16 * 32 * record["warps"])


@by_architecture
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("product") and "float32" not in case])
def test_products_are_those_of_the_tensor_cores(architecture: int, case: str) -> None:
    record = compiled(architecture)[case][0]
    dtype = "f16" if "float16" in case else "bf16"
    assert set(record["products"]) == {
        {80: f"mma {dtype}", 90: f"wgmma {dtype}"}.get(architecture, "tcgen05 kind::f16")
    }
    assert record["async"] > 0  # the next columns are fetched meanwhile


def extra(result: Any) -> dict[str, Any]:
    ptx = result.asm["ptx"]
    return {"popc": len(re.findall(r"\bpopc\.b32", ptx)), "async": len(re.findall(r"\bcp\.async", ptx))}


if __name__ == "__main__":
    triton_compiling.print_compiled(sys.argv, [(expanded_kernels, name) for name in KERNELS], CASES, extra)
