# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_attention of up to 16 queries, as in decoding: keys are read where they lie, in parts that are merged."""

from __future__ import annotations

import pytest
import torch
from attention_cases import DTYPES, KINDS, Case, expected, in_blocks, operands
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.testing import assert_verified

built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def window(rows: int, keys: int, width: int) -> Tensor:
    """The last queries of a sequence, each with the keys before it."""
    behind = torch.arange(keys) - (keys - rows + torch.arange(rows))[:, None]
    return (behind <= 0) & (behind > -width)


def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The definition, with heads of queries that share those of keys."""
    heads = q.size(-3) // k.size(-3)
    return expected(q, k.repeat_interleave(heads, -3), v.repeat_interleave(heads, -3), mask)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "heads", "keys"), [(1, 1, 2500), (1, 6, 1024), (3, 3, 1025), (16, 4, 1100)])
def test_results(rows: int, heads: int, keys: int, kind: str, dtype: torch.dtype) -> None:
    """One mask for all heads, then one for each; scores that grow and fall along the keys."""
    for shape in ((rows, keys), (heads, rows, keys)):
        mask = KINDS[kind](shape)
        q, _, _ = operands(Case((heads, rows, 40), (1, 1, 40), 1), dtype)
        _, k, v = operands(Case((1, 1, 40), (1, keys, 40), 24), dtype)
        k = k.detach() * torch.linspace(0.2, 1.5, keys).roll(700)[:, None].to(dtype)
        assert_verified(
            lambda q, k, v, mask=mask: sk.masked_attention(q, k, v, mask, enable_gqa=True),
            lambda q, k, v, mask=mask: grouped(q, k, v, mask),
            (q.detach(), k, v.detach()),
            gradients=False,
        )


@given(
    rows=st.integers(1, 17),
    keys=st.one_of(st.integers(1, 100), st.integers(900, 2200)),
    columns=st.tuples(st.integers(1, 256), st.integers(1, 256)),
    groups=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    density=st.sampled_from([0.01, 0.1, 0.6, 1.0]),
    block=st.sampled_from([(1, 1), (1, 32), (7, 300), (40, 1)]),
    own_masks=st.booleans(),
    dtype=st.sampled_from(DTYPES[:3]),
)
def test_fuzz(
    rows: int,
    keys: int,
    columns: tuple[int, int],
    groups: tuple[int, int],
    density: float,
    block: tuple[int, int],
    own_masks: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(rows + keys + sum(columns))
    heads = groups[0] * groups[1]
    mask = in_blocks((heads, rows, keys) if own_masks else (rows, keys), density, block)
    # of a handful of outputs the reference's error, which ours is held to, may be near zero by chance
    draws = -(-64 // (heads * rows * columns[1]))
    q, k, v = (
        torch.randn(draws, count, size, cols).to(dtype)
        for count, size, cols in (
            (heads, rows, columns[0]),
            (groups[0], keys, columns[0]),
            (groups[0], keys, columns[1]),
        )
    )
    assert_verified(
        lambda *given: torch.stack(
            [sk.masked_attention(*one, mask, enable_gqa=True) for one in zip(*given, strict=True)]
        ),
        lambda *given: torch.stack([grouped(*one, mask) for one in zip(*given, strict=True)]),
        (q, k, v),
        gradients=False,
    )


@built
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_row_does_not_depend_on_its_neighbors_nor_on_threads(dtype: torch.dtype) -> None:
    q, k, v = (one.detach() for one in operands(Case((8, 1, 64), (8, 3000, 64), 64), dtype))
    mask = torch.rand(8, 1, 3000) < 0.5
    mask[:4] = mask[0]
    mask[4:] = window(1, 3000, 1500)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(sk.masked_attention(q, k[:1], v[:1], mask))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
    for head in range(8):
        alone = sk.masked_attention(q[head], k[0], v[0], mask[head])
        assert torch.equal(found[0][head], alone)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("heads", [1, 12])
def test_what_is_masked_is_not_read(heads: int, dtype: torch.dtype, bad: float) -> None:
    """Also where one row of several sees it: it is the only one that is changed."""
    mask = torch.rand(heads, 2, 2100) < 0.5
    mask[..., 1000:1100], mask[..., 7], mask[..., 2048:] = False, False, False
    mask[0, 1, 1050] = True
    q, k, v = (one.detach() for one in operands(Case((heads, 2, 40), (1, 2100, 40), 24), dtype))
    y = sk.masked_attention(q, k, v, mask)
    others = torch.ones(heads, 2, dtype=torch.bool)
    others[0, 1] = False
    for hit in ((0,), (1,), (0, 1)):
        spoilt = [k.clone(), v.clone()]
        for i in hit:
            spoilt[i][:, 1000:1100], spoilt[i][:, 7], spoilt[i][:, 2048:] = bad, bad, bad
        found = sk.masked_attention(q, *spoilt, mask)
        torch.testing.assert_close(found[others], y[others])
        assert not torch.equal(found[0, 1], y[0, 1])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_cache_that_is_not_full(dtype: torch.dtype) -> None:
    """Keys and values in a larger tensor, tokens first, behind which is what nobody wrote; queries that lie apart."""
    cache = torch.full((2, 2, 700, 2, 48), float("nan"), dtype=dtype)
    cache[:, :, :600] = torch.randn(2, 2, 600, 2, 48).to(dtype)
    k, v = (one.transpose(1, 2) for one in cache)
    q = torch.randn(2, 4, 48, 6).to(dtype)[..., ::2].mT
    mask = torch.zeros(3, 700, dtype=torch.bool)
    mask[:, :600] = window(3, 600, 257)
    mask[1] = False
    found = sk.masked_attention(q, k, v, mask, enable_gqa=True)
    wanted = sk.masked_attention(q, k[..., :600, :], v[..., :600, :], mask[:, :600], enable_gqa=True)
    assert torch.equal(found, wanted)
    assert not found[..., 1, :].any()
    assert_verified(
        lambda q, k, v: sk.masked_attention(q, k, v, mask[:, :600], enable_gqa=True),
        lambda q, k, v: grouped(q, k, v, mask[:, :600]),
        (q, k[..., :600, :], v[..., :600, :]),
        gradients=False,
    )
