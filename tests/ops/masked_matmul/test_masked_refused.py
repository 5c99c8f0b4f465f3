# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What masked_matmul, masks and the kernel behind them refuse, and in which words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.masked_matmul.implementations import MASKED_MATMUL

built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
BLOCKS = torch.ones(2, 3, dtype=torch.bool)
MASK = torch.ones(4, 6, dtype=torch.bool)
BITS = torch.zeros(4, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda a, b: (a, b, MASK[:3]), ValueError, r"mask of a shape that broadcasts to \[4, 6\], got \[3, 6\]"),
        (lambda a, b: (a, b, MASK.expand(2, 4, 6)), ValueError, r"broadcasts to \[4, 6\], got \[2, 4, 6\]"),
        (lambda a, b: (a, b, sk.prepare_mask(MASK[:3])), ValueError, r"broadcasts to \[4, 6\], got \[3, 6\]"),
        (lambda a, b: (a, b.double(), sk.prepare_mask(MASK)), TypeError, "b of dtype torch.float32 like a"),
        (lambda a, b: (a, b[:2], sk.prepare_mask(MASK)), ValueError, "b with 5 rows, as a has columns"),
        (lambda a, b: (a, b.to_sparse(), sk.prepare_mask(MASK)), TypeError, "b of layout torch.strided"),
        (lambda a, b: (a, b.to("meta"), sk.prepare_mask(MASK)), ValueError, "b on cpu like a, got meta"),
        (
            lambda a, b: (a, b, sk.prepare_mask(MASK[:, :1])),
            ValueError,
            r"broadcasts to \[4, 6\], got \[4, 1\]; its last two sizes are to be \[4, 6\]: expand it before it is prep",
        ),
        (lambda a, b: (a, b, MASK.int()), TypeError, "mask of dtype torch.bool or torch.float32 like a, got torch.int"),
        (lambda a, b: (a, b, MASK.double()), TypeError, "got torch.float64"),
        (lambda a, b: (a, b, None), TypeError, "mask to be a torch.Tensor, a BlockMask or a PreparedMask, got None"),
        (lambda a, b: (a, b, MASK.to("meta")), ValueError, "mask on cpu like a, got meta"),
        (lambda a, b: (a, b, sk.BlockMask(BLOCKS, (2, 2), (4, 5))), ValueError, r"\[4, 6\], got \[4, 5\]"),
        (lambda a, b: (a, b[:2], MASK), ValueError, r"b with 5 rows, as a has columns, got \[2, 6\]"),
        (lambda a, b: (a, b.double(), MASK), TypeError, "b of dtype torch.float32 like a, got torch.float64"),
        (lambda a, b: (a[0], b, MASK), ValueError, r"a of at least 2 dimensions, got \[5\]"),
        (lambda a, b: (a.int(), b, MASK), TypeError, "a of dtype"),
        (lambda a, b: (a, b.to("meta"), MASK), ValueError, "b on cpu like a, got meta"),
        (lambda a, b: (a.expand(2, 4, 5), b.expand(3, 5, 6), MASK), ValueError, r"of a, \[2\], got \[3\]"),
        (lambda a, b: (a[:, :1].expand(4, 2**30), b[:1].expand(2**30, 6), MASK), ValueError, "at most 2.31 elements"),
    ],
)
def test_refused(make: Callable[[Tensor, Tensor], tuple[Tensor, ...]], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="masked_matmul: expected .*" + words):
        sk.masked_matmul(*make(torch.randn(4, 5), torch.randn(5, 6)))


def test_refused_options() -> None:
    a, b = torch.randn(2, 4, 5), torch.randn(5, 6)
    with pytest.raises(ValueError, match="output to be 'dense' or 'values', got 'sparse'"):
        sk.masked_matmul(a, b, MASK, output="sparse")
    with pytest.raises(ValueError, match=r"mask of 2 dimensions for output='values', got \[2, 4, 6\]"):
        sk.masked_matmul(a, b, MASK.expand(2, 4, 6), output="values")
    with pytest.raises(ValueError, match=r"mask of shape \[4, 6\] for output='values', got \[1, 6\]"):
        sk.masked_matmul(a, b, MASK[:1], output="values")
    with pytest.raises(TypeError, match=r"a_mask of dtype torch.bool, got torch.float32; pass it != 0"):
        sk.masked_matmul(a, b, MASK, a_mask=torch.ones(4, 5))
    with pytest.raises(ValueError, match=r"b_mask of a shape that broadcasts to \[5, 6\], got \[2, 5, 6\]"):
        sk.masked_matmul(a, b, MASK, b_mask=torch.ones(2, 5, 6, dtype=torch.bool))
    with pytest.raises(TypeError, match="prepare_mask: expected mask to be a bool tensor or a BlockMask, got torch.f"):
        sk.prepare_mask(torch.ones(2, 2))
    with pytest.raises(ValueError, match="prepare_mask: expected mask of at least 2 dimensions"):
        sk.prepare_mask(MASK[0])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((BLOCKS.float(), (2, 2), (4, 6)), TypeError, "blocks to be a tensor of dtype torch.bool, got torch.float32"),
        ((BLOCKS, "ab", (4, 6)), TypeError, r"block to be two int, \(rows, columns\), got 'ab'"),
        ((BLOCKS, 2, (4, 6)), TypeError, "block to be two int"),
        ((BLOCKS, (2.0, 2), (4, 6)), TypeError, "block to be two int"),
        ((BLOCKS, (2, 2), (4.0, 6)), TypeError, "shape to be two int"),
        ((BLOCKS.to_sparse(), (2, 2), (4, 6)), TypeError, "blocks of layout torch.strided"),
        ((BLOCKS, (0, 2), (4, 6)), ValueError, r"block to be two sizes of at least 1, got \[0, 2\]"),
        ((BLOCKS, (2, -2), (4, 6)), ValueError, r"block to be two sizes of at least 1, got \[2, -2\]"),
        ((BLOCKS, (2, 2), (4, 7)), ValueError, r"blocks of shape \[..., 2, 4\] for \[4, 7\] in blocks of 2x2"),
        ((BLOCKS, (2, 2), (4, -6)), ValueError, "shape to be two sizes of at least 0"),
        ((BLOCKS[0], (2, 2), (4, 6)), ValueError, "blocks of shape"),
        ((BLOCKS, (2**20, 2**20), (2**21, 2**21)), ValueError, "at most 2.31 elements"),
    ],
)
def test_refused_blocks(arguments: tuple[object, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="BlockMask: expected .*" + words):
        sk.BlockMask(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("pack", (MASK.float(),), r"mask of torch.bool \[..., rows, columns\], got torch.float32 \[4, 6\]"),
        ("pack", (MASK.long(),), "mask of torch.bool"),
        ("pack", (MASK[0],), r"mask of torch.bool \[..., rows, columns\], got torch.bool \[6\]"),
        ("pack_blocks", (BLOCKS.long(), 4, 6, 2, 2), "blocks of torch.bool"),
        (
            "pack_blocks",
            (BLOCKS[:1, :1], 60, 10, 2, 2),
            r"blocks of shape \[..., 30, 5\] for \[60, 10\] in blocks of 2x2",
        ),
        ("pack_blocks", (BLOCKS, 4, 6, 0, 2), "blocks of at least 1 row and column, got 0 and 2"),
        ("pack_blocks", (BLOCKS, -4, 6, 2, 2), "rows and columns of at least 0, got -4 and 6"),
        (
            "transpose_bits",
            (BITS, 500),
            r"bits of torch.int64 \[..., rows, 8\] for 500 columns, got torch.int64 \[4, 1\]",
        ),
        ("transpose_bits", (BITS, -5), "columns of at least 0, got -5"),
        ("transpose_bits", (BITS.bool(), 5), "bits of torch.int64"),
        ("transpose_bits", (BITS[:, 0], 5), "bits of torch.int64"),
    ],
)
def test_other_kernels_refuse_masks_that_do_not_fit(function: str, arguments: tuple[object, ...], words: str) -> None:
    """Those that the table runs, whose arguments Python checks."""
    with pytest.raises(ValueError, match="masked_product: expected " + words):
        getattr(MASKED_MATMUL.by_table, function)(*arguments)


@built
def test_the_kernel_refuses_bits_that_do_not_fit() -> None:
    a, b = torch.randn(4, 5), torch.randn(5, 6)
    bits = torch.zeros(4, 1, dtype=torch.int64)
    for wrong in (bits.int(), bits[:3], bits.expand(4, 2), bits.expand(2, 4, 1), bits[:, 0]):
        with pytest.raises((RuntimeError, ValueError), match="masked_product: expected bits of int64"):
            torch.ops.sparsekernels._masked_product(a, b, None, None, wrong)


@built
def test_the_kernel_refuses_bits_behind_the_last_column() -> None:
    a, b = torch.randn(3, 4, 5), torch.randn(5, 70)
    for behind in (1 << 6, -(1 << 63)):
        of_a, of_b, of_y = (torch.zeros(3, rows, words, dtype=torch.int64) for rows, words in ((4, 1), (5, 2), (4, 2)))
        for one in (of_a, of_b, of_y):
            one[2, 3, -1] = behind
        for bits in ((of_a, None, None), (None, of_b, None), (None, None, of_y)):
            with pytest.raises((RuntimeError, ValueError), match="expected bits that are 0 behind the last column"):
                torch.ops.sparsekernels._masked_product(a, b, *bits)
    torch.ops.sparsekernels._masked_product(a, b, None, None, torch.full((4, 2), 63))
