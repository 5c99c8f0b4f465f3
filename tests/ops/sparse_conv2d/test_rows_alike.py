# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Patterns whose rows are alike in groups, as those of blocks are, which have kernels of their own on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_conv2d_cases import Case, Mask, as_it_is, channels_last, definition, inputs, ours, runs
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.convolution import geometry_of
from sparsekernels.testing import assert_verified

if ("cpu", "cpu") not in runs():
    pytest.skip("no CPU kernels", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def blocks(rows: int, columns: int = 1, density: float = 0.3, groups: int = 1) -> Mask:
    """Blocks of `rows` output by `columns` input channels at each tap; those at the ends may be smaller."""

    def mask(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        outputs, inputs, *kernel = shape
        each = outputs // groups
        of_blocks = (
            torch.rand((groups, -(-each // rows), -(-inputs // columns), *kernel), generator=generator) < density
        )
        alike = of_blocks.repeat_interleave(rows, 1)[:, :each].repeat_interleave(columns, 2)[:, :, :inputs]
        return alike.reshape(shape)

    return mask


def case(name: str, shape: tuple[int, ...], weight: tuple[int, ...], mask: Mask, **options: Any) -> Case:
    return Case(name, shape, weight, mask=mask, **options)


CASES = (
    # rows of a block: tiles of one to seven vectors, one and two vectors of lanes, a ragged last block
    *(
        case(f"{rows} rows", (3, 20, 9, 16), (2 * rows + rows // 2, 20, 3, 3), blocks(rows), padding=1)
        for rows in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 20, 24, 27, 32, 33, 48, 64, 80, 96)
    ),
    *(case(f"{r} rows, aligned", (33, 20, 4, 5), (30, 20, 3, 3), blocks(r), padding=1) for r in (3, 4, 5, 6, 7)),
    *(case(f"linear, {r} rows", (50, 40), (45, 40), blocks(r)) for r in (3, 4, 5, 6, 7)),
    *(case(f"{r}x{c}", (5, 33, 7, 7), (64, 33, 3, 3), blocks(r, c), padding=1) for r in (4, 16, 32) for c in (4, 16)),
    case("all rows alike", (4, 16, 8, 8), (70, 16, 3, 3), blocks(70), padding=1),
    case("129 and 129 rows", (2, 9, 6, 6), (258, 9, 3, 3), blocks(129), padding=1),
    case("one block of 5 rows", (2, 9, 6, 6), (5, 9, 3, 3), blocks(5), padding=1),
    # images of which many taps read nothing but padding
    *(
        case(f"{h}x{w}, batch {batch}", (batch, 24, h, w), (40, 24, 3, 3), blocks(16), padding=1)
        for h, w, batch in (
            (1, 1, 17),
            (2, 2, 16),
            (4, 4, 64),
            (4, 4, 3),
            (7, 7, 64),
            (8, 8, 17),
            (7, 7, 1),
            (5, 3, 33),
        )
    ),
    case("padding 4", (17, 8, 3, 3), (32, 8, 3, 3), blocks(16), padding=4),
    case("5x5", (16, 12, 6, 6), (32, 12, 5, 5), blocks(16), padding=2),
    case("9x9: more masks than there are", (3, 5, 12, 13), (32, 5, 9, 9), blocks(16), padding=4),
    case("7x7, batch 16: more reaches than lists", (16, 4, 7, 7), (16, 4, 7, 7), blocks(16), padding=3),
    case("stride 2", (5, 16, 15, 15), (48, 16, 3, 3), blocks(16, 16), stride=2, padding=1),
    case("stride (1, 3)", (16, 16, 9, 10), (32, 16, 3, 3), blocks(8, 8), stride=(1, 3), padding=1),
    case("dilation 2", (3, 16, 11, 11), (32, 16, 3, 3), blocks(16), dilation=2, padding=2),
    case("dilation 5: taps that reach nothing", (3, 16, 4, 4), (32, 16, 3, 3), blocks(16), dilation=5, padding=5),
    case("2 groups, ragged", (4, 24, 8, 8), (80, 12, 3, 3), blocks(16, groups=2), padding=1, groups=2),
    case("3 groups of one block", (17, 9, 4, 4), (36, 3, 3, 3), blocks(12, groups=3), padding=1, groups=3),
    case("channels last", (5, 32, 9, 9), (150, 32, 3, 3), blocks(16, 16), padding=1, view=channels_last),
    case("channels last, batch 16", (16, 32, 4, 4), (40, 32, 3, 3), blocks(16), padding=1, view=channels_last),
    case("1x1", (4, 64, 7, 7), (96, 64, 1, 1), blocks(32, 32)),
    case("1x1, channels last", (3, 64, 7, 7), (150, 64, 1, 1), blocks(16), view=channels_last),
    case("1x1, stride 2", (3, 32, 7, 8), (48, 32, 1, 1), blocks(16), stride=2),
    case("1x1, wide", (1, 16, 40, 150), (32, 16, 1, 1), blocks(16)),
    case("strips of rows", (1, 100, 90, 70), (20, 100, 3, 3), blocks(10, density=0.05), padding=1),
    case("several panels", (3, 150, 8, 8), (32, 150, 3, 3), blocks(16, density=0.6), padding=1),
    case("every other column", (5, 8, 7, 12), (32, 8, 3, 3), blocks(16), padding=1, view=lambda x: x[..., ::2]),
    case("empty", (4, 6, 7, 7), (32, 6, 3, 3), blocks(16, density=0), padding=1),
    case("full", (4, 6, 7, 7), (33, 6, 3, 3), blocks(16, density=1), padding=1),
    case("one vector", (33,), (48, 33), blocks(16)),
    case("100 rows of 16x1", (100, 70), (70, 70), blocks(16)),
    case("17 rows of 32x32", (17, 96), (96, 96), blocks(32, 32)),
    case("600 rows of 4x4", (600, 33), (64, 33), blocks(4, 4)),
    # channels that are alike: blocks of few rows and many columns, and the input gradients of those above
    *(
        case(f"1x{c}", (5, 2 * c + c // 2, 9, 16), (40, 2 * c + c // 2, 3, 3), blocks(1, c), padding=1)
        for c in (7, 8, 9, 12, 16, 17, 24, 32, 40)
    ),
    case("1x16, batch 33", (33, 40, 5, 4), (36, 40, 3, 3), blocks(1, 16), padding=1),
    case("2x16, stride 2", (17, 33, 9, 8), (40, 33, 3, 3), blocks(2, 16), stride=2, padding=1),
    case("16x1, strided", (16, 24, 9, 8), (40, 24, 3, 3), blocks(16), stride=(2, 1), padding=1),
    case(
        "1x8, dilation 5: taps that reach nothing", (3, 16, 4, 4), (32, 16, 3, 3), blocks(1, 8), dilation=5, padding=5
    ),
    case("1x16, 2 groups, ragged", (4, 80, 8, 8), (24, 40, 3, 3), blocks(1, 16), padding=1, groups=2),
    case("1x16, 9x9", (3, 32, 12, 13), (8, 32, 9, 9), blocks(1, 16), padding=4),
    case("1x24, channels last", (5, 50, 9, 9), (150, 50, 3, 3), blocks(1, 24), padding=1, view=channels_last),
    case("1x16, 1x1", (4, 64, 7, 7), (96, 64, 1, 1), blocks(1, 16)),
    case("1x16, strips", (1, 32, 90, 70), (20, 32, 3, 3), blocks(1, 16, density=0.1), padding=1),
    case("1x16, empty", (4, 32, 7, 7), (6, 32, 3, 3), blocks(1, 16, density=0), padding=1),
    case("linear of 1x32", (600, 96), (300, 96), blocks(1, 32)),
    case("one row of 1x16", (1, 96), (70, 96), blocks(1, 16)),
    # enough rows and products that it is worth it where results could be stored directly
    *(
        case(f"{r}x1 to 160 inputs", (2, 160, h, w), (72, 160, 3, 3), blocks(r, density=0.15), padding=1)
        for r, h, w in ((16, 9, 16), (8, 7, 9), (24, 5, 40), (10, 9, 16))
    ),
    case("1x16 to 160 outputs", (2, 72, 9, 16), (160, 72, 3, 3), blocks(1, 16, density=0.15), padding=1),
    case("1x24 to 160 outputs, batch 35", (35, 72, 4, 5), (160, 72, 3, 3), blocks(1, 24, density=0.15), padding=1),
    case(
        "16x1 to 160 inputs, stride 2", (2, 160, 17, 16), (96, 160, 3, 3), blocks(16, density=0.2), stride=2, padding=1
    ),
    case("1x16, stride 2, 160 rows", (2, 72, 17, 16), (160, 72, 3, 3), blocks(1, 16, density=0.2), stride=2, padding=1),
    case("1x16, dilation 2", (2, 72, 11, 12), (160, 72, 3, 3), blocks(1, 16, density=0.2), dilation=2, padding=2),
    case("1x16, reaches nothing", (2, 72, 4, 4), (160, 72, 3, 3), blocks(1, 16, density=0.3), dilation=5, padding=5),
    case("1x16, 2 large groups", (2, 96, 8, 9), (320, 48, 3, 3), blocks(1, 16, density=0.3), padding=1, groups=2),
    case("1x16, large strips", (1, 48, 60, 90), (160, 48, 3, 3), blocks(1, 16, density=0.3), padding=1),
    case("24x40", (50, 100), (70, 100), blocks(24, 40)),
    case("transposed input", (33, 40), (64, 33), blocks(16), view=lambda x: x.t()),
)

by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@by_case
@by_dtype
def test_against_the_definition(case: Case, dtype: torch.dtype) -> None:
    weight, tensors = inputs(case, dtype, "cpu")
    with sk.use_backend("cpu"):
        assert_verified(ours(case, weight), definition(case, weight), tensors)


STEADY = tuple(
    case(name, shape, weight, mask, padding=1, view=view) if len(weight) == 4 else case(name, shape, weight, mask)
    for name, shape, weight, mask, view in (
        ("batch 64", (64, 32, 8, 8), (64, 32, 3, 3), blocks(16), as_it_is),
        ("one image", (1, 32, 33, 33), (48, 32, 3, 3), blocks(16, 16), as_it_is),
        ("4x4", (64, 64, 4, 4), (64, 64, 3, 3), blocks(4, 4), as_it_is),
        ("channels last", (8, 32, 14, 14), (96, 32, 3, 3), blocks(32, 32), channels_last),
        ("linear", (600, 64), (64, 64), blocks(16), as_it_is),
        ("linear of 1x16", (600, 64), (64, 64), blocks(1, 16), as_it_is),
        ("1x16", (3, 64, 9, 9), (200, 64, 3, 3), blocks(1, 16, density=0.2), as_it_is),
        ("linear of one row", (1, 512), (512, 512), blocks(32), as_it_is),
    )
)


@pytest.mark.parametrize("case", STEADY, ids=lambda case: case.name)
@by_dtype
def test_bits_do_not_depend_on_threads(case: Case, dtype: torch.dtype) -> None:
    weight, tensors = inputs(case, dtype, "cpu")
    function = ours(case, weight)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            y = function(*tensors)
            results.append((y.detach(), *torch.autograd.grad(y, tensors[:2], torch.ones_like(y) / 3)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mask", [blocks(16), blocks(1, 16, density=0.15), blocks(4, 4)], ids=["16x1", "1x16", "4x4"])
@pytest.mark.parametrize("size", [(3, 64, 9, 8), (33, 64, 4, 4)], ids=["9x8", "4x4"])
@pytest.mark.parametrize("view", [as_it_is, channels_last])
def test_epilogues(mask: Mask, size: tuple[int, ...], view: Any) -> None:
    weight, (x, values, bias) = inputs(case("images", size, (160, 64, 3, 3), mask, padding=1), torch.float32, "cpu")
    x, residual = view(x.detach()), view(torch.randn(size[0], 160, *size[2:]))
    geometry = geometry_of(weight.shape, 1, 1, 1, 1)
    indices = weight.crow_indices, weight.col_indices

    def run(x: Tensor, values: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return torch.ops.sparsekernels._sparse_conv2d(x, values, bias, *indices, geometry, residual, -0.5, 1.5)

    def wanted(x: Tensor, values: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        dense = weight.with_values(values).to_dense()
        return (torch.nn.functional.conv2d(x, dense, bias, 1, 1) + residual).clamp(-0.5, 1.5)

    assert_verified(run, wanted, [x, values.detach(), bias.detach(), residual], gradients=False)


def test_rows_that_are_nearly_alike() -> None:
    """One nonzero more in one row: the kernels of any pattern."""
    generator = torch.Generator().manual_seed(0)
    mask = blocks(16)((48, 16, 3, 3), generator)
    place = (~mask).nonzero()[5]
    mask[tuple(place)] = True
    one = Case("nearly", (5, 16, 8, 8), (48, 16, 3, 3), padding=1, mask=lambda shape, generator: mask)
    weight, tensors = inputs(one, torch.float32, "cpu")
    assert_verified(ours(one, weight), definition(one, weight), tensors)


def test_other_images_on_one_pattern() -> None:
    """What vectors reach depends on the image, and lists of columns with it."""
    for size in ((64, 24, 4, 4), (64, 24, 5, 4), (64, 24, 4, 5), (16, 24, 4, 4), (64, 24, 1, 4), (64, 24, 4, 4)):
        one = case("images", size, (32, 24, 3, 3), blocks(16), padding=1)
        weight, tensors = inputs(one, torch.float32, "cpu")
        assert_verified(ours(one, weight), definition(one, weight), tensors)
