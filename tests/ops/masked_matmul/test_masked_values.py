# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_matmul: results as the values of a format."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from masked_cases import Case, expected, operands
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.masked_matmul import op
from sparsekernels.testing import assert_verified, compare


def test_values_of_a_mask_are_in_the_order_of_unstructured() -> None:
    mask = torch.rand(33, 20) < 0.3
    pattern = sk.Unstructured.of_mask(mask)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        values = sk.masked_matmul(a, b, mask, output="values")
        assert torch.equal(pattern.with_values(values).to_dense(), sk.masked_matmul(a, b, mask))
        assert torch.equal(values, sk.masked_matmul(a, b, sk.prepare_mask(mask), output="values"))
        return values

    assert_verified(ours, lambda a, b: expected(a, b, mask)[mask], operands(Case((33, 9), (9, 20))))
    batched = sk.masked_matmul(torch.randn(4, 33, 9), torch.randn(9, 20), mask, output="values")
    assert batched.shape == (4, pattern.nnz)
    weights = torch.randn(33, 20) * mask
    of_floats = sk.masked_matmul(torch.ones(33, 1), torch.ones(1, 20), weights, output="values")
    assert torch.equal(of_floats, weights[weights != 0])


def test_values_of_blocks_are_block_after_block() -> None:
    blocks = torch.tensor([[True, False, True], [False, True, True]])
    mask = sk.BlockMask(blocks, (2, 3), (3, 8))  # the lower blocks have one row, those on the right two columns
    a, b = torch.arange(3.0)[:, None] * 10, torch.ones(1, 8)
    a = torch.cat([a, torch.ones(3, 1)], 1)
    b = torch.cat([b, torch.arange(8.0)[None]])  # element (i, j) is 10 i + j
    wanted = [0, 1, 2, 10, 11, 12, 6, 7, 16, 17, 23, 24, 25, 26, 27]
    for one in (mask, sk.prepare_mask(mask)):
        assert sk.masked_matmul(a, b, one, output="values").tolist() == wanted


@pytest.mark.parametrize("kind", ["elements", "blocks", "floats"])
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_values_of_large_products_are_taken_some_rows_at_a_time(
    kind: str, batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values and gradients, and no more memory than some rows of the product need."""
    mask: Any = torch.rand(50, 37) < 0.3
    mask[10:25] = False
    if kind == "floats":
        mask = torch.randn(50, 37) * mask
    if kind == "blocks":
        mask = sk.BlockMask(torch.rand(8, 5) < 0.4, (7, 8), (50, 37))
    a, b = torch.randn(*batch, 50, 20, requires_grad=True), torch.randn(20, 37, requires_grad=True)
    a_mask = torch.rand(50, 20) < 0.5
    results: list[Any] = []
    shapes: list[tuple[int, ...]] = []
    product = op.gradients.masked_product

    class Watched:
        def __call__(self, *given: Any) -> Tensor:
            y: Tensor = product(*given)
            shapes.append(tuple(y.shape))
            return y

        def __getattr__(self, name: str) -> Any:
            return getattr(product, name)

    monkeypatch.setattr(op.gradients, "masked_product", Watched())
    for most in (1 << 24, 37 * 16 * math.prod(batch), 1):
        monkeypatch.setattr(op, "_MOST_OF_VALUES", most)
        shapes.clear()
        for one in (mask,) if kind == "floats" else (mask, sk.prepare_mask(mask)):
            values = sk.masked_matmul(a, b, one, a_mask=a_mask, output="values")
            results.append((values, *torch.autograd.grad(values.square().sum(), (a, b))))
        rows = {1 << 24: 50, 1: 7 if kind == "blocks" else 1}.get(most, 14 if kind == "blocks" else 16)
        assert max(shape[-2] for shape in shapes) == rows
    wide = a.double().detach().requires_grad_(), b.double().detach().requires_grad_()
    if kind == "floats":
        mask = mask.double()
    values = sk.masked_matmul(*wide, mask, a_mask=a_mask, output="values")
    truth = (values.detach(), *torch.autograd.grad(values.square().sum(), wide))
    for result in results[1:]:
        for name, *compared in zip(
            ("values", "gradient of a", "gradient of b"), result, truth, results[0], strict=True
        ):
            comparison = compare(name, *compared)
            assert comparison.passed, comparison


@pytest.mark.parametrize("kind", ["elements", "blocks"])
def test_a_mask_that_was_prepared_in_inference_mode_can_be_trained_with(kind: str) -> None:
    """What it keeps is saved for the backward pass."""
    mask: Any = torch.rand(50, 37) < 0.3
    if kind == "blocks":
        mask = sk.BlockMask(torch.rand(8, 5) < 0.4, (7, 8), (50, 37))
    a, b = torch.randn(50, 20, requires_grad=True), torch.randn(20, 37, requires_grad=True)
    with torch.inference_mode():
        inside = sk.prepare_mask(mask)
        assert inside.indices.numel() > 0
    assert not inside.bits.is_inference()
    found = []
    for prepared in (sk.prepare_mask(mask), inside):
        dense, values = (sk.masked_matmul(a, b, prepared, output=output) for output in ("dense", "values"))
        found.append((dense, values, *torch.autograd.grad(dense.square().sum() + values.sum(), (a, b))))
    for before, after in zip(*found, strict=True):
        assert torch.equal(before, after)
