# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_attention in Triton: tilings, and the oracle on small cases of every path.

On a GPU the whole matrix runs; in the interpreter, which takes about a millisecond an operation, few cases of it. What
is compiled is in test_attention_triton_compiled.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import CASES, EMPTY, KINDS, Case, expected, operands, shape_of
from torch import Tensor

pytest.importorskip("triton")

import sparsekernels as sk
from sparsekernels.ops.masked_attention import implementations, reference, triton_config
from sparsekernels.ops.masked_attention import triton as implementation
from sparsekernels.ops.masked_matmul.mask import bits_of
from sparsekernels.ops.masked_matmul.triton_config import has_little_memory
from sparsekernels.testing import assert_verified, compare

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = (FP32, BF16, FP16)

# of the interpreter, which is numpy
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide by zero|All-NaN).* encountered:RuntimeWarning")


def on_device(case: Case, dtype: torch.dtype = FP32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (one.detach().to(DEVICE).requires_grad_() for one in operands(case, dtype))
    return q, k, v


def mask_of(kind: str, shape: tuple[int, ...]) -> Tensor:
    return KINDS[kind](shape).to(DEVICE)


def verify(case: Case, mask: Tensor, dtype: torch.dtype = FP32, scale: float | None = None) -> None:
    with sk.use_backend("triton"):
        assert_verified(
            lambda q, k, v: sk.masked_attention(q, k, v, mask, scale=scale),
            lambda q, k, v: expected(q, k, v, mask, scale),
            on_device(case, dtype),
        )


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tilings(dtype: torch.dtype, precision: str, capability: tuple[int, int]) -> None:
    for tiling_of in (triton_config.forward_tiling, triton_config.queries_tiling, triton_config.keys_tiling):
        for rows in (1, 16, 17, 1000):
            for columns in ((1, 1), (64, 64), (80, 16), (128, 128), (16, 256), (256, 200)):
                tiling = tiling_of(rows, *columns, dtype, precision, capability)
                for power in (tiling.rows, tiling.keys, tiling.q_step, tiling.v_step, tiling.num_warps):
                    assert power & (power - 1) == 0
                assert tiling.rows >= 16
                assert tiling.keys in (16, 32, 64)  # parts of a word
                for padded, step, given in (
                    (tiling.q_columns, tiling.q_step, columns[0]),
                    (tiling.v_columns, tiling.v_step, columns[1]),
                ):
                    assert given <= padded < 2 * max(16, given)
                    assert padded % step == 0
                if isinstance(tiling, triton_config.KeysTiling):
                    assert tiling.tile_rows % tiling.rows == 0


@pytest.mark.parametrize("columns", [64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (12, 0), (12, 1)])
def test_tilings_fit_99_kb(capability: tuple[int, int], dtype: torch.dtype, columns: int) -> None:
    """What a program holds of its own operands, and what is on its way, of those that are not read in steps."""
    for tiling_of in (triton_config.queries_tiling, triton_config.keys_tiling):
        tiling = tiling_of(1000, columns, columns, dtype, "tf32", capability)
        own, others = tiling.rows, tiling.keys
        if isinstance(tiling, triton_config.KeysTiling):
            own, others = others, own
        whole = sum(
            padded
            for padded, step in ((tiling.q_columns, tiling.q_step), (tiling.v_columns, tiling.v_step))
            if padded == step
        )
        assert (own + others * tiling.num_stages) * whole * dtype.itemsize <= 99 * 1024
        if columns == 256:
            assert whole == 0
    assert has_little_memory(capability)


@pytest.mark.parametrize("capability", [(8, 0), (8, 7), (9, 0), (10, 0), (10, 3), (11, 0)])
def test_what_has_more_shared_memory(capability: tuple[int, int]) -> None:
    assert not has_little_memory(capability)
    assert triton_config.queries_tiling(1000, 128, 128, FP32, "tf32", capability).num_stages == 2


def matrix() -> list[Any]:
    if DEVICE == "cuda":
        return [(case, kind, dtype) for case in CASES for kind in KINDS for dtype in DTYPES]
    return [
        (Case((64, 64), (64, 64), 64), "half", BF16),
        (Case((1, 1), (1, 1), 1), "full", FP16),
        (Case((1, 40), (150, 40), 7), "causal", BF16),
        (Case((70, 1), (1, 1), 5), "half", FP16),  # rows with a single key, whose gradient is zero
        (Case((33, 17), (130, 17), 33), "band", FP16),
        (Case((9, 17), (70, 17), 18), "uneven blocks", FP32),
        (Case((2, 2, 20, 9), (2, 1, 40, 9), 12), "half", BF16),
        (Case((10, 200), (30, 200), 256), "half", BF16),
        (Case((100, 270), (90, 270), 260), "few", BF16),  # of the reference
        (Case((40, 8), (50, 8), 8), "empty", BF16),
    ]


@pytest.mark.parametrize(("case", "kind", "dtype"), matrix(), ids=str)
def test_results_and_gradients(case: Case, kind: str, dtype: torch.dtype) -> None:
    verify(case, mask_of(kind, shape_of(case)), dtype)


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_scales(scale: float) -> None:
    verify(Case((20, 8), (40, 8), 8), mask_of("half", (20, 40)), BF16, scale)


def test_scores_that_grow_along_the_keys() -> None:
    """So that sums are scaled from tile to tile, in whole ones and in others."""
    mask = mask_of("half", (10, 200))
    mask[:, 64:128] = True
    q, k, v = on_device(Case((10, 24), (200, 24), 20), BF16)
    with torch.no_grad():
        k *= torch.linspace(0.2, 4, 200, device=DEVICE).roll(100)[:, None].to(k.dtype)
    with sk.use_backend("triton"):
        assert_verified(
            lambda q, k, v: sk.masked_attention(q, k, v, mask), lambda q, k, v: expected(q, k, v, mask), (q, k, v)
        )


def test_strides() -> None:
    """Heads beside one another in a token, every other column; the gradient that comes in as well."""
    mask = mask_of("blocks", (2, 20, 70)).mT.contiguous().mT

    def of_heads(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    def every_other(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1)[..., ::2]

    for change in (of_heads, every_other):
        with sk.use_backend("triton"):
            assert_verified(
                lambda q, k, v, change=change: change(sk.masked_attention(change(q), change(k), change(v), mask)),
                lambda q, k, v: expected(q, k, v, mask),
                on_device(Case((2, 20, 24), (2, 70, 24), 20), BF16),
            )


@pytest.mark.parametrize("batches", [((2, 2), (1, 2), (2, 1)), ((2,), (), (2,))], ids=str)
def test_batches_broadcast(batches: tuple[tuple[int, ...], ...]) -> None:
    of_q, of_k, of_v = batches
    mask = (torch.rand(*torch.broadcast_shapes(*batches), 5, 10) < 0.4).to(DEVICE)
    sizes = (*of_q, 5, 8), (*of_k, 10, 8), (*of_v, 10, 10)
    given = [torch.randn(size).to(DEVICE, BF16).requires_grad_() for size in sizes]
    with sk.use_backend("triton"):
        assert_verified(
            lambda q, k, v: sk.masked_attention(q, k, v, mask), lambda q, k, v: expected(q, k, v, mask), given
        )


@pytest.mark.parametrize("is_copied", [False, True])
@pytest.mark.parametrize("mask_heads", [(), (4,)], ids=str)
def test_grouped_queries(mask_heads: tuple[int, ...], is_copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as if the batches did not collapse."""
    if is_copied:
        monkeypatch.setattr(implementation, "BATCH_DIMS", 0)
    mask = (torch.rand(*mask_heads, 10, 40) < 0.3).to(DEVICE)
    sizes = (1, 4, 10, 16), (1, 2, 40, 16), (1, 2, 40, 24)
    given = [torch.randn(size).to(DEVICE, BF16).requires_grad_() for size in sizes]
    with sk.use_backend("triton"):
        assert_verified(
            lambda q, k, v: sk.masked_attention(q, k, v, mask, enable_gqa=True),
            lambda q, k, v: expected(q, k.repeat_interleave(2, -3), v.repeat_interleave(2, -3), mask),
            given,
        )


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_nothing_to_compute(case: Case) -> None:
    mask = torch.ones(shape_of(case), dtype=torch.bool, device=DEVICE)
    given = on_device(case)
    with sk.use_backend("triton"):
        y = sk.masked_attention(*given, mask)
        torch.testing.assert_close(y, expected(*given, mask).nan_to_num(0))
        y.sum().backward()
    for one in given:
        assert one.grad is not None
        assert torch.isfinite(one.grad).all()


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_statistics_and_what_rounding_took(dtype: torch.dtype) -> None:
    mask = mask_of("half", (20, 70))
    mask[3] = False
    q, k, v = (one.detach() for one in on_device(Case((20, 16), (70, 16), 16), dtype))
    bits = bits_of(mask)
    y, statistics, rest = implementation.forward(q, k, v, bits, 0.25, True)
    truth = reference.forward(q.double(), k.double(), v.double(), bits, 0.25, True)
    baseline = reference.forward(q.float(), k.float(), v.float(), bits, 0.25, True)
    assert compare("statistics", statistics, truth[1], baseline[1]).passed
    assert rest.any()
    torch.testing.assert_close((y.double() + rest.double()), truth[0], atol=2e-5, rtol=2e-5)
    assert implementation.forward(q, k, v, bits, 0.25, False)[2].numel() == 0


def test_a_row_without_keys_is_zero() -> None:
    """And neither its query nor the gradient that comes in is read."""
    mask = mask_of("half", (40, 50))
    mask[3], mask[8:24] = False, False
    q, k, v = on_device(Case((40, 16), (50, 16), 16), BF16)
    with torch.no_grad():
        q[8:16] = float("nan")
    with sk.use_backend("triton"):
        y = sk.masked_attention(q, k, v, mask)
        assert not y[3].any()
        assert not y[8:24].any()
        seed = torch.ones_like(y)
        seed[8:20] = float("inf")
        gradients = torch.autograd.grad(y, (q, k, v), seed)
    assert all(one.isfinite().all() for one in gradients)
    assert not gradients[0][8:24].any()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("kind", ["half", "full"])
def test_what_is_masked_is_not_read(kind: str, bad: float) -> None:
    """Keys and values that no row sees, and one that one row alone sees: it is the only one that is changed."""
    mask = mask_of(kind, (30, 96))
    mask[:, 40:50], mask[:, 60] = False, False
    mask[5, 60], mask[5, 61] = True, True
    q, k, v = on_device(Case((30, 24), (96, 24), 20), BF16)
    others = torch.arange(30, device=DEVICE) != 5
    with sk.use_backend("triton"):
        y = sk.masked_attention(q, k, v, mask)
        spoilt = [q.detach(), k.detach().clone(), v.detach().clone()]
        for one in spoilt[1:]:
            one[40:50], one[60] = bad, bad
            one.requires_grad_()
        found = sk.masked_attention(*spoilt, mask)
        torch.testing.assert_close(found[others], y[others])
        assert not torch.equal(found[5], y[5])
        mask[5] = False
        found = sk.masked_attention(*spoilt, mask)
        assert not found[5].any()
        gradients = torch.autograd.grad(found, spoilt[1:], torch.ones_like(found))
    assert all(one.isfinite().all() for one in gradients)


def test_infinity_that_is_kept_is_where_the_reference_has_it() -> None:
    """In values, and in the gradient that comes in: everywhere else sums stay what they are."""
    mask = mask_of("half", (20, 70))
    q, k, v = (one.detach() for one in on_device(Case((20, 24), (70, 24), 20)))
    seed = torch.randn(20, 20, device=DEVICE)
    v[3, 4], v[40, 5], v[41, 5], v[50] = float("inf"), float("-inf"), float("inf"), float("nan")
    bits = bits_of(mask)
    wanted = reference.forward(q, k, v, bits, 0.2, False)[0]
    found, statistics, rest = implementation.forward(q, k, v, bits, 0.2, False)
    assert wanted.isinf().any()
    torch.testing.assert_close(found, wanted, equal_nan=True, atol=1e-5, rtol=1e-5)
    v = v.nan_to_num(0, 0, 0)
    seed[7, 3], seed[8, 9] = float("inf"), float("nan")
    found, statistics, rest = implementation.forward(q, k, v, bits, 0.2, False)
    of_ours = implementation.backward(seed, q, k, v, bits, found, statistics, rest, 0.2)
    of_reference = reference.backward(seed, q, k, v, bits, found, statistics, rest, 0.2)
    assert of_reference[2].isinf().any()
    torch.testing.assert_close(of_ours[2], of_reference[2], equal_nan=True, atol=1e-5, rtol=1e-5)
    for one, other in zip(of_ours[:2], of_reference[:2], strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


@pytest.mark.parametrize("kind", ["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_in_tiles_that_are_kept_whole(dtype: torch.dtype, kind: str) -> None:
    """Where weights, and what rounding took from them, may be zero."""
    mask = mask_of(kind, (2, 20, 128))
    mask[..., :64] = True
    q, k, v = (one.detach() for one in on_device(Case((2, 20, 16), (128, 16), 20), dtype))
    k, v = k.expand(2, 128, 16), v.expand(2, 128, 20)
    q = q * torch.linspace(0.1, 40, 20, device=DEVICE)[:, None].to(dtype)  # some weights are zero, of all types
    bits = bits_of(mask)
    seed = torch.randn(2, 20, 20, device=DEVICE).to(dtype)
    spoilt, spoilt_seed = v.clone(), seed.clone()
    spoilt[0, 7, 2], spoilt[0, 8, 3] = float("inf"), float("-inf")
    spoilt[0, 9, 5], spoilt[0, 10, 5], spoilt[0, 11, 6] = float("inf"), float("-inf"), float("nan")
    spoilt_seed[1, 3, 4], spoilt_seed[1, 5, 6], spoilt_seed[1, 7, 8] = float("inf"), float("-inf"), float("nan")
    tolerance = {FP32: 1e-4, BF16: 2e-2, FP16: 2e-3}[dtype]

    def check(found: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(found, wanted, equal_nan=True, atol=tolerance, rtol=tolerance)

    wanted = reference.forward(q, k, spoilt, bits, 0.2, True)
    found = implementation.forward(q, k, spoilt, bits, 0.2, True)
    assert wanted[0].isinf().any()
    check(found[0], wanted[0])
    assert found[2].isfinite().all()
    y, statistics, rest = implementation.forward(q, k, v, bits, 0.2, True)
    # of heads that have keys of their own, and of two that share them
    for keys, values in ((k, v), (k[:1], v[:1])):
        of_ours = implementation.backward(spoilt_seed, q, keys, values, bits, y, statistics, rest, 0.2)
        of_reference = reference.backward(spoilt_seed, q, keys, values, bits, y, statistics, rest, 0.2)
        assert of_reference[2].isinf().any()
        check(of_ours[2], of_reference[2])
        for one, other in zip(of_ours[:2], of_reference[:2], strict=True):
            assert torch.equal(one.isfinite(), other.isfinite())


def test_second_derivatives() -> None:
    mask = mask_of("half", (10, 20))
    mask[7] = False

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def penalty(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            gradients = torch.autograd.grad(function(q, k, v).float().square().sum(), (q, k, v), create_graph=True)
            return torch.stack([gradient.float().square().sum() for gradient in gradients])

        return penalty

    with sk.use_backend("triton"):
        assert_verified(
            of(lambda q, k, v: sk.masked_attention(q, k, v, mask)),
            of(lambda q, k, v: expected(q, k, v, mask)),
            on_device(Case((10, 8), (20, 8), 8), BF16),
        )


def test_the_table() -> None:
    names = [row.name for row in implementations.MASKED_ATTENTION.implementations]
    assert names == ["cpu", "triton", "reference"]
    q = torch.randn(4, 5, device=DEVICE)
    mask = torch.ones(4, 4, dtype=torch.bool, device=DEVICE)
    assert "triton" in implementations.MASKED_ATTENTION.backends(q)
    with sk.use_backend("triton"), pytest.raises(sk.BackendError, match="float32, bfloat16, float16"):
        sk.masked_attention(q.double(), q.double(), q.double(), mask)
