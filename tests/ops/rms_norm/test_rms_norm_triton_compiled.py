# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What Triton makes of the RMSNorm kernels: registers, shared memory, widths of accesses, orders of summation.

Compiling needs no GPU, but it needs kernels that are not interpreted: it happens in child processes, one for each
architecture, which run this file (see the end).
"""

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

from sparsekernels.ops.rms_norm import triton as implementation
from sparsekernels.ops.rms_norm import triton_kernels

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def empty(*shape: int, dtype: torch.dtype = BF16, device: str | torch.device = "cpu") -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def forward(x: Tensor, weight_dtype: torch.dtype | None = BF16) -> None:
    cols = x.shape[-1]
    w = None if weight_dtype is None else empty(cols, dtype=weight_dtype, device=x.device)
    implementation.forward(x, (cols,), w, 1e-6)


def add_forward(x: Tensor) -> None:
    implementation.add_forward(x, x, (x.shape[-1],), empty(x.shape[-1], dtype=x.dtype), 1e-6)


def backward(x: Tensor, add: bool = True, need_input: bool = True, need_weight: bool = True) -> None:
    w = empty(x.shape[-1], dtype=x.dtype, device=x.device)
    implementation.backward(x, x, (x.shape[-1],), w, 1e-6, x if add else None, need_input, need_weight)


COMPILED: dict[str, Callable[[], None]] = {
    "forward, 64 columns": lambda: forward(empty(100, 64)),
    "forward, 64 columns, one row": lambda: forward(empty(1, 64)),
    "forward, 64 columns, apart": lambda: forward(empty(100, 67)[:, 1:65]),
    "forward, 64 columns, heads": lambda: forward(empty(2, 5, 6, 64)[:, :, :4].transpose(1, 2), FP32),
    "forward, 64 columns, four strides": lambda: forward(empty(4, 4, 4, 4, 64)[::2, ::2, ::2, ::2]),
    "forward, 100 columns, float32": lambda: forward(empty(100, 100, dtype=FP32), FP32),
    "forward, 513 columns": lambda: forward(empty(9, 513, dtype=FP16), FP16),
    "forward, 2048 columns, no weight": lambda: forward(empty(9, 2048), None),
    "forward, 2048 columns, no weight, apart": lambda: forward(empty(9, 2051)[:, 1:2049], None),
    "forward, 2048 columns, float32": lambda: forward(empty(9, 2048, dtype=FP32), BF16),
    "forward, 16384 columns": lambda: forward(empty(9, 16384)),
    "forward, 100000 columns": lambda: forward(empty(3, 100000)),
    "forward, 100000 columns, apart": lambda: forward(empty(3, 100003)[:, 1:100001]),
    "forward, 2^32 rows": lambda: forward(empty(2**32, 64, device="meta")),
    "forward, 2^32 columns": lambda: forward(empty(5, 2**32, device="meta")),
    "add, 1280 columns": lambda: add_forward(empty(9, 1280)),
    "add, 16384 columns, float32": lambda: add_forward(empty(9, 16384, dtype=FP32)),
    "add, 32768 columns": lambda: add_forward(empty(9, 32768)),
    "add, 65536 columns": lambda: add_forward(empty(9, 65536)),
    "add, 65536 columns, float32": lambda: add_forward(empty(9, 65536, dtype=FP32)),
    "add, 8192 columns, float64": lambda: add_forward(empty(9, 8192, dtype=FP64)),
    "backward, 64 columns": lambda: backward(empty(100, 64)),
    "backward, 64 columns, one row": lambda: backward(empty(1, 64)),
    "backward, 64 columns, apart": lambda: backward(empty(100, 67)[:, 1:65]),
    "backward, 64 columns, float32": lambda: backward(empty(100, 64, dtype=FP32)),
    "backward, 2^32 rows": lambda: backward(empty(2**32, 64, device="meta")),
    "backward, 2^32 columns": lambda: backward(empty(5, 2**32, device="meta")),
    "backward, 513 columns": lambda: backward(empty(9, 513, dtype=FP16)),
    "backward, 2048 columns": lambda: backward(empty(9, 2048), add=False),
    "backward, 8192 columns": lambda: backward(empty(9, 8192)),
    "backward, 8192 columns, float32": lambda: backward(empty(9, 8192, dtype=FP32)),
    "backward, 2048 columns, float64": lambda: backward(empty(9, 2048, dtype=FP64)),
    "backward, 16384 columns": lambda: backward(empty(9, 16384)),
    "backward, 16384 columns, float32": lambda: backward(empty(9, 16384, dtype=FP32)),
    "backward, input only": lambda: backward(empty(9, 4096), add=False, need_weight=False),
    "backward, weight only": lambda: backward(empty(9, 4096), add=False, need_input=False),
}

# Bytes of registers that a thread spills. None elsewhere.
SPILLED = {
    "add, 32768 columns": 16,
    "backward, 64 columns, apart": 32,
    "backward, 2^32 rows": 32,
    "backward, 513 columns": 128,
}


def compiled(architecture: int) -> dict[str, dict[str, Any]]:
    """Every case of COMPILED for one architecture: what its kernel is called and takes."""
    records = triton_compiling.compiled(__file__, architecture)
    assert all(len(launches) == 1 for launches in records.values())
    return {case: launches[0] for case, launches in records.items()}


by_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@by_architecture
@pytest.mark.parametrize("case", COMPILED)
def test_kernels_compile_and_fit(architecture: int, case: str) -> None:
    record = compiled(architecture)[case]
    assert record["shared"] <= ARCHITECTURES[architecture] // 4  # four programs, the most that need to be resident
    assert record["stack"] <= SPILLED.get(case, 0)
    assert record["registers"] * 32 * record["warps"] <= 65536
    if "backward" in case:
        assert record["registers"] <= 128  # 16 warps a multiprocessor, as `backward_programs` has it


@by_architecture
def test_every_kernel_is_compiled(architecture: int) -> None:
    launched = {record["kernel"] for record in compiled(architecture).values()}
    assert launched == {"forward_tile", "forward_loop", "backward_tile", "backward_loop"}


@by_architecture
@pytest.mark.parametrize("case", [case for case in COMPILED if "apart" not in case and "513" not in case])
def test_accesses_to_rows_are_16_bytes(architecture: int, case: str) -> None:
    record = compiled(architecture)[case]
    if case.startswith(("forward", "add")):
        assert set(record["accesses"]) <= ({8, 16} if "heads" in case or "2048 columns, float32" in case else {16})
    else:  # what follows the rows, on the way to the weight gradient, is narrower
        assert record["accesses"].count(16) >= 4


@by_architecture
@pytest.mark.parametrize("case", [case for case in COMPILED if case.endswith((", one row", ", apart"))])
def test_a_row_is_summed_in_one_order_however_it_lies(architecture: int, case: str) -> None:
    """The order of a sum is the layout that the compiler gives its tile."""
    records = compiled(architecture)
    plain = records[case.removesuffix(", one row").removesuffix(", apart")]
    assert plain["row_sums"]
    assert records[case]["row_sums"] == plain["row_sums"]


@by_architecture
def test_rows_are_no_part_of_what_is_compiled(architecture: int) -> None:
    records = compiled(architecture)
    for name in ("forward, 64 columns", "backward, 64 columns"):
        assert records[name]["hash"] == records[f"{name}, one row"]["hash"]


@by_architecture
def test_eps_is_passed_in_float64(architecture: int) -> None:
    assert all(record["eps"] == "f64" for record in compiled(architecture).values())


# The child process


def layouts_of_row_sums(ttgir: str) -> list[str]:
    """The layouts, written out, of the tiles that are summed along axis 1."""
    definitions = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.MULTILINE))
    operands = re.findall(
        r'"tt\.reduce"\(%\w+\) <\{axis = 1 : i32\}>.*?\}\) : \(tensor<[^#]*(#\w+)>\)', ttgir, re.DOTALL
    )
    return [definitions[operand] for operand in operands]


def extra(result: Any) -> dict[str, Any]:
    eps = re.search(r"%eps: (\w+)", result.asm["ttgir"])
    return {"row_sums": layouts_of_row_sums(result.asm["ttgir"]), "eps": None if eps is None else eps[1]}


if __name__ == "__main__":
    kernels = ("forward_tile", "forward_loop", "backward_tile", "backward_loop")
    triton_compiling.print_compiled(sys.argv, [(triton_kernels, name) for name in kernels], COMPILED, extra)
