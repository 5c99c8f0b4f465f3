# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of fine-grained linear layers for few rows on the emulated device: results, memory, order.

CUDA_EMULATION=1 (tests/legs.sh cuda-emulation) runs every combination instead of a choice.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import emulated
import numpy
import pytest
import torch
from emulated import Library, pointer
from torch import Tensor

from sparsekernels import testing

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
CODES = {FP32: 0, BF16: 1, FP16: 2}  # csrc/base/dtype.h


class BitmapLinear(ctypes.Structure):  # csrc/sparse_conv2d/cuda/bitmap_linear.h
    _fields_ = (
        ("input", ctypes.c_void_p),
        ("words", ctypes.c_void_p),
        ("crow_indices", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("nnz", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Case:
    """offset: elements by which input and values start behind an aligned address. pattern: "random", or "first half":
    all of the nonzeros are in the first half of the rows, and the columns, twice as dense there and in none elsewhere.
    """

    rows: int
    inner: int
    out: int
    density: float
    dtype: torch.dtype = BF16
    bias: bool = True
    offset: int = 0
    pattern: str = "random"

    def __str__(self) -> str:
        name = {FP32: "fp32", BF16: "bf16", FP16: "fp16"}[self.dtype]
        bias, offset = "-bias" if self.bias else "", f"-{self.offset}-off" if self.offset else ""
        return f"{self.rows}x{self.inner}x{self.out}-{self.density}-{name}{bias}{offset}-{self.pattern}"

    def mask(self, generator: torch.Generator) -> Tensor:
        chance = torch.full((self.out, self.inner), self.density)
        if self.pattern == "first half":
            chance *= 4
            chance[:, self.inner // 2 :] = 0
            chance[self.out // 2 :] = 0
        return torch.rand(self.out, self.inner, generator=generator) < chance


def chosen() -> Iterator[Case]:
    for rows, dtype in itertools.product((1, 2, 3, 4, 5, 8, 9, 16), CODES):
        yield Case(rows, 300, 19, 0.4, dtype, bias=rows % 2 == 1)
    for inner, density in itertools.product((1, 63, 64, 65, 127, 128, 129, 1000), (0.0, 0.01, 0.5, 1.0)):
        yield Case(1 + inner % 4, inner, 7, density, (BF16, FP16)[inner % 2], bias=density == 0.5)
    for inner in (1024, 1025, 2048, 2049, 4096, 4100, 8192, 9000):
        yield Case(1, inner, 9, 0.1)
        yield Case(2, inner, 3, 0.6, FP32)
    yield Case(16, 3000, 10, 0.3, FP32)  # panels of 1024 columns
    yield Case(16, 5000, 70, 0.2)  # several panels, and rows of a warp
    yield Case(8, 9001, 5, 0.05, FP16)
    yield Case(1, 1, 1, 1.0)
    yield Case(1, 100, 1, 0.5, FP32)
    yield Case(1, 256, 1024, 0.1)
    yield Case(4, 700, 1024, 0.02, FP16, bias=False)
    yield Case(3, 2051, 40, 0.2, BF16, offset=1)
    yield Case(3, 2048, 40, 0.2, FP16, offset=3)
    yield Case(2, 1030, 20, 0.5, FP32, offset=1)
    yield Case(2, 4096, 20, 0.2, BF16, pattern="first half")  # more values in a panel than there is room for
    yield Case(2, 4096, 20, 0.2, FP16, offset=1, pattern="first half")
    yield Case(16, 4096, 20, 0.2, FP32, pattern="first half")


def every() -> Iterator[Case]:
    for rows, inner, out, density, dtype in itertools.product(
        (1, 2, 4, 7, 16),
        (1, 63, 65, 1000, 1024, 2047, 4096, 4097, 8192, 20001),
        (1, 7, 130),
        (0.0, 0.02, 0.5, 1.0),
        CODES,
    ):
        if rows * inner * out <= 4_000_000:
            for offset, pattern in ((0, "random"), (1, "first half")):
                yield Case(rows, inner, out, density, dtype, density == 0.5, offset, pattern)


CASES = list(every() if os.environ.get("CUDA_EMULATION") == "1" else chosen())


@pytest.fixture(scope="module")
def library() -> Library:
    return emulated.library("bitmap_linear.cpp")


def packed(mask: Tensor) -> Tensor:
    """The bitmap of a mask, as csrc/sparse_conv2d/cuda/bitmap_linear.h has it."""
    out, inner = mask.shape
    padded = numpy.zeros((out, math.ceil(inner / 128) * 128), dtype=bool)
    padded[:, :inner] = mask.numpy()
    return torch.from_numpy(numpy.packbits(padded, axis=1, bitorder="little").view(numpy.int64))


def product(
    library: Library,
    case: Case,
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    bias: Tensor | None,
    seed: int,
    shared_bytes: int = emulated.WHOLE_MEMORY,
    **device_options: int,
) -> Tensor:
    crow = torch.zeros(case.out + 1, dtype=torch.int32)
    crow[1:] = mask.sum(1).cumsum(0)
    with library.device(seed=seed, shared_bytes=shared_bytes, **device_options) as device:
        output = device.empty((case.rows, case.out), case.dtype, name="output")
        call = BitmapLinear(
            input=pointer(device.put(x, case.offset, "input")),
            words=pointer(device.put(packed(mask), name="words")),
            crow_indices=pointer(device.put(crow, name="crow_indices")),
            values=pointer(device.put(values, case.offset, "values")),
            bias=None if bias is None else pointer(device.put(bias, name="bias")),
            output=pointer(output),
            rows=case.rows,
            inner=case.inner,
            out=case.out,
            nnz=values.numel(),
            dtype=CODES[case.dtype],
        )
        assert library.loaded.bitmap_linear(ctypes.byref(call)) == 0
    return output.clone()


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(case.inner)
    mask = case.mask(generator)
    x = torch.randn(case.rows, case.inner, generator=generator).to(case.dtype)
    values = torch.randn(int(mask.sum()), generator=generator).to(case.dtype)
    bias = torch.randn(case.out, generator=generator).to(case.dtype) if case.bias else None
    return x, mask, values, bias


def judge(case: Case, result: Tensor, x: Tensor, mask: Tensor, values: Tensor, bias: Tensor | None) -> None:
    def expected(dtype: torch.dtype) -> Tensor:
        weight = torch.zeros(mask.shape, dtype=dtype)
        weight[mask] = values.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))

    comparison = testing.compare("output", result, expected(torch.float64), expected(case.dtype))
    assert comparison.passed, str(comparison)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_product(library: Library, case: Case) -> None:
    x, mask, values, bias = inputs(case)
    result = product(library, case, x, mask, values, bias, seed=case.inner)
    judge(case, result, x, mask, values, bias)


@pytest.mark.parametrize(
    "case", [Case(1, 4096, 20, 0.3), Case(5, 5000, 70, 0.2), Case(16, 3000, 10, 0.3, FP32)], ids=str
)
def test_the_same_bits_in_any_order(library: Library, case: Case) -> None:
    x, mask, values, bias = inputs(case)
    first = product(library, case, x, mask, values, bias, seed=1)
    for seed in range(2, 5):
        assert torch.equal(first, product(library, case, x, mask, values, bias, seed))


def test_several_panels_of_many_rows(library: Library) -> None:
    """Warps that keep the sums of several rows from one panel to the next."""
    case = Case(16, 1100, 900, 0.02, FP32, bias=False)
    x, mask, values, bias = inputs(case)
    result = product(library, case, x, mask, values, bias, seed=0, multiprocessors=1)
    judge(case, result, x, mask, values, bias)


@pytest.mark.parametrize("longest", range(202, 220))
def test_a_row_that_just_fits_what_is_staged(library: Library, longest: int) -> None:
    """And one that just does not, at each place within a vector of 16 bytes."""
    case = Case(1, 1000, 16, 0.1, BF16, bias=False)
    mask, generator = torch.zeros(16, 1000, dtype=torch.bool), torch.Generator().manual_seed(longest)
    for row in range(16):
        mask[row, torch.randperm(1000, generator=generator)[: longest if row == 9 else 101]] = True
    x, values = torch.randn(1, 1000).to(BF16), torch.randn(int(mask.sum())).to(BF16)
    judge(case, product(library, case, x, mask, values, None, seed=longest), x, mask, values, None)


@pytest.mark.parametrize("kilobytes", [99, 72])
def test_where_a_block_has_less_shared_memory(library: Library, kilobytes: int) -> None:
    """99 KB on sm_86 and sm_89, which run what is compiled for sm_80. The bits are the same."""
    case = Case(16, 1500, 10, 1.0, FP32)
    x, mask, values, bias = inputs(case)
    result = product(library, case, x, mask, values, bias, seed=0, shared_bytes=kilobytes * 1024)
    judge(case, result, x, mask, values, bias)
    assert torch.equal(result, product(library, case, x, mask, values, bias, seed=1))


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_only_where_there_is_a_weight_nan_and_infinity_count(library: Library, dtype: torch.dtype) -> None:
    case = Case(3, 200, 30, 0.05, dtype)
    x, mask, values, bias = inputs(case)
    assert not mask.any(0).all()
    x[:, ~mask.any(0)] = torch.nan
    unread = product(library, case, x, mask, values, bias, seed=0)
    assert torch.isfinite(unread).all()
    read = int(mask.any(0).nonzero()[0])
    values[0], values[1:] = 0, 1
    x[1, read] = torch.inf
    result = product(library, case, x, mask, values, bias, seed=0)
    touched = mask[:, read]
    assert torch.equal(torch.isfinite(result), ~(touched & (torch.arange(3) == 1)[:, None]))
    owner = int(mask.nonzero()[0, 0])
    if int(mask[owner].nonzero()[0]) == read:  # a stored zero times infinity
        assert torch.isnan(result[1, owner])


CROOKED = {
    "more bits than values": [50 * i for i in range(10)],
    "negative": [-900] + [300] * 9,
    "the least": [-(2**31)] + [300] * 9,
    "beyond": [0] + [100_000] * 9,
    "far beyond": [2**31 - 1] * 10,
    "descending": [300, 0] * 5,
}


@pytest.mark.parametrize("indices", CROOKED)
def test_what_disagrees_is_not_followed_outside(library: Library, indices: str) -> None:
    """Bits and indices that are not of one pattern: whatever the result, nothing outside of the values is read."""
    case = Case(2, 500, 9, 0.3)
    x, mask, values, _ = inputs(case)
    crow = torch.tensor(CROOKED[indices], dtype=torch.int32)
    with library.device(seed=0) as device:
        output = device.empty((case.rows, case.out), case.dtype)
        call = BitmapLinear(
            input=pointer(device.put(x)),
            words=pointer(device.put(packed(torch.ones_like(mask)))),
            crow_indices=pointer(device.put(crow)),
            values=pointer(device.put(values[:300])),
            output=pointer(output),
            rows=2,
            inner=500,
            out=9,
            nnz=300,
            dtype=CODES[BF16],
        )
        assert library.loaded.bitmap_linear(ctypes.byref(call)) == 0


@pytest.mark.parametrize("wrong", [{"rows": 17}, {"rows": -1}, {"inner": 0}, {"nnz": 2**31}, {"dtype": 3}], ids=str)
def test_what_it_refuses(library: Library, wrong: dict[str, int]) -> None:
    arguments = {"rows": 1, "inner": 64, "out": 1, "nnz": 1, "dtype": 0, **wrong}
    assert library.loaded.bitmap_linear(ctypes.byref(BitmapLinear(**arguments))) == 1
