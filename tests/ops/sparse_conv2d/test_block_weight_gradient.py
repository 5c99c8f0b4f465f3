# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The weight gradient at blocks in bfloat16: shapes that are cut into lanes, strips, parts and regions in every way,
against the oracle; the same bits for any number of threads; NaN and infinity.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparse_conv2d_cases import Case, channels_last, random
from test_block_kernels import takes, weight_of
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.sparse_conv2d import block_reference, blocks
from sparsekernels.testing import compare

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the compiled kernels were not built")

SIZES = ((32, 32), (16, 16), (16, 2), (16, 1), (24, 40), (8, 24), (40, 3), (4, 4), (1, 1), (128, 128))
CASES = (
    Case("32 images of a lane set", (33, 40, 6, 5), (70, 40, 3, 3), padding=1, mask=random(0.02), view=channels_last),
    Case("regions of an image", (3, 40, 12, 14), (70, 40, 3, 3), padding=1, mask=random(0.02)),
    Case("no regions of equal size", (3, 40, 13, 17), (70, 40, 3, 2), padding=1, mask=random(0.02)),
    Case("stride", (7, 40, 15, 12), (70, 40, 3, 3), stride=(2, 3), padding=1, mask=random(0.02)),
    Case("stride and dilation", (2, 40, 19, 21), (70, 40, 2, 3), stride=2, dilation=(1, 2), padding=(0, 2)),
    Case("groups", (5, 96, 8, 8), (256, 48, 3, 3), padding=1, groups=2, mask=random(0.01), view=channels_last),
    Case("taps that reach nothing", (20, 40, 1, 2), (70, 40, 3, 5), padding=(1, 2), mask=random(0.03)),
    Case("parts", (64, 32, 16, 12), (48, 32, 3, 3), padding=1, mask=random(0.01), view=channels_last),
    Case("parts of a linear layer", (4100, 80), (96, 80), mask=random(0.02), view=lambda x: x),
    Case("strips of columns", (1, 512, 1, 1999), (40, 512, 1, 3), padding=(0, 1), mask=random(0.001)),
    Case("strips of rows", (1, 512, 29, 67), (32, 512, 3, 3), padding=1, mask=random(0.001), view=channels_last),
    Case("regions of the weight", (200, 1024), (1000, 1024), mask=random(0.002), view=lambda x: x),
    Case("one position", (1, 40, 1, 1), (70, 40, 1, 1), mask=random(0.1)),
)


def tensors_of(case: Case, block: tuple[int, int]) -> tuple[sk.BlockSparse, Tensor, Tensor]:
    """The pattern, grad_output and input."""
    generator = torch.Generator().manual_seed(0)
    x = case.view(torch.randn(case.shape, generator=generator).bfloat16())
    x = x if x.dim() == 4 else x[:, :, None, None]
    weight = weight_of(case, block, torch.randn(case.weight, generator=generator).bfloat16(), generator)
    shape = torch.nn.functional.conv2d(
        x[:1].float(), torch.zeros(weight.shape), None, case.stride, case.padding, case.dilation, case.groups
    ).shape
    grads = torch.randn((x.size(0), *shape[1:]), generator=generator).bfloat16()
    return weight, channels_last(grads) if case.view is channels_last else grads, x


def pattern_of(weight: sk.BlockSparse) -> tuple[Tensor, Tensor, list[int]]:
    return weight.crow_indices, weight.col_indices, list(weight.block_size)


def gradient(weight: sk.BlockSparse, case: Case, grads: Tensor, x: Tensor) -> Tensor:
    arguments = *pattern_of(weight), list(case.geometry), weight.nnz
    result: Tensor = blocks.compiled.weight_gradient(grads, x, *arguments)
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case: Case) -> None:
    place = CASES.index(case)
    tried = [block for i, block in enumerate(SIZES) if (i + place) % 3 == 0 and takes(case, block)]
    assert tried
    for block in tried:
        weight, grads, x = tensors_of(case, block)
        pattern = *pattern_of(weight), list(case.geometry), weight.nnz
        truth = block_reference.weight_gradient(grads.double(), x.double(), *pattern)
        baseline = block_reference.weight_gradient(grads, x, *pattern)
        comparison = compare("weight gradient", gradient(weight, case, grads, x), truth, baseline)
        assert comparison.passed, (comparison, block)


@pytest.mark.parametrize("block", [(32, 32), (16, 2), (24, 40)], ids=lambda block: f"{block[0]}x{block[1]}")
def test_same_bits_for_any_number_of_threads(block: tuple[int, int]) -> None:
    threads = torch.get_num_threads()
    for case in CASES:
        if not takes(case, block):
            continue
        weight, grads, x = tensors_of(case, block)
        found = []
        try:
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                found.append(gradient(weight, case, grads, x))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(found[0], other) for other in found[1:]), case.name


@pytest.mark.parametrize("block", [(32, 32), (16, 2), (8, 1), (20, 24)], ids=lambda block: f"{block[0]}x{block[1]}")
@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize("size", [5, 8, 9])
def test_nan_that_no_block_reads_reaches_no_gradient(block: tuple[int, int], batch: int, size: int) -> None:
    """Tap (0, 0) of padding 1 never reads the last row and column; stride 2 of one tap reads no odd row."""
    for kernel, stride, padding in ((3, 1, 1), (1, 2, 0), (2, 1, 0)):
        case = Case("", (batch, 40, size, size), (48, 40, kernel, kernel), stride=stride, padding=padding, groups=1)
        mask = torch.zeros(case.weight, dtype=torch.bool)
        mask[::2, ::3, 0, 0] = True
        weight = sk.BlockSparse.from_dense(torch.randn(case.weight).bfloat16(), mask, block=block)
        _, grads, x = tensors_of(case, block)
        if stride == 2:
            x[:, :, 1::2] = float("nan")
        else:
            x[:, :, -1], x[..., -1] = float("nan"), float("inf")
        found = gradient(weight, case, grads, x)
        assert found.isfinite().all(), (kernel, stride)


@pytest.mark.parametrize("block", [(32, 32), (16, 2), (8, 1), (20, 24)], ids=lambda block: f"{block[0]}x{block[1]}")
def test_nan_stays_with_its_channel(block: tuple[int, int]) -> None:
    case = Case("", (5, 70, 6, 6), (60, 70, 3, 3), padding=1, mask=random(0.02), bias=False)
    weight, grads, x = tensors_of(case, block)
    grads[2, 17, 3, 3], x[1, 33, 2, 4] = float("nan"), float("nan")
    found = weight.with_values(gradient(weight, case, grads, x)).to_dense().isnan()
    kept = weight.with_values(torch.ones(weight.nnz)).to_dense() != 0
    expected = torch.zeros_like(kept)
    expected[17], expected[:, 33] = True, True
    assert kept[17].any()
    assert kept[:, 33].any()
    assert torch.equal(found, expected & kept)


def test_empty() -> None:
    case = Case("", (0, 40, 6, 6), (64, 40, 3, 3), padding=1)
    everywhere = torch.ones(case.weight, dtype=torch.bool)
    weight = sk.BlockSparse.from_dense(torch.ones(case.weight).bfloat16(), everywhere, block=(32, 8))
    grads, x = torch.zeros(0, 64, 6, 6).bfloat16(), torch.zeros(0, 40, 6, 6).bfloat16()
    assert torch.equal(gradient(weight, case, grads, x), torch.zeros(weight.nnz).bfloat16())
    none = sk.BlockSparse.from_dense(torch.ones(case.weight).bfloat16(), ~everywhere, block=(32, 8))
    assert gradient(none, case, torch.ones(2, 64, 6, 6).bfloat16(), torch.ones(2, 40, 6, 6).bfloat16()).numel() == 0


def test_refuses() -> None:
    case = CASES[0]
    weight, dy, x = tensors_of(case, (16, 8))
    kernel, geometry, (crow, col, block) = blocks.compiled.weight_gradient, list(case.geometry), pattern_of(weight)
    kernel(dy, x, crow, col, block, geometry, weight.nnz)
    beyond = col.clone()
    beyond[-1] = 5 * 9
    for arguments, words in (
        ((dy.float(), x, crow, col, block, geometry, weight.nnz), "bfloat16"),
        ((dy, x.float(), crow, col, block, geometry, weight.nnz), "bfloat16"),
        ((dy[:3], x, crow, col, block, geometry, weight.nnz), "batch"),
        ((dy[:, :, 1:], x, crow, col, block, geometry, weight.nnz), "size"),
        ((dy, x, crow[1:], col, block, geometry, weight.nnz), "indices"),
        ((dy, x, crow, col.flip(0).contiguous(), block, geometry, weight.nnz), "ascend"),
        ((dy, x, crow, beyond, block, geometry, weight.nnz), "col_indices"),
        ((dy, x, crow, col, [16, 129], geometry, weight.nnz), "block"),
        ((dy, x, crow, col, block, geometry, weight.nnz + 1), "values"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=words):
            kernel(*arguments)


@pytest.mark.parametrize(
    "environment", [{"SPARSEKERNELS_CPU_AMX": "0"}, {"SPARSEKERNELS_CPU_ISA": "portable"}], ids=str
)
def test_other_kernels(environment: dict[str, str]) -> None:
    """The same tests on the kernels that this machine would not take."""
    if environment.items() <= os.environ.items() or "SPARSEKERNELS_CPU_ISA" in os.environ:
        pytest.skip("these are the kernels that run now")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", "values or nan"],
        env={**os.environ, **environment, "SPARSEKERNELS_QUIET": "1"},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
