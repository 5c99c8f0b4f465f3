# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_matmul: infinity and NaN under a mask do not reach the result."""

from __future__ import annotations

import pytest
import torch
from masked_cases import KINDS, Case, expected, operands
from torch import Tensor

import sparsekernels as sk
from sparsekernels.testing import assert_verified

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("kind", ["few", "half", "blocks", "full"])
def test_what_is_masked_is_never_in_the_result(kind: str, bad: float) -> None:
    """Rows and columns of infinity under the mask."""
    mask = KINDS[kind]((96, 96))
    mask[5], mask[:, 40:50], mask[70:90, :33] = False, False, False
    a, b = torch.randn(96, 60), torch.randn(60, 96)
    wanted = expected(a, b, mask)
    a[5], b[:, 40:50] = bad, bad
    y = sk.masked_matmul(a, b, mask)
    torch.testing.assert_close(y, wanted)
    assert torch.equal(y[~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["half", "blocks"])
@pytest.mark.parametrize("depth", [63, 257, 500])
def test_a_masked_row_does_not_reach_its_neighbors(depth: int, kind: str, dtype: torch.dtype) -> None:
    """Depths at which torch's own product in bfloat16 reads what stands behind the end of a row."""
    mask = KINDS[kind]((64, 257))
    mask[9] = False

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return sk.masked_matmul(a.index_fill(0, torch.tensor([9]), float("nan")), b, mask)

    assert_verified(
        ours, lambda a, b: expected(a, b, mask), operands(Case((64, depth), (depth, 257)), dtype), gradients=False
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kinds", [("half", None), (None, "half"), ("uneven blocks", "few")])
def test_what_masks_of_operands_leave_out_is_not_read(
    kinds: tuple[str | None, str | None], transposed: bool, dtype: torch.dtype
) -> None:
    """Infinity there, in matrices that lie by rows and by columns, large enough for tiles."""
    shapes = ((290, 270), (270, 330))
    a_mask, b_mask = (None if kind is None else KINDS[kind](of) for kind, of in zip(kinds, shapes, strict=True))
    mask = KINDS["blocks"]((290, 330))

    def ours(a: Tensor, b: Tensor) -> Tensor:
        a, b = (one if of is None else one.masked_fill(~of, float("inf")) for one, of in ((a, a_mask), (b, b_mask)))
        if transposed:
            a, b = a.T.contiguous().T, b.T.contiguous().T
        return sk.masked_matmul(a, b, mask, a_mask=a_mask, b_mask=b_mask)

    assert_verified(
        ours, lambda a, b: expected(a, b, mask, a_mask, b_mask), operands(Case(*shapes), dtype), gradients=False
    )
