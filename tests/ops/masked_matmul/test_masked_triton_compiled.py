# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What Triton makes of the masked product: registers, shared memory, widths of accesses, tensor-core instructions.

Compiling needs no GPU, but it needs kernels that are not interpreted: it happens in child processes, one for each
architecture, which run this file (see the end). All cases are compiled for 9.0, the others' have those that differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton_compiling
from triton_compiling import ARCHITECTURES

from sparsekernels.ops.masked_matmul import triton as implementation
from sparsekernels.ops.masked_matmul import triton_kernels, triton_tables_kernels

BF16, FP32 = torch.bfloat16, torch.float32
SIZE = 4096


def empty(dtype: torch.dtype = BF16, *shape: int) -> Tensor:
    return torch.empty(shape or (SIZE, SIZE), dtype=dtype)


def bits(rows: int = SIZE, columns: int = SIZE, device: str = "cpu") -> Tensor:
    return torch.empty(rows, columns // 64, dtype=torch.int64, device=device)


def product(a: Tensor, b: Tensor, *masks: Tensor | None) -> None:
    implementation.product(a, b, *masks)  # type: ignore[call-arg]


COMPILED: dict[str, Callable[[], None]] = {
    "result": lambda: product(empty(), empty(), None, None, bits()),
    "to a": lambda: product(empty(), empty().mT, bits(), None, None),
    "to b": lambda: product(empty().mT, empty(), None, bits(), None),
    "to a, float32": lambda: product(empty(FP32), empty(FP32).mT, bits(), None, None),
    "16 rows": lambda: product(empty(BF16, 16, SIZE), empty(), None, None, bits(16)),
    "far apart": lambda: product(
        torch.empty(1024, 2**22, dtype=BF16, device="meta")[:, :64],
        torch.empty(64, 1024, dtype=BF16, device="meta"),
        None,
        None,
        bits(1024, 1024, "meta"),
    ),
    "one element": lambda: product(empty(BF16, 1, 1), empty(BF16, 1, 1), *[bits(1, 64)] * 3),
    "pack": lambda: (implementation.pack(torch.empty(SIZE, SIZE, dtype=torch.bool)), None)[1],
    "transpose": lambda: (implementation.transpose_bits(bits(), SIZE), None)[1],
}

OPERANDS = ("result", "to a", "to b")
CASES = {80: OPERANDS, 90: tuple(COMPILED), 100: OPERANDS}
INSTRUCTION = {80: "mma bf16", 90: "wgmma bf16", 100: "tcgen05 kind::f16"}
# Bytes of registers that a thread spills. None elsewhere.
SPILLED = {(90, "to a, float32"): 16, (100, "to a"): 8, (100, "result"): 8}


def compiled(architecture: int) -> dict[str, list[dict[str, Any]]]:
    return triton_compiling.compiled(__file__, architecture)


by_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.mark.parametrize(("architecture", "case"), [(one, case) for one in CASES for case in CASES[one]])
def test_kernels_compile_and_fit(architecture: int, case: str) -> None:
    for record in compiled(architecture)[case]:
        assert record["shared"] <= ARCHITECTURES[architecture]
        assert record["stack"] <= SPILLED.get((architecture, case), 0)
        assert record["registers"] * 32 * record["warps"] <= 65536


def test_every_kernel_is_compiled() -> None:
    launched = {record["kernel"] for records in compiled(90).values() for record in records}
    assert launched == {"product", "pack", "transpose", "tile_flags", "tile_lists", "tile_order"}


def of_product(architecture: int, case: str) -> dict[str, Any]:
    (record,) = (one for one in compiled(architecture)[case] if one["kernel"] == "product")
    return record


@by_architecture
@pytest.mark.parametrize("case", OPERANDS)
def test_tensor_cores_multiply(architecture: int, case: str) -> None:
    """Also what a mask has passed through registers."""
    assert set(of_product(architecture, case)["products"]) == {INSTRUCTION[architecture]}
    assert set(of_product(90, "16 rows")["products"]) == {"mma bf16"}
    assert not of_product(90, "to a, float32")["products"]


@pytest.mark.parametrize(
    ("architecture", "case"), [*((one, case) for one in ARCHITECTURES for case in OPERANDS), (90, "to a, float32")]
)
def test_operands_are_read_16_bytes_at_a_time_however_they_lie(architecture: int, case: str) -> None:
    """The rest is tables, and words of masks, one for each row."""
    accesses = of_product(architecture, case)["accesses"]
    wide = accesses.count(16)
    assert wide >= 17
    assert len(accesses) - wide <= 32
    assert set(accesses) <= {1, 4, 8, 16}


if __name__ == "__main__":
    architecture = int(sys.argv[1])
    implementation.capability_of = lambda device: (architecture // 10, 0)
    implementation.multiprocessors = lambda device: 132  # type: ignore[assignment]
    kernels = [(triton_kernels, "product")]
    kernels += [
        (triton_tables_kernels, name) for name in ("pack", "transpose", "tile_flags", "tile_lists", "tile_order")
    ]
    cases = {case: COMPILED[case] for case in CASES[architecture]}
    triton_compiling.print_compiled(sys.argv, kernels, cases)
