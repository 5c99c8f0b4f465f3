# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What Triton makes of masked attention: registers, shared memory, widths of accesses, tensor-core instructions.

Compiling needs no GPU, but it needs kernels that are not interpreted: it happens in child processes, one for each
architecture, which run this file (see the end). Each kernel takes some seconds, so there are few cases.
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

from sparsekernels.ops.masked_attention import triton as implementation
from sparsekernels.ops.masked_attention import triton_backward_kernels, triton_kernels, triton_keys_kernels
from sparsekernels.ops.masked_matmul import triton_tables_kernels

BF16 = torch.bfloat16
BITS = torch.empty(2048, 32, dtype=torch.int64)


def empty(columns: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(2, 4, 2048, columns, dtype=dtype)


def forward(columns: int) -> None:
    q = empty(columns)
    implementation.forward(q, q, q, BITS, 0.1, True)


def backward(columns: int) -> None:
    q = empty(columns)
    implementation.backward(q, q, q, q, BITS, q, empty(2, torch.float32), q, 0.1)


COMPILED: dict[str, Callable[[], None]] = {
    "forward, 128 columns": lambda: forward(128),
    "backward, 64 columns": lambda: backward(64),
}
TABLES = ("tile_flags", "tile_lists", "tile_order")
INSTRUCTION = {80: "mma bf16", 90: "wgmma bf16"}

by_architecture = pytest.mark.parametrize("architecture", INSTRUCTION)


def compiled(architecture: int) -> list[dict[str, Any]]:
    records = triton_compiling.compiled(__file__, architecture)
    return [one for case in COMPILED for one in records[case] if one["kernel"] not in TABLES]


@by_architecture
def test_kernels_compile_and_fit(architecture: int) -> None:
    for record in compiled(architecture):
        assert record["shared"] <= ARCHITECTURES[architecture] // 2  # two programs are resident
        assert record["stack"] == 0
        assert record["registers"] * 32 * record["warps"] <= 65536


@by_architecture
def test_launches(architecture: int) -> None:
    """Both gradients of keys and values are one launch where registers hold them."""
    launched = [record["kernel"] for record in compiled(architecture)]
    keys = ["to_keys"] if architecture == 90 else ["to_keys", "to_keys"]
    assert launched == ["forward", "row_deltas", "to_queries", *keys]


@by_architecture
def test_tensor_cores_multiply(architecture: int) -> None:
    """Scores and weights; in float16 which rows keep an infinity."""
    for record in compiled(architecture):
        if record["kernel"] != "row_deltas":
            assert record["products"][INSTRUCTION[architecture]] >= 16
            assert {name.partition(" ")[2] for name in record["products"]} == {"bf16", "f16"}


@by_architecture
def test_rows_are_read_16_bytes_at_a_time(architecture: int) -> None:
    """What is narrower: tables, words of masks, statistics, and the columns that keep an infinity."""
    for record in compiled(architecture):
        assert record["accesses"].count(16) >= 12
        assert len(record["accesses"]) - record["accesses"].count(16) <= 160  # 159 by Triton 3.6


if __name__ == "__main__":
    implementation.capability_of = lambda device: (int(sys.argv[1]) // 10, 0)
    kernels = [(triton_kernels, "forward")]
    kernels += [
        (triton_backward_kernels, "row_deltas"),
        (triton_backward_kernels, "to_queries"),
        (triton_keys_kernels, "to_keys"),
    ]
    kernels += [(triton_tables_kernels, name) for name in TABLES]
    triton_compiling.print_compiled(sys.argv, kernels, COMPILED)
