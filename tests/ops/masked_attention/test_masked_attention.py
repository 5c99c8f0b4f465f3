# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_attention: the oracle over masks, shapes, strides and dtypes; what is not read; bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attention_cases import CASES, DTYPES, EMPTY, KINDS, Case, expected, in_blocks, operands, shape_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.masked_attention import implementations, reference
from sparsekernels.ops.masked_matmul.mask import bits_of
from sparsekernels.testing import assert_verified

built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def verify(case: Case, mask: Tensor, dtype: torch.dtype = torch.float32, scale: float | None = None) -> None:
    assert_verified(
        lambda q, k, v: sk.masked_attention(q, k, v, mask, scale=scale),
        lambda q, k, v: expected(q, k, v, mask, scale),
        operands(case, dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients(case: Case, kind: str, dtype: torch.dtype) -> None:
    verify(case, KINDS[kind](shape_of(case)), dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_many_keys(kind: str, dtype: torch.dtype) -> None:
    """So many that the sums are scaled between runs of keys; scores that grow and fall along them."""
    mask = KINDS[kind]((40, 2500))
    q, k, v = operands(Case((40, 24), (2500, 24), 20), dtype)
    with torch.no_grad():
        k *= torch.linspace(0.2, 4, 2500).roll(700)[:, None].to(dtype)
    assert_verified(
        lambda q, k, v: sk.masked_attention(q, k, v, mask), lambda q, k, v: expected(q, k, v, mask), (q, k, v)
    )


@given(
    sizes=st.tuples(*[st.integers(1, top) for top in (70, 200, 50, 50)]),
    density=st.sampled_from([0.01, 0.1, 0.2, 0.6, 1.0]),
    block=st.sampled_from([(1, 1), (1, 1), (8, 32), (7, 13), (40, 1)]),
    dtype=st.sampled_from(DTYPES[:3]),
    scale=st.sampled_from([None, 0.0, -0.3]),
)
def test_fuzz(
    sizes: tuple[int, ...], density: float, block: tuple[int, int], dtype: torch.dtype, scale: float | None
) -> None:
    torch.manual_seed(sum(sizes))
    m, n, e, d = sizes
    verify(Case((3, m, e), (3, n, e), d), in_blocks((3, m, n), density, block), dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("kind", ["few", "half", "blocks"])
def test_strides(kind: str, dtype: torch.dtype) -> None:
    """Heads beside one another in a token, transposed, every other column; masks and gradients as well."""
    mask = KINDS[kind]((2, 70, 90))
    transposed_mask = mask.mT.contiguous().mT

    def turned(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT

    def of_heads(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    def every_other(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1)[..., ::2]

    for change in (turned, of_heads, every_other):
        assert_verified(
            lambda q, k, v, change=change: change(
                sk.masked_attention(change(q), change(k), change(v), transposed_mask)
            ),
            lambda q, k, v: expected(q, k, v, mask),
            operands(Case((2, 70, 24), (2, 90, 24), 40), dtype),
        )


@pytest.mark.parametrize("shape", [(9,), (1, 9), (6, 1), (1, 1), (2, 1, 6, 9), (2, 3, 1, 9)], ids=str)
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    verify(Case((2, 1, 6, 5), (3, 9, 5), 4), torch.rand(shape) < 0.6)


@pytest.mark.parametrize(
    "batches", [((2, 1), (3,), (2, 3)), ((2, 3), (1, 3), (2, 1)), ((), (4,), ()), ((4,), (), (4,))], ids=str
)
def test_batches_broadcast(batches: tuple[tuple[int, ...], ...]) -> None:
    of_q, of_k, of_v = batches
    batch = torch.broadcast_shapes(*batches)
    mask = torch.rand(*batch, 12, 40) < 0.4
    q, k, v = torch.randn(*of_q, 12, 8), torch.randn(*of_k, 40, 8), torch.randn(*of_v, 40, 10)
    for dtype in DTYPES[:3]:
        given = [one.to(dtype).requires_grad_() for one in (q, k, v)]
        assert_verified(
            lambda q, k, v: sk.masked_attention(q, k, v, mask), lambda q, k, v: expected(q, k, v, mask), given
        )


@pytest.mark.parametrize("mask_heads", [(), (1,), (6,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_queries(dtype: torch.dtype, mask_heads: tuple[int, ...]) -> None:
    mask = torch.rand(*mask_heads, 20, 50) < 0.3
    q, k, v = torch.randn(2, 6, 20, 16), torch.randn(2, 3, 50, 16), torch.randn(2, 3, 50, 24)
    given = [one.to(dtype).requires_grad_() for one in (q, k, v)]
    assert_verified(
        lambda q, k, v: sk.masked_attention(q, k, v, mask, enable_gqa=True),
        lambda q, k, v: expected(q, k.repeat_interleave(2, -3), v.repeat_interleave(2, -3), mask),
        given,
    )
    wanted = F.scaled_dot_product_attention(
        *given, attn_mask=mask.expand(2, *mask_heads or (1,), 20, 50), enable_gqa=True
    )
    rough = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(
        sk.masked_attention(*given, mask, enable_gqa=True), wanted, atol=rough, rtol=rough
    )  # of which kind the groups are: not how exact


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_nothing_to_compute(case: Case) -> None:
    mask = torch.ones(shape_of(case), dtype=torch.bool)
    given = operands(case)
    y = sk.masked_attention(*given, mask)
    torch.testing.assert_close(y, expected(*given, mask).nan_to_num(0))
    y.sum().backward()
    for one in given:
        assert one.grad is not None
        assert torch.isfinite(one.grad).all()
    if case.q[-1] != 0:
        assert not any(one.grad.any() for one in given[:2])  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_without_keys_is_zero(dtype: torch.dtype) -> None:
    """And as torch has it."""
    mask = torch.rand(40, 50) < 0.5
    mask[3], mask[8:24] = False, False
    q, k, v = operands(Case((40, 16), (50, 16), 16), dtype)
    with torch.no_grad():
        q[8:16] = float("nan")
    y = sk.masked_attention(q, k, v, mask)
    assert torch.equal(y[3], torch.zeros(16, dtype=dtype))
    assert torch.equal(y[8:24], torch.zeros(16, 16, dtype=dtype))
    of_torch = F.scaled_dot_product_attention(q.nan_to_num(0)[None, None], k[None, None], v[None, None], mask)
    assert torch.equal(of_torch[0, 0, 3], y[3])
    seed = torch.ones_like(y)
    seed[8:20] = float("inf")
    gradients = torch.autograd.grad(y, (q, k, v), seed)
    assert all(one.isfinite().all() for one in gradients)
    assert torch.equal(gradients[0][8:24], torch.zeros(16, 16, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kind", ["few", "half", "clusters", "full"])
def test_what_is_masked_is_not_read(kind: str, bad: float, dtype: torch.dtype) -> None:
    """Keys and values that no row sees, and some that one row alone sees: it is the only one that is changed."""
    mask = KINDS[kind]((64, 96))
    mask[:, 40:50], mask[:, 7], mask[:, 60] = False, False, False
    mask[5, 60], mask[5, 61] = True, True
    q, k, v = operands(Case((64, 24), (96, 24), 20), dtype)
    y = sk.masked_attention(q, k, v, mask)
    seed = torch.randn(64, 20).to(dtype)
    seed[5] = 0
    wanted = torch.autograd.grad(y, (q, k, v), seed)
    others = torch.arange(64) != 5
    for hit in ((k,), (v,), (k, v)):
        spoilt = [one.detach().clone() for one in (q, k, v)]
        for one, was in zip(spoilt[1:], (k, v), strict=True):
            if any(was is other for other in hit):
                one[40:50], one[7], one[60] = bad, bad, bad
        for one in spoilt:
            one.requires_grad_()
        found = sk.masked_attention(*spoilt, mask)
        torch.testing.assert_close(found[others], y[others])
        assert not torch.equal(found[5], y[5])
        unspoilt = mask.clone()
        unspoilt[5] = False
        found = sk.masked_attention(*spoilt, unspoilt)
        assert torch.equal(found[5], torch.zeros(20, dtype=dtype))
        gradients = torch.autograd.grad(found, spoilt, seed)
        torch.testing.assert_close(gradients[0][others], wanted[0][others])
        assert all(one.isfinite().all() for one in gradients)


@built
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_infinity_that_is_kept_is_where_the_reference_has_it(dtype: torch.dtype) -> None:
    """In values, which may be infinite: everywhere else the sums stay what they are."""
    mask = torch.rand(50, 70) < 0.3
    q, k, v = (one.detach() for one in operands(Case((50, 24), (70, 24), 20), dtype))
    v[3, 4], v[40, 5], v[41, 5], v[50] = float("inf"), float("-inf"), float("inf"), float("nan")
    bits = bits_of(mask)
    wanted = reference.forward(q, k, v, bits, 0.2, False)[0]
    found = implementations.forward(q, k, v, bits, 0.2, False)[0]
    assert wanted.isinf().any()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, wanted, equal_nan=True, atol=4 * eps, rtol=4 * eps)


@pytest.mark.parametrize("block", [(32, 32), (16, 2), (24, 40), (1, 1), (200, 3)], ids=str)
def test_block_masks(block: tuple[int, int]) -> None:
    r, c = block
    mask = sk.BlockMask(torch.rand(2, -(-130 // r), -(-90 // c)) < 0.3, block, (130, 90))
    dense = mask.to_dense()
    for one in (mask, sk.prepare_mask(mask), sk.prepare_mask(dense)):
        assert_verified(
            lambda q, k, v, one=one: sk.masked_attention(q, k, v, one),
            lambda q, k, v: expected(q, k, v, dense),
            operands(Case((2, 130, 50), (90, 50), 40)),
        )


@built
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (3,)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS])
def test_same_bits_for_any_number_of_threads(kind: str, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    """Whether all gradients are of one pass, or dq of one and dk and dv of another."""
    mask = KINDS[kind]((*batch, 600, 333))
    q, k, v = operands(Case((*batch, 600, 40), (333, 40), 24), dtype)
    seed = torch.randn(*batch, 600, 24).to(dtype)
    found: list[list[Tensor]] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = sk.masked_attention(q, k, v, mask)
            found.append([y.detach(), *torch.autograd.grad(y, (q, k, v), seed)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@built
def test_weights_are_exact_to_a_few_units() -> None:
    """The exponential over its whole range: of two scores, 0 and -x, the weights are in the ratio exp(-x)."""
    x = torch.cat([torch.linspace(0, 2, 5001), torch.linspace(2, 87, 20001)])
    q, k, v = x[:, None], torch.tensor([[0.0], [-1.0]]), torch.eye(2)
    bits = bits_of(torch.ones(len(x), 2, dtype=torch.bool))
    eps = torch.finfo(torch.float32).eps
    y, statistics, _ = implementations.forward(q, k, v, bits, 1.0, False)
    weights = torch.stack([torch.ones(len(x)), (-x).double().exp()], 1).double()
    truth = weights / weights.sum(1, keepdim=True)
    assert ((y.double() - truth).abs() / truth).max() <= 3 * eps  # 1.1 units each; a sum, a quotient, a product
    assert torch.equal(statistics[:, 0], torch.zeros(len(x)))
    torch.testing.assert_close(statistics[:, 1].double(), weights.sum(1), atol=0, rtol=2 * eps)
    far = implementations.forward(q + 90, k, v, bits, 1.0, False)[0]
    assert torch.equal(far[:, 1], torch.zeros(len(x)))


@built
@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_what_rounding_took(dtype: torch.dtype) -> None:
    """For training half types keep it, so that gradients are as exact as the reference's."""
    q, k, v = (one.detach() for one in operands(Case((40, 16), (50, 16), 16), dtype))
    bits = bits_of(torch.rand(40, 50) < 0.5)
    y, _, rest = implementations.forward(q, k, v, bits, 0.25, True)
    exact = implementations.forward(q.float(), k.float(), v.float(), bits, 0.25, False)[0]
    torch.testing.assert_close(y.float() + rest.float(), exact, atol=2e-5, rtol=2e-5)
    assert rest.any()
    assert implementations.forward(q, k, v, bits, 0.25, False)[2].numel() == 0


def test_an_expanded_key_has_a_gradient_of_its_own_in_each_place() -> None:
    """Where keys lie in the same memory, but are a batch."""
    mask = torch.rand(3, 20, 40) < 0.4
    verify_expanded = operands(Case((3, 20, 8), (40, 8), 8))
    assert_verified(
        lambda q, k, v: sk.masked_attention(q, k.expand(3, 40, 8), v.expand(3, 40, 8), mask),
        lambda q, k, v: expected(q, k, v, mask),
        verify_expanded,
    )
