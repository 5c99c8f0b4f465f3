# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of RMSNorm on the emulated device: results against the oracle, and no fault of memory or order.

CUDA_EMULATION=1 (tests/legs.sh cuda-emulation) runs every combination instead of a choice.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import emulated
import pytest
import torch
from emulated import EmulatedDevice, Library, pointer
from torch import Tensor

from sparsekernels import testing
from sparsekernels.ops.rms_norm import reference
from sparsekernels.ops.rms_norm.arguments import CAST_BEFORE, UNIT_OFFSET

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
CODES = {FP32: 0, BF16: 1, FP16: 2, FP64: 3}  # csrc/base/dtype.h
MAX_LEADING_DIMS = 4
EPS = 1e-5


# csrc/rms_norm/call.h


class RowSpace(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("ndim", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * MAX_LEADING_DIMS),
    )


class RowTensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * MAX_LEADING_DIMS))

    def set(self, tensor: Tensor | None) -> None:
        if tensor is not None:
            self.data = tensor.data_ptr()
            self.strides[: tensor.dim() - 1] = tensor.stride()[:-1]


class Forward(ctypes.Structure):
    _fields_ = (
        ("space", RowSpace),
        ("input", RowTensor),
        ("residual", RowTensor),
        ("output", RowTensor),
        ("sum", RowTensor),
        ("weight", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("weight_dtype", ctypes.c_int32),
        ("eps", ctypes.c_double),
        ("cast_before", ctypes.c_bool),
        ("unit_offset", ctypes.c_bool),
    )


class Backward(ctypes.Structure):
    _fields_ = (
        ("space", RowSpace),
        ("grad_output", RowTensor),
        ("input", RowTensor),
        ("grad_sum", RowTensor),
        ("grad_input", RowTensor),
        ("weight", ctypes.c_void_p),
        ("grad_weight", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("weight_dtype", ctypes.c_int32),
        ("eps", ctypes.c_double),
        ("unit_offset", ctypes.c_bool),
    )


@dataclass(frozen=True)
class Case:
    """rows: the leading sizes. layout: "plain", "unaligned" (one element off) or "apart" (gaps between the rows)."""

    rows: tuple[int, ...]
    cols: int
    dtype: torch.dtype = BF16
    weight: torch.dtype | None = BF16
    add: bool = False
    variant: int = 0
    layout: str = "plain"

    def __str__(self) -> str:
        names = {FP32: "fp32", BF16: "bf16", FP16: "fp16", FP64: "fp64", None: "none"}
        rows = "x".join(map(str, self.rows))
        variant = {0: "", UNIT_OFFSET: "-unit", CAST_BEFORE: "-cast"}[self.variant]
        add = "-add" if self.add else ""
        return f"{rows}x{self.cols}-{names[self.dtype]}-{names[self.weight]}{add}{variant}-{self.layout}"


def chosen() -> Iterator[Case]:
    """Every kernel of every table, common and general, with what it can be asked."""
    for dtype, cols in itertools.product((FP32, BF16), (64, 128, 256, 512, 1024, 2048)):
        yield Case((5,), cols, dtype, dtype, add=cols % 3 == 1)
    for cols in (4096, 8192, 16384, 32768, 65536):
        yield Case((2,), cols, BF16, BF16, add=cols == 8192)
    for cols in (2048, 4096, 8192):
        yield Case((2,), cols, FP32, None, add=cols == 4096)
    for cols in (1, 64, 100, 513, 2048, 8192):
        yield Case((3,), cols, FP16, FP32, add=True, variant=UNIT_OFFSET, layout="unaligned")
        yield Case((1,), cols, FP64, FP64, add=cols == 100)
    yield Case((1,), 1, FP32, FP32)
    yield Case((70,), 64)
    yield Case((130,), 100, FP16, FP16, layout="apart")
    yield Case((70,), 48, BF16, FP64, add=True)
    yield Case((3, 5, 2), 64, BF16, BF16, layout="apart")
    yield Case((2, 3, 2, 2), 40, FP32, FP32, add=True, layout="apart")
    yield Case((9,), 2048, BF16, FP32, add=True)
    yield Case((4,), 513, BF16, BF16, variant=CAST_BEFORE)
    yield Case((4,), 16384, FP16, BF16, layout="apart")
    yield Case((4,), 1032, BF16, BF16, variant=UNIT_OFFSET)
    yield Case((2,), 100000, BF16, BF16, add=True)
    yield Case((3,), 70001, FP16, FP32, layout="unaligned")
    yield Case((2,), 20000, FP32, FP32, add=True)


def every() -> Iterator[Case]:
    # The gradient of a row of one column is what rounding leaves: of few such rows, its error is a matter of chance.
    shapes = [((40,), 1), ((1,), 64), ((7,), 64), ((200,), 64), ((9,), 100), ((5,), 513), ((40,), 2048)]
    shapes += [((5,), 8192), ((3,), 16384), ((3,), 100000)]
    for (rows, cols), dtype, layout in itertools.product(shapes, CODES, ("plain", "unaligned", "apart")):
        for weight, (add, variant) in itertools.product(
            (None, dtype, FP32 if dtype != FP32 else BF16), ((False, 0), (True, UNIT_OFFSET), (False, CAST_BEFORE))
        ):
            if weight is None and variant != 0:
                continue
            if variant == CAST_BEFORE and torch.promote_types(dtype, weight or dtype) != dtype:
                continue
            yield Case(rows, cols, dtype, weight, add, variant, layout)


CASES = list(every() if os.environ.get("CUDA_EMULATION") == "1" else chosen())


@pytest.fixture(scope="module")
def library() -> Library:
    found = emulated.library("rms_norm.cpp", "rms_norm/cuda/forward.cu")
    found.loaded.workspace_bytes.restype = ctypes.c_size_t
    return found


def tensor_of(case: Case, generator: torch.Generator) -> Tensor:
    gap = 8 if case.layout == "apart" else 0
    wide = torch.randn(*case.rows, case.cols + gap, generator=generator).to(case.dtype)
    if case.layout == "apart" and len(case.rows) > 1:
        wide = wide.transpose(0, 1).contiguous().transpose(0, 1)
    return wide[..., : case.cols]


def space_of(case: Case) -> RowSpace:
    space = RowSpace(rows=torch.Size(case.rows).numel(), cols=case.cols, ndim=len(case.rows))
    space.sizes[: len(case.rows)] = case.rows
    return space


def weight_of(case: Case, generator: torch.Generator) -> Tensor | None:
    if case.weight is None:
        return None
    return (1 + torch.randn(case.cols, generator=generator) / 4).to(case.weight)


def judge(case: Case, results: list[Tensor], truth: list[Tensor], baseline: list[Tensor]) -> None:
    comparisons = [
        testing.compare(str(i), *row, exact=case.dtype == FP64)
        for i, row in enumerate(zip(results, truth, baseline, strict=True))
    ]
    assert all(comparison.passed for comparison in comparisons), "; ".join(map(str, comparisons))


def forward(
    library: Library, case: Case, seed: int, x: Tensor, residual: Tensor | None, w: Tensor | None
) -> list[Tensor]:
    offset = 1 if case.layout == "unaligned" else 0
    with library.device(seed=seed) as device:
        call = Forward(space=space_of(case), dtype=CODES[case.dtype], eps=EPS)
        output = device.empty((*case.rows, case.cols), case.dtype, name="output")
        call.input.set(device.put(x, offset, "input"))
        call.output.set(output)
        results = [output]
        if residual is not None:
            call.residual.set(device.put(residual, name="residual"))
            results.append(device.empty(output.shape, case.dtype, name="sum"))
            call.sum.set(results[1])
        if w is not None:
            call.weight, call.weight_dtype = pointer(device.put(w, name="weight")), CODES[w.dtype]
            call.cast_before, call.unit_offset = case.variant == CAST_BEFORE, case.variant == UNIT_OFFSET
        assert library.loaded.forward(ctypes.byref(call)) == 0
    return [result.clone() for result in results]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(library: Library, case: Case) -> None:
    generator = torch.Generator().manual_seed(case.cols)
    x, w = tensor_of(case, generator), weight_of(case, generator)
    residual = tensor_of(case, generator) if case.add else None
    results = forward(library, case, case.cols, x, residual, w)
    again = forward(library, case, case.cols + 1, x, residual, w)
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))

    def expected(dtype: torch.dtype) -> list[Tensor]:
        total = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
        # what is normalized is the sum as it is written
        rounded = total if residual is None else (x + residual).to(dtype)
        scale = None if w is None else w.to(torch.promote_types(w.dtype, dtype))
        output = reference.forward(rounded, (case.cols,), scale, EPS, case.variant).to(dtype)
        return [output] if residual is None else [output, total]

    judge(case, results, expected(FP64), expected(FP32 if case.dtype == FP64 else case.dtype))


def put_backward(
    device: EmulatedDevice, case: Case, call: Backward, tensors: dict[str, Tensor | None], need_input: bool
) -> list[Tensor]:
    offset = 1 if case.layout == "unaligned" else 0
    for name in ("grad_output", "input", "grad_sum"):
        tensor = tensors[name]
        if tensor is not None:
            getattr(call, name).set(device.put(tensor, offset if name == "input" else 0, name))
    results = []
    if need_input:
        results.append(device.empty((*case.rows, case.cols), case.dtype, name="grad_input"))
        call.grad_input.set(results[0])
    w = tensors["weight"]
    if w is not None:
        call.weight, call.weight_dtype = pointer(device.put(w, name="weight")), CODES[w.dtype]
        call.unit_offset = case.variant == UNIT_OFFSET
        results.append(device.empty((case.cols,), w.dtype, name="grad_weight"))
        call.grad_weight = pointer(results[-1])
    return results


def backward(
    library: Library,
    case: Case,
    tensors: dict[str, Tensor | None],
    seed: int,
    stream: int = 0,
    shared_bytes: int = emulated.WHOLE_MEMORY,
    need_input: bool = True,
) -> list[Tensor]:
    with library.device(seed=seed, shared_bytes=shared_bytes) as device:
        call = Backward(space=space_of(case), dtype=CODES[case.dtype], eps=EPS)
        results = put_backward(device, case, call, tensors, need_input)
        size = library.loaded.workspace_bytes(ctypes.byref(call))
        if size > 0:
            call.workspace = pointer(device.empty((size,), torch.uint8, name="workspace"))
        assert library.loaded.backward(ctypes.byref(call), ctypes.c_size_t(stream)) == 0
    return [result.clone() for result in results]


def judge_backward(
    case: Case, tensors: dict[str, Tensor | None], results: list[Tensor], need_input: bool = True
) -> None:
    def expected(dtype: torch.dtype) -> list[Tensor]:
        w = tensors["weight"]
        scale = None if w is None else w.to(torch.promote_types(w.dtype, dtype))
        grads = reference.backward(
            *(None if one is None else one.to(dtype) for one in (tensors["grad_output"], tensors["input"])),  # type: ignore[arg-type]
            (case.cols,),
            scale,
            EPS,
            None if tensors["grad_sum"] is None else tensors["grad_sum"].to(dtype),
            need_input,
            w is not None,
            case.variant,
        )
        kept = [grads[0]] if need_input else []
        return [*kept, grads[1].to(w.dtype if dtype != FP64 else FP64)] if w is not None else kept

    judge(case, results, expected(FP64), expected(FP32 if case.dtype == FP64 else case.dtype))


def backward_tensors(case: Case) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(case.cols)
    return {
        "grad_output": tensor_of(case, generator),
        "input": tensor_of(case, generator),
        "grad_sum": tensor_of(case, generator) if case.add else None,
        "weight": weight_of(case, generator),
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(library: Library, case: Case) -> None:
    tensors = backward_tensors(case)
    results = backward(library, case, tensors, seed=case.cols)
    again = backward(library, case, tensors, seed=case.cols + 1)
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    judge_backward(case, tensors, results)


CAPTURED = 1000  # a stream that is being captured, of the emulation


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", [Case((90,), 64), Case((40,), 520, FP32, FP32), Case((6,), 17000)], ids=str)
def test_backward_however_its_blocks_meet(library: Library, case: Case, seed: int) -> None:
    """Column sums over blocks: the last one, or several that wait for each other; also in a captured call."""
    tensors = backward_tensors(case)
    results = backward(library, case, tensors, seed)
    judge_backward(case, tensors, results)
    for stream in (CAPTURED, 2, 7):  # 2: cudaStreamPerThread
        again = backward(library, case, tensors, seed + 10, stream)
        assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))


def test_backward_sums_in_the_workspace_where_shared_memory_is_too_small(library: Library) -> None:
    case = Case((5,), 20000, FP32, FP32)
    tensors = backward_tensors(case)
    for shared_bytes in (emulated.WHOLE_MEMORY, 48 * 1024):
        judge_backward(case, tensors, backward(library, case, tensors, 1, shared_bytes=shared_bytes))


@pytest.mark.parametrize("cols", [64, 513, 20000])
def test_backward_of_the_weight_alone(library: Library, cols: int) -> None:
    case = Case((9,), cols)
    tensors = backward_tensors(case)
    judge_backward(case, tensors, backward(library, case, tensors, 1, need_input=False), need_input=False)
