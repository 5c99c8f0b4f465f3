# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_matmul: the oracle over masks, shapes, strides and dtypes; derivatives; bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from masked_cases import CASES, EMPTY, KINDS, Case, expected, in_blocks, operands, shape_of
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.masked_matmul import implementations, reference
from sparsekernels.testing import assert_verified

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mask_of_the_result(case: Case, kind: str, dtype: torch.dtype) -> None:
    mask = KINDS[kind](shape_of(case))
    assert_verified(lambda a, b: sk.masked_matmul(a, b, mask), lambda a, b: expected(a, b, mask), operands(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("kinds", [("few", None), (None, "few"), ("blocks", None), (None, "blocks"), ("half", "few")])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks_of_the_operands(case: Case, kinds: tuple[str | None, str | None], dtype: torch.dtype) -> None:
    """With a mask of the result, and with one that keeps all; what a mask leaves out is not read."""
    a_mask, b_mask = (None if kind is None else KINDS[kind](shape) for kind, shape in zip(kinds, case, strict=True))
    a, b = operands(case, dtype)
    with torch.no_grad():
        for one, of in ((a, a_mask), (b, b_mask)):
            if of is not None:
                one.masked_fill_(~of, float("nan"))
    for kind in ("full", "ragged"):
        mask = KINDS[kind](shape_of(case))
        assert_verified(
            lambda a, b, mask=mask: sk.masked_matmul(a, b, mask, a_mask=a_mask, b_mask=b_mask),
            lambda a, b, mask=mask: expected(a, b, mask, a_mask, b_mask),
            (a, b),
        )


@pytest.mark.parametrize("kinds", [("blocks", "uneven blocks", "blocks"), ("few", "half", "ragged")])
def test_three_masks_together(kinds: tuple[str, str, str]) -> None:
    case = Case((2, 130, 200), (200, 170))
    a_mask, b_mask, mask = (
        KINDS[kind](shape) for kind, shape in zip(kinds, (case.a, case.b, shape_of(case)), strict=True)
    )
    assert_verified(
        lambda a, b: sk.masked_matmul(a, b, mask, a_mask=a_mask, b_mask=b_mask),
        lambda a, b: expected(a, b, mask, a_mask, b_mask),
        operands(case),
    )


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_strides(kind: str, dtype: torch.dtype) -> None:
    """Transposed, every other column, from an odd place on; masks as well."""
    mask = KINDS[kind]((140, 90))
    transposed_mask = mask.T.contiguous().T
    sliced = torch.zeros(140, 180, dtype=torch.bool)
    sliced[:, ::2] = mask
    views: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]] = [
        (lambda a: a.T.contiguous().T, lambda b: b.T.contiguous().T, transposed_mask),
        (lambda a: torch.cat([a, a], 1)[:, : a.size(1)], lambda b: b.repeat_interleave(2, 1)[:, ::2], sliced[:, ::2]),
        (lambda a: torch.cat([a[:, :1], a], 1)[:, 1:], lambda b: torch.cat([b[:3], b])[3:], mask),
    ]
    for of_a, of_b, of_mask in views:
        assert_verified(
            lambda a, b, of_a=of_a, of_b=of_b, of_mask=of_mask: sk.masked_matmul(of_a(a), of_b(b), of_mask),
            lambda a, b: expected(a, b, mask),
            operands(Case((140, 75), (75, 90)), dtype),
        )


@pytest.mark.parametrize("shape", [(9,), (1, 9), (6, 1), (1, 1), (2, 1, 6, 9), (2, 3, 1, 9)], ids=str)
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.5
    assert_verified(
        lambda a, b: sk.masked_matmul(a, b, mask),
        lambda a, b: expected(a, b, mask),
        operands(Case((2, 1, 6, 5), (3, 5, 9))),
    )


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_nothing_to_compute(case: Case) -> None:
    mask = torch.ones(shape_of(case), dtype=torch.bool)
    a, b = operands(case)
    y = sk.masked_matmul(a, b, mask)
    assert torch.equal(y, torch.zeros(shape_of(case)))
    y.sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros(case.a))
    assert b.grad is not None
    assert torch.equal(b.grad, torch.zeros(case.b))


def test_many_products_in_a_sum() -> None:
    """Of a deep product torch's own is masked: packed, its columns would fit no cache."""
    mask = torch.rand(5, 7) < 0.3
    assert_verified(
        lambda a, b: sk.masked_matmul(a, b, mask),
        lambda a, b: expected(a, b, mask),
        operands(Case((5, 2**17 + 5), (2**17 + 5, 7))),
    )


@pytest.mark.parametrize("depth", [255, 256, 257, 513, 1100])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_sums_that_are_packed_in_pieces(depth: int, dtype: torch.dtype) -> None:
    """Around the number of rows of b that are packed at a time; with tiles and panels that are cut off."""
    mask = in_blocks((77, 1100), 0.15, (16, 48))
    assert_verified(
        lambda a, b: sk.masked_matmul(a, b, mask),
        lambda a, b: expected(a, b, mask),
        operands(Case((77, depth), (depth, 1100)), dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("depth", [2, 300])
@pytest.mark.parametrize("widths", [(640, 390), (390, 640)], ids=str)
def test_parts_of_unlike_widths(widths: tuple[int, int], depth: int, dtype: torch.dtype) -> None:
    """One thread, and kept tiles of which the narrower half of the columns has as many as the wider one: what a part
    needs to work in is not always the most where it is the widest. Sanitizers see what it writes beyond that."""
    halves = []
    for width in widths:
        row, tile = torch.arange(33)[:, None] // 8, torch.arange(width)[None] // 32
        halves.append((row + tile) % (10 if width == max(widths) else 6) == 0)
    mask = torch.cat(halves, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert_verified(
            lambda a, b: sk.masked_matmul(a, b, mask),
            lambda a, b: expected(a, b, mask),
            operands(Case((33, depth), (depth, 1030)), dtype),
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_float_mask_multiplies(dtype: torch.dtype) -> None:
    mask = (torch.randn(20, 30) * (torch.rand(20, 30) < 0.5)).to(dtype).requires_grad_()

    def definition(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        return expected(a, b, torch.ones(20, 30, dtype=torch.bool)) * mask

    assert_verified(sk.masked_matmul, definition, (*operands(Case((20, 40), (40, 30)), dtype), mask))


@pytest.mark.parametrize("block", [(32, 32), (16, 2), (24, 40), (1, 1), (200, 3)], ids=str)
def test_block_masks(block: tuple[int, int]) -> None:
    r, c = block
    blocks = torch.rand(2, -(-130 // r), -(-90 // c)) < 0.3
    mask = sk.BlockMask(blocks, block, (130, 90))
    assert mask.shape == (2, 130, 90)
    prepared = sk.prepare_mask(mask)
    for one in (mask, prepared):
        dense = one.to_dense()
        assert torch.equal(dense, in_dense(blocks, block, (130, 90)))
        assert_verified(
            lambda a, b, one=one: sk.masked_matmul(a, b, one),
            lambda a, b, dense=dense: expected(a, b, dense),
            operands(Case((2, 130, 50), (50, 90))),
        )


def in_dense(blocks: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Element by element."""
    rows, columns = (torch.arange(size) // step for size, step in zip(shape, block, strict=True))
    return blocks[..., rows[:, None], columns]


def test_a_prepared_mask_is_a_copy() -> None:
    for mask in (torch.rand(8, 8) < 0.5, sk.BlockMask(torch.rand(4, 4) < 0.5, (2, 2), (8, 8))):
        prepared = sk.prepare_mask(mask)
        before = prepared.to_dense()
        (mask.blocks if isinstance(mask, sk.BlockMask) else mask).logical_not_()
        assert torch.equal(prepared.to_dense(), before)
        assert torch.equal(before.flatten().nonzero()[:, 0], prepared.indices.sort().values)


@pytest.mark.parametrize("masks", ["of the result", "of all"])
def test_derivatives(masks: str) -> None:
    mask = torch.rand(2, 5, 9) < 0.5
    others = {} if masks == "of the result" else {"a_mask": torch.rand(5, 7) < 0.5, "b_mask": torch.rand(7, 9) < 0.5}
    a = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    b = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)

    def function(a: Tensor, b: Tensor) -> Tensor:
        return sk.masked_matmul(a, b, mask, **others)

    assert torch.autograd.gradcheck(function, (a, b))
    assert torch.autograd.gradgradcheck(function, (a, b))
    factor = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda *of: sk.masked_matmul(*of), (a, b, factor))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a.detach(), torch.ones_like(a))
        _, tangent = torch.autograd.forward_ad.unpack_dual(function(dual, b.detach()))
        torch.testing.assert_close(tangent, function(torch.ones_like(a), b).detach())


def test_second_derivatives_of_the_kernels() -> None:
    mask = torch.rand(40, 50) < 0.2

    def of(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def penalty(a: Tensor, b: Tensor) -> Tensor:
            gradients = torch.autograd.grad(function(a, b).square().sum(), (a, b), create_graph=True)
            return torch.stack([gradient.square().sum() for gradient in gradients])

        return penalty

    assert_verified(
        of(lambda a, b: sk.masked_matmul(a, b, mask)),
        of(lambda a, b: expected(a, b, mask)),
        operands(Case((40, 30), (30, 50))),
    )


@built
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_any_number_of_threads(kind: str, dtype: torch.dtype) -> None:
    mask = KINDS[kind]((520, 300))
    a, b = operands(Case((520, 333), (333, 300)), dtype)
    found: list[list[Tensor]] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = sk.masked_matmul(a, b, mask)
            found.append([y.detach(), *torch.autograd.grad(y, (a, b), torch.ones_like(y))])
    finally:
        torch.set_num_threads(before)
    if kind in ("full", "half", "ragged", "causal"):
        return  # of torch's own product, whose bits are torch's business
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@built
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (65, 63), (2, 70, 200), (0, 5), (5, 0)], ids=str)
def test_bits_are_those_of_the_reference(shape: tuple[int, ...]) -> None:
    for density in (0.0, 0.3, 1.0):
        mask = torch.rand(shape) < density
        bits = implementations.pack(mask)
        assert torch.equal(bits, reference.pack(mask))
        assert torch.equal(reference.unpack(bits, shape[-1]), mask)
        assert torch.equal(implementations.transpose_bits(bits, shape[-1]), reference.pack(mask.mT))


def test_compiled() -> None:
    mask, blocks = torch.rand(20, 30) < 0.3, sk.BlockMask(torch.rand(5, 3) < 0.5, (4, 10), (20, 30))
    a, b = operands(Case((2, 20, 40), (40, 30)))
    for one in (mask, blocks, sk.prepare_mask(mask)):
        function = torch.compile(lambda a, b, one=one: sk.masked_matmul(a, b, one), fullgraph=True)
        found, wanted = function(a, b), sk.masked_matmul(a, b, one)
        assert torch.equal(found, wanted)
        gradients = [torch.autograd.grad(y, (a, b), torch.ones_like(y)) for y in (found, wanted)]
        assert all(map(torch.equal, *gradients))


def test_vmap() -> None:
    mask = torch.rand(4, 20, 30) < 0.3
    a, b = torch.randn(4, 20, 40), torch.randn(40, 30)
    wanted = sk.masked_matmul(a, b, mask)
    found = torch.vmap(sk.masked_matmul, (0, None, 0))(a, b, mask)
    torch.testing.assert_close(found, wanted)
    per_sample = torch.vmap(torch.func.grad(lambda b, a, m: sk.masked_matmul(a, b, m).sum()), (None, 0, 0))(b, a, mask)
    each = [torch.func.grad(lambda b, i=i: sk.masked_matmul(a[i], b, mask[i]).sum())(b) for i in range(4)]
    torch.testing.assert_close(per_sample, torch.stack(each))


def test_autocast() -> None:
    a, b = operands(Case((20, 40), (40, 30)))
    mask = torch.rand(20, 30) < 0.3
    with torch.autocast("cpu", torch.bfloat16):
        y = sk.masked_matmul(a, b, mask)
        assert torch.equal(sk.masked_matmul(a, b.bfloat16(), mask), y)
        assert torch.equal(sk.masked_matmul(a.bfloat16(), b, mask.float()), y)
        layer = sk.nn.MaskedLinear(40, 30)
        factors = torch.rand(30, 40)
        assert torch.equal(layer(a, factors.bfloat16()), layer(a.bfloat16(), factors))
    assert torch.equal(y, sk.masked_matmul(a.bfloat16(), b.bfloat16(), mask))
    y.sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float32


@built
def test_backends() -> None:
    a, b, mask = torch.randn(4, 5), torch.randn(5, 6), torch.rand(4, 6) < 0.5
    prepared = sk.prepare_mask(mask)
    with sk.use_backend("reference"):
        wanted = sk.masked_matmul(a, b, mask)
        assert torch.equal(sk.masked_matmul(a, b, prepared), wanted)
    torch.testing.assert_close(sk.masked_matmul(a, b, prepared), wanted)
    with sk.use_backend("cpu"):
        torch.testing.assert_close(sk.masked_matmul(a, b, mask), wanted)
        with pytest.raises(sk.BackendError, match="float64"):
            sk.masked_matmul(a.double(), b.double(), mask)


def test_values_keep_their_gradient_at_infinity() -> None:
    """What is masked has no gradient, whatever the gradient that comes in says."""
    a, b = operands(Case((6, 5), (5, 7)))
    mask = in_blocks((6, 7), 0.5, (2, 2))
    y = sk.masked_matmul(a, b, mask)
    gradient = torch.where(mask, 1.0, float("nan"))
    for found, wanted in zip(
        torch.autograd.grad(y, (a, b), gradient),
        torch.autograd.grad(expected(a, b, mask), (a, b), torch.where(mask, 1.0, 0.0)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_masks_alone_are_mapped() -> None:
    a, b = torch.randn(20, 40), torch.randn(40, 30)
    masks = {
        "mask": torch.rand(4, 20, 30) < 0.3,
        "a_mask": torch.rand(4, 20, 40) < 0.3,
        "b_mask": torch.rand(4, 40, 30) < 0.3,
    }
    for name, mapped in masks.items():

        def product(one: Tensor, name: str = name) -> Tensor:
            given = {"mask": torch.ones(20, 30, dtype=torch.bool), name: one}
            return sk.masked_matmul(a, b, given.pop("mask"), **given)  # type: ignore[arg-type]

        torch.testing.assert_close(torch.vmap(product)(mapped), torch.stack([product(one) for one in mapped]))


def test_a_block_larger_than_the_matrix() -> None:
    for block in ((10, 10), (2**40, 3), (2**62, 2**62)):
        counts = [-(-size // step) for size, step in zip((5, 7), block, strict=True)]
        mask = sk.BlockMask(torch.ones(counts, dtype=torch.bool), block, (5, 7))
        a, b = torch.randn(5, 6), torch.randn(6, 7)
        torch.testing.assert_close(sk.masked_matmul(a, b, mask), a @ b)
        assert mask.to_dense().all()
        values = sk.masked_matmul(a, b, mask, output="values")
        assert values.numel() == 35
