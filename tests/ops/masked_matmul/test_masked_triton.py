# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_matmul in Triton: tilings, batches, bits, tables of tiles, and the oracle on small cases of every path.

On a GPU the whole matrix runs; in the interpreter, which takes about a millisecond an operation, few cases of it. What
is compiled is in test_masked_triton_compiled.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from masked_cases import CASES, EMPTY, KINDS, Case, expected, in_blocks, operands, shape_of
from torch import Tensor

pytest.importorskip("triton")

import sparsekernels as sk
from sparsekernels.ops.masked_matmul import implementations, reference, triton_config, triton_kernels, triton_tables
from sparsekernels.ops.masked_matmul import triton as implementation
from sparsekernels.testing import assert_verified

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# of the interpreter, which is numpy
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def on_device(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    a, b = (one.detach().to(DEVICE).requires_grad_() for one in operands(case, dtype))
    return a, b


def mask_of(kind: str, shape: tuple[int, ...]) -> Tensor:
    return KINDS[kind](shape).to(DEVICE)


def verify(function: Callable[..., Tensor], definition: Callable[..., Tensor], given: tuple[Tensor, ...]) -> None:
    with sk.use_backend("triton"):
        assert_verified(function, definition, given)


# Tilings and batches


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tilings(dtype: torch.dtype, precision: str, capability: tuple[int, int]) -> None:
    for rows in (1, 15, 16, 17, 64, 65, 128, 1000, 10**6):
        for columns in (1, 64, 65, 1000, 10**6):
            tiling = triton_config.product_tiling(1, rows, columns, dtype, precision, 132, capability)
            for power in (tiling.block_rows, tiling.block_columns, tiling.depth, tiling.num_warps):
                assert power & (power - 1) == 0
            assert tiling.block_rows >= 16
            assert tiling.block_columns % triton_config.WORD == 0
            assert triton_config.WORD % tiling.depth == 0
            assert tiling.block_rows < 2 * max(rows, 16)
            assert tiling.shared_bytes(dtype.itemsize) <= 131072  # what a list takes beside it fits 163 KB as well
            if capability in ((8, 6), (12, 0)):  # the stage that lists add holds no tile
                assert tiling.shared_bytes(dtype.itemsize) <= 99 * 1024
            sums = tiling.block_rows * tiling.block_columns / (32 * tiling.num_warps)
            assert sums <= 64  # registers of a thread


def test_small_results_have_a_tile_for_each_multiprocessor() -> None:
    def tiles(size: int, batches: int = 1) -> tuple[int, int]:
        tiling = triton_config.product_tiling(batches, size, size, torch.bfloat16, "ieee", 132, (9, 0))
        return tiling.block_rows, tiling.block_columns

    assert tiles(4096) == (128, 128)
    assert tiles(1024) == (64, 64)
    assert tiles(1024, 4) == (128, 128)


def test_batches_collapse() -> None:
    a, b = torch.empty(4, 5, 6, 2, 3), torch.empty(6, 3, 7)
    batches = triton_config.Batches((4, 5, 6), (a, b, None))
    assert (batches.count, batches.sizes) == (120, (20, 6))
    assert batches.strides(0) == (0, 36, 6)
    assert batches.strides(1) == (0, 0, 21)
    assert batches.strides(2) == (0, 0, 0)
    assert batches.tensors[0] is a
    one = triton_config.Batches((), (a[0, 0, 0],))
    assert (one.count, one.sizes, one.strides(0)) == (1, (1, 1), (0, 0, 0))


def test_batches_that_do_not_collapse_are_copied() -> None:
    whole = torch.randn(4, 4, 4, 4, 2, 3)
    apart = whole[::2, ::2, ::2, ::2]
    batches = triton_config.Batches(apart.shape[:-2], (apart, whole[0, 0, 0, 0]))
    copied, other = batches.tensors
    assert copied is not None
    assert other is not None
    assert torch.equal(copied, apart)
    assert other.shape == apart.shape
    assert batches.strides(0) == (0, 0, 6)
    assert triton_config.Batches((2, 2, 2), (apart[0],)).tensors[0] is not None


# Bits


@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (65, 63), (2, 70, 130), (0, 5), (5, 0)], ids=str)
def test_bits_are_those_of_the_reference(shape: tuple[int, ...]) -> None:
    mask = (torch.rand(shape) < 0.4).to(DEVICE)
    bits = reference.pack(mask)
    assert torch.equal(implementation.pack(mask), bits)
    assert torch.equal(implementation.transpose_bits(bits, shape[-1]), reference.pack(mask.mT))
    assert torch.equal(implementation.pack(mask.mT), reference.pack(mask.mT))
    assert torch.equal(implementation.transpose_bits(bits.mT.contiguous().mT, shape[-1]), reference.pack(mask.mT))


def test_bits_of_masks_that_lie_otherwise() -> None:
    row = (torch.rand(1, 70) < 0.5).to(DEVICE)
    assert torch.equal(implementation.pack(row.expand(33, 70)), reference.pack(row.expand(33, 70)))
    apart = (torch.rand(4, 4, 4, 4, 6, 10) < 0.5).to(DEVICE)[::2, ::2, ::2, ::2]
    assert torch.equal(implementation.pack(apart), reference.pack(apart))


def test_bits_of_bytes_that_are_not_one() -> None:
    """True is any byte but zero, as in a view of uint8."""
    numbers = torch.tensor([[2, 0, 4], [255, 1, 0]], dtype=torch.uint8, device=DEVICE)
    assert implementation.pack(numbers.view(torch.bool)).flatten().tolist() == [5, 3]
    assert implementation.pack_blocks(numbers.view(torch.bool), 2, 6, 1, 2).flatten().tolist() == [51, 15]


@pytest.mark.parametrize("block", [(32, 32), (24, 40), (1, 3), (200, 300)], ids=str)
def test_bits_of_blocks(block: tuple[int, int]) -> None:
    r, c = block
    blocks = (torch.rand(2, -(-77 // r), -(-90 // c)) < 0.4).to(DEVICE)
    found = implementation.pack_blocks(blocks, 77, 90, r, c)
    assert torch.equal(found, reference.pack_blocks(blocks, 77, 90, r, c))


# Tables of tiles


def flags_of(mask: Tensor, height: int, width: int) -> Tensor:
    """Tile by tile."""
    rows = []
    for i in range(0, mask.size(-2), height):
        row = []
        for j in range(0, mask.size(-1), width):
            tile = mask[..., i : i + height, j : j + width].flatten(-2)
            row.append(tile.any(-1).int() + tile.all(-1).int())
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("shape", [(130, 300), (2, 2, 40, 64)], ids=str)
def test_flags_and_lists(shape: tuple[int, ...], width: int) -> None:
    mask = in_blocks(shape, 0.3, (32, 128)) | in_blocks(shape, 0.1, (3, 5))
    mask[..., -20:, -30:] = True
    mask = mask.to(DEVICE)
    wanted = flags_of(mask, 32, width)
    flags = triton_tables.tile_flags(reference.pack(mask), shape[-1], 32, width)
    assert torch.equal(flags.int(), wanted)
    for by_columns, of_lines in ((False, wanted), (True, wanted.mT)):
        lists, counts = triton_tables.tile_lists(flags, by_columns)
        lines = zip(lists.flatten(0, -2), counts.flatten(0, -2), of_lines.flatten(0, -2), strict=True)
        for listed, (whole, some), line in lines:
            full, partial = ((line == flag).nonzero()[:, 0].tolist() for flag in (2, 1))
            assert (int(whole), int(some)) == (len(full), len(full) + len(partial))
            assert listed[: int(some)].tolist() == full + partial


@pytest.mark.parametrize("grid", [(9, 5), (20, 31)], ids=str)
def test_the_order_of_tiles(grid: tuple[int, int]) -> None:
    """Each once, those that take long first, those without a product last, rows of tiles in groups."""
    depth = 30
    flags = torch.randint(0, 3, (2, *grid), dtype=torch.uint8, device=DEVICE)
    counts = torch.randint(0, depth + 1, (grid[0], 2), dtype=torch.int32, device=DEVICE)
    tiles = list(range(grid[0] * grid[1]))
    for order, flag in zip(triton_tables.tile_order(flags, counts, grid, depth), flags, strict=True):
        assert sorted(order.tolist()) == tiles
        costs = [int(counts[tile // grid[1], 1]) * bool(flag.flatten()[tile]) for tile in order.tolist()]
        classes = [0 if cost == 0 else 1 + cost * 14 // depth for cost in costs]
        assert classes == sorted(classes, reverse=True)
    by_columns = torch.randint(0, depth + 1, (3, grid[1], 2), dtype=torch.int32, device=DEVICE)
    for order, count in zip(
        triton_tables.tile_order(None, by_columns, grid, depth, by_columns=True), by_columns, strict=True
    ):
        costs = [int(count[tile % grid[1], 1]) for tile in order.tolist()]
        classes = [0 if cost == 0 else 1 + cost * 14 // depth for cost in costs]
        assert classes == sorted(classes, reverse=True)
    (alike,) = triton_tables.tile_order(torch.ones(1, *grid, dtype=torch.uint8, device=DEVICE), None, grid, depth)
    first = min(8, grid[0])
    assert alike[:first].tolist() == [row * grid[1] for row in range(first)]


def test_tables_are_kept_while_the_bits_are_what_they_were() -> None:
    bits = reference.pack((torch.rand(40, 70) < 0.5).to(DEVICE))
    made: list[Tensor] = []

    def make() -> Tensor:
        made.append(bits.clone())
        return made[-1]

    first = triton_tables.kept_beside(bits, "one", make)
    assert triton_tables.kept_beside(bits, "one", make) is first
    assert triton_tables.kept_beside(bits, "another", make) is not first
    bits[3] = 0
    assert torch.equal(triton_tables.kept_beside(bits, "one", make), bits)
    assert len(made) == 3
    with torch.inference_mode():
        unversioned = bits.clone()
        for _ in range(2):
            triton_tables.kept_beside(unversioned, "one", make)
    assert len(made) == 5


def test_what_is_written_to_bits_counts() -> None:
    a, b = on_device(Case((10, 30), (30, 70)))
    prepared = sk.prepare_mask(mask_of("half", (10, 70)))
    with torch.no_grad():
        for _ in range(2):
            wanted = expected(a, b, prepared.to_dense())
            with sk.use_backend("triton"):
                torch.testing.assert_close(sk.masked_matmul(a, b, prepared), wanted)
            prepared.bits.zero_()


# Products


def matrix() -> list[Any]:
    """Everything on a GPU; in the interpreter, of each case one kind and one dtype in turn."""
    if DEVICE == "cuda":
        return [(case, kind, dtype) for case in CASES for kind in KINDS for dtype in DTYPES]
    kinds = [*KINDS]
    small = CASES[:7]
    return [(case, kinds[i * 3 % len(kinds)], DTYPES[i % 3]) for i, case in enumerate(small)]


@pytest.mark.parametrize(("case", "kind", "dtype"), matrix(), ids=str)
def test_mask_of_the_result(case: Case, kind: str, dtype: torch.dtype) -> None:
    mask = mask_of(kind, shape_of(case))
    verify(lambda a, b: sk.masked_matmul(a, b, mask), lambda a, b: expected(a, b, mask), on_device(case, dtype))


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        (("few", None), torch.float16),
        ((None, "blocks"), torch.float32),
        (("blocks", None), torch.bfloat16),
        (("half", "few"), torch.bfloat16),
    ],
    ids=str,
)
def test_masks_of_the_operands(kinds: tuple[str | None, str | None], dtype: torch.dtype) -> None:
    """With whole tiles of the depth, empty ones, and NaN wherever a mask leaves something out."""
    case = Case((30, 200), (200, 70))
    a_mask, b_mask = (None if kind is None else mask_of(kind, of) for kind, of in zip(kinds, case, strict=True))
    a, b = on_device(case, dtype)
    for one in (a_mask, b_mask):
        if one is not None:
            one[..., :70, 64:128] = True
            one[..., 64:128, :64] = False
    with torch.no_grad():
        for operand, of in ((a, a_mask), (b, b_mask)):
            if of is not None:
                operand.masked_fill_(~of, float("nan"))
    mask = mask_of("ragged", shape_of(case))
    verify(
        lambda a, b: sk.masked_matmul(a, b, mask, a_mask=a_mask, b_mask=b_mask),
        lambda a, b: expected(a, b, mask, a_mask, b_mask),
        (a, b),
    )


def test_strides() -> None:
    """Transposed, every other column, from an odd place on; and the gradient that comes in, transposed."""
    mask = mask_of("uneven blocks", (20, 70))
    views: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (lambda a: a.T.contiguous().T, lambda b: b.T.contiguous().T),
        (lambda a: torch.cat([a[:, :1], a], 1)[:, 1:], lambda b: b.repeat_interleave(2, 1)[:, ::2]),
    ]
    for of_a, of_b in views:
        verify(
            lambda a, b, of_a=of_a, of_b=of_b: sk.masked_matmul(of_a(a), of_b(b), mask).T.contiguous().T,
            lambda a, b: expected(a, b, mask),
            on_device(Case((20, 75), (75, 70)), torch.bfloat16),
        )


@pytest.mark.parametrize("shape", [(9,), (2, 3, 1, 9)], ids=str)
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    mask = (torch.rand(shape) < 0.5).to(DEVICE)
    verify(
        lambda a, b: sk.masked_matmul(a, b, mask),
        lambda a, b: expected(a, b, mask),
        on_device(Case((2, 1, 6, 5), (3, 5, 9))),
    )


def test_batches_of_many_dimensions() -> None:
    a, b = (torch.randn(2, 4, 2, 4, *of)[:, ::2, :, ::2].to(DEVICE) for of in ((5, 6), (6, 7)))
    mask = (torch.rand(2, 1, 2, 1, 5, 7) < 0.5).to(DEVICE)
    bits = reference.pack(mask)
    torch.testing.assert_close(
        implementation.product(a, b.transpose(0, 2).contiguous().transpose(0, 2), None, None, bits),
        expected(a, b, mask),
    )


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_nothing_to_compute(case: Case) -> None:
    mask = torch.ones(shape_of(case), dtype=torch.bool, device=DEVICE)
    a, b = on_device(case)
    with sk.use_backend("triton"):
        y = sk.masked_matmul(a, b, mask)
        y.sum().backward()
    assert torch.equal(y, torch.zeros(shape_of(case), device=DEVICE))
    for one in (a, b):
        assert one.grad is not None
        assert torch.equal(one.grad, torch.zeros_like(one))


def test_second_derivatives() -> None:
    mask = mask_of("few", (20, 30))

    def of(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def penalty(a: Tensor, b: Tensor) -> Tensor:
            gradients = torch.autograd.grad(function(a, b).square().sum(), (a, b), create_graph=True)
            return torch.stack([gradient.square().sum() for gradient in gradients])

        return penalty

    verify(
        of(lambda a, b: sk.masked_matmul(a, b, mask)),
        of(lambda a, b: expected(a, b, mask)),
        on_device(Case((20, 10), (10, 30))),
    )


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_masked_is_never_in_the_result(bad: float) -> None:
    mask = mask_of("half", (96, 96))
    mask[5], mask[:, 40:50] = False, False
    a, b = (torch.randn(of).to(DEVICE) for of in ((96, 60), (60, 96)))
    wanted = expected(a, b, mask)
    a[5], b[:, 40:50] = bad, bad
    with sk.use_backend("triton"):
        y = sk.masked_matmul(a, b, mask)
    torch.testing.assert_close(y, wanted)
    assert not y[~mask].any()


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter runs")
def test_tiles_that_masks_leave_out_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    multiply_add = triton_kernels.multiply_add

    def counted(*given: Any) -> Any:
        nonlocal count
        count += 1
        return multiply_add(*given)

    monkeypatch.setattr(triton_kernels, "multiply_add", counted)
    tile = torch.zeros(4, 5, dtype=torch.bool)
    tile[1, 2] = tile[3, 0] = tile[3, 4] = True
    mask = tile.repeat_interleave(64, 0).repeat_interleave(64, 1)
    bits = reference.pack(mask)
    half = {"dtype": torch.bfloat16}
    tiling = triton_config.product_tiling(1, 256, 320, torch.bfloat16, "ieee", 8, (8, 0))
    kept = int((flags_of(mask, tiling.block_rows, tiling.block_columns) > 0).sum())
    implementation.product(torch.randn(256, 64, **half), torch.randn(64, 320, **half), None, None, bits)
    assert count == kept < 20
    count = 0  # of the depth: every column of tiles takes those that a row of tiles keeps
    implementation.product(torch.randn(256, 320, **half), torch.randn(320, 64, **half), bits, None, None)
    assert count == int((flags_of(mask, tiling.block_rows, 64) > 0).sum())
    count = 0
    implementation.product(torch.randn(64, 256, **half), torch.randn(256, 320, **half), None, bits, None)
    assert count == int((flags_of(mask, 64, tiling.block_columns) > 0).sum())


def test_values() -> None:
    mask = sk.BlockMask((torch.rand(5, 3) < 0.5).to(DEVICE), (8, 32), (40, 90))
    a, b = (torch.randn(of).to(DEVICE) for of in ((40, 30), (30, 90)))
    wanted = expected(a, b, mask.to_dense()).flatten()[sk.prepare_mask(mask).indices]
    with sk.use_backend("triton"):
        torch.testing.assert_close(sk.masked_matmul(a, b, mask, output="values"), wanted)


def test_the_table() -> None:
    names = [row.name for row in implementations.MASKED_MATMUL.implementations]
    assert names == ["cpu", "triton", "reference"]
    a, b, mask = torch.randn(4, 5).to(DEVICE), torch.randn(5, 6).to(DEVICE), torch.ones(4, 6, dtype=torch.bool)
    assert "triton" in implementations.MASKED_MATMUL.backends(a)
    with sk.use_backend("triton"), pytest.raises(sk.BackendError, match="float32, bfloat16, float16"):
        sk.masked_matmul(a.double(), b.double(), mask.to(DEVICE))
    assert math.isclose(float(sk.masked_matmul(a, b, mask.to(DEVICE)).sum()), float((a @ b).sum()), rel_tol=1e-3)
