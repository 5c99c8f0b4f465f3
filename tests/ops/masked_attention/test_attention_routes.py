# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_attention in other ways of being called: derivatives, compiled, vmap, autocast, fake tensors, backends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attention_cases import DTYPES, KINDS, Case, expected, operands
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.masked_attention import reference
from sparsekernels.ops.masked_matmul.mask import bits_of
from sparsekernels.testing import assert_verified

built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@pytest.mark.parametrize("of_keys", [(2,), ()], ids=str)
def test_derivatives(of_keys: tuple[int, ...]) -> None:
    mask = torch.rand(2, 5, 9) < 0.5
    mask[0, 1] = False
    sizes = (2, 5, 3), (*of_keys, 9, 3), (*of_keys, 9, 4)
    given = tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sk.masked_attention(q, k, v, mask)

    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)
    with torch.autograd.forward_ad.dual_level():
        q, k, v = (one.detach() for one in given)
        dual = torch.autograd.forward_ad.make_dual(v, torch.ones_like(v))
        _, tangent = torch.autograd.forward_ad.unpack_dual(function(q, k, dual))
        torch.testing.assert_close(tangent, function(q, k, torch.ones_like(v)))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_second_derivatives_of_the_kernels(dtype: torch.dtype) -> None:
    mask = torch.rand(40, 50) < 0.3
    mask[7] = False

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def penalty(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            gradients = torch.autograd.grad(function(q, k, v).float().square().sum(), (q, k, v), create_graph=True)
            return torch.stack([gradient.float().square().sum() for gradient in gradients])

        return penalty

    assert_verified(
        of(lambda q, k, v: sk.masked_attention(q, k, v, mask)),
        of(lambda q, k, v: expected(q, k, v, mask)),
        operands(Case((40, 20), (50, 20), 30), dtype),
    )


def test_only_what_needs_one_has_a_gradient() -> None:
    mask = torch.rand(20, 30) < 0.3
    for chosen in range(3):
        given = [one.detach() for one in operands(Case((20, 8), (30, 8), 8))]
        given[chosen].requires_grad_()
        sk.masked_attention(*given, mask).sum().backward()
        assert [one.grad is not None for one in given] == [i == chosen for i in range(3)]


@built
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("heads", [1, 8])
def test_same_bits_for_any_number_of_threads_where_keys_are_single(heads: int, dtype: torch.dtype) -> None:
    """More of them in a row than are kept back; and parts of rows that would end between two blocks of a head."""
    mask = torch.rand(96, 6000) < 0.06
    q, k, v = operands(Case((heads, 96, 32), (6000, 32), 32), dtype)
    seed = torch.randn(heads, 96, 32).to(dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad(sk.masked_attention(q, k, v, mask), (q, k, v), seed))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_compiled(dtype: torch.dtype) -> None:
    mask, blocks = torch.rand(20, 30) < 0.3, sk.BlockMask(torch.rand(5, 3) < 0.5, (4, 10), (20, 30))
    given = operands(Case((2, 20, 16), (30, 16), 8), dtype)
    for one in (mask, blocks, sk.prepare_mask(mask)):
        function = torch.compile(lambda q, k, v, one=one: sk.masked_attention(q, k, v, one), fullgraph=True)
        found, wanted = function(*given), sk.masked_attention(*given, one)
        assert torch.equal(found, wanted)
        gradients = [torch.autograd.grad(y, given, torch.ones_like(y)) for y in (found, wanted)]
        assert all(map(torch.equal, *gradients))


def test_compiled_with_other_sizes_and_groups() -> None:
    function = torch.compile(
        lambda q, k, v, mask: sk.masked_attention(q, k, v, mask, enable_gqa=True), fullgraph=True, dynamic=True
    )
    for rows, keys in ((20, 30), (33, 70)):
        mask = torch.rand(4, rows, keys) < 0.3
        given = torch.randn(4, rows, 16), torch.randn(2, keys, 16), torch.randn(2, keys, 8)
        assert torch.equal(function(*given, mask), sk.masked_attention(*given, mask, enable_gqa=True))


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_compiled_with_a_mask_of_blocks_inside(batch: tuple[int, ...]) -> None:
    """Of other sizes in each call, blocks of which are in a batch as well."""

    def run(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, size: int) -> Tensor:
        mask = sk.BlockMask(blocks.repeat(*batch, 1, 1), (size, size), (q.size(-2), k.size(-2)))
        return sk.masked_attention(q, k, v, mask) + sk.masked_matmul(q, k.mT, mask).sum()

    function = torch.compile(run, fullgraph=True, dynamic=True)
    for rows, keys, size in ((12, 20, 4), (24, 40, 5), (30, 33, 7)):
        blocks = torch.rand(-(-rows // size), -(-keys // size)) < 0.5
        given = torch.randn(2, rows, 8), torch.randn(2, keys, 8), torch.randn(2, keys, 6)
        torch.testing.assert_close(function(*given, blocks, size), run(*given, blocks, size))


def test_vmap() -> None:
    mask = torch.rand(4, 20, 30) < 0.3
    q, k, v = torch.randn(4, 20, 8), torch.randn(30, 8), torch.randn(30, 6)
    torch.testing.assert_close(
        torch.vmap(sk.masked_attention, (0, None, None, 0))(q, k, v, mask), sk.masked_attention(q, k, v, mask)
    )
    torch.testing.assert_close(
        torch.vmap(sk.masked_attention, (None, None, None, 0))(q[0], k, v, mask),
        sk.masked_attention(q[0].expand(4, 20, 8), k, v, mask),
    )

    def loss(k: Tensor, q: Tensor, mask: Tensor) -> Tensor:
        return sk.masked_attention(q, k, v, mask).square().sum()

    per_sample = torch.vmap(torch.func.grad(loss), (None, 0, 0))(k, q, mask)
    each = [torch.func.grad(loss)(k, q[i], mask[i]) for i in range(4)]
    torch.testing.assert_close(per_sample, torch.stack(each))


def test_autocast() -> None:
    q, k, v = operands(Case((20, 16), (30, 16), 8))
    mask = torch.rand(20, 30) < 0.3
    with torch.autocast("cpu", torch.bfloat16):
        y = sk.masked_attention(q, k, v, mask)
        mixed = sk.masked_attention(q, k, v.bfloat16(), mask)  # as code with a float32 table of angles has them
    assert torch.equal(mixed, y)
    assert torch.equal(y, sk.masked_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask))
    y.sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


def test_fake_tensors() -> None:
    """The results without data are like those with."""
    for dtype in DTYPES:
        q, k, v = operands(Case((2, 20, 16), (30, 16), 8), dtype)
        mask = KINDS["half"]((2, 20, 30))
        y = sk.masked_attention(q, k, v, mask)
        with FakeTensorMode() as mode:
            given = [mode.from_tensor(one) for one in (q, k, v, mask)]
            fake = sk.masked_attention(*given)
            assert (fake.shape, fake.dtype, fake.stride()) == (y.shape, y.dtype, y.stride())
            gradients = torch.autograd.grad(fake, given[:3], torch.ones_like(fake))
            assert [one.shape for one in gradients] == [one.shape for one in (q, k, v)]
        meta = sk.masked_attention(*(one.detach().to("meta") for one in (q, k, v)), mask.to("meta"))
        assert (meta.shape, meta.dtype) == (y.shape, y.dtype)


@built
def test_operators_obey_their_schemas() -> None:
    q, k, v = operands(Case((2, 20, 16), (2, 30, 16), 8))
    bits = sk.prepare_mask(torch.rand(20, 30) < 0.3).bits
    results = torch.ops.sparsekernels._masked_attention(q.detach(), k.detach(), v.detach(), bits, 0.25, True)
    torch.library.opcheck(
        torch.ops.sparsekernels._masked_attention.default, (q.detach(), k.detach(), v.detach(), bits, 0.25, True)
    )
    gradient = torch.randn(2, 20, 8)
    given = (gradient, *(one.detach() for one in (q, k, v)), bits, *results, 0.25)
    torch.library.opcheck(torch.ops.sparsekernels._masked_attention_backward.default, given)
    torch.library.opcheck(torch.ops.sparsekernels.masked_attention.default, (q, k, v, bits, 0.25, True))


@built
def test_backends() -> None:
    q, k, v = (one.detach() for one in operands(Case((4, 5), (6, 5), 7)))
    mask = torch.rand(4, 6) < 0.5
    with sk.use_backend("reference"):
        wanted = sk.masked_attention(q, k, v, mask)
    with sk.use_backend("cpu"):
        torch.testing.assert_close(sk.masked_attention(q, k, v, mask), wanted)
        with pytest.raises(sk.BackendError, match="float64"):
            sk.masked_attention(q.double(), k.double(), v.double(), mask)


def test_a_model_can_be_trained() -> None:
    """By a few steps: the loss falls, as it does with dense attention, and to the same value."""
    mask = KINDS["band"]((1, 2, 40, 40))
    x, wanted = torch.randn(1, 2, 40, 16), torch.randn(1, 2, 40, 16)
    losses = []
    for attention in (sk.masked_attention, expected):
        torch.manual_seed(1)
        weights = [(torch.randn(16, 16) / 4).requires_grad_() for _ in range(3)]
        optimizer = torch.optim.SGD(weights, lr=0.5)
        for _ in range(10):
            loss = (attention(*(x @ weight for weight in weights), mask) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_jacobians(dtype: torch.dtype) -> None:
    """Only the gradient is mapped, not what the forward pass left."""
    mask = torch.rand(6, 7) < 0.7
    q, k, v = (one.detach() for one in operands(Case((6, 5), (7, 5), 3), dtype))
    for place, one in enumerate((q, k, v)):

        def run(x: Tensor, place: int = place) -> Tensor:
            given = [q, k, v]
            given[place] = x
            return sk.masked_attention(*given, mask)

        found, wanted = torch.func.jacrev(run)(one), torch.autograd.functional.jacobian(run, one)
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("of_keys", [(2,), ()], ids=str)
def test_formulas_of_second_derivatives(of_keys: tuple[int, ...]) -> None:
    """Those of the reference are what torch takes from its first ones."""
    mask = torch.rand(2, 5, 9) < 0.5
    mask[0, 1] = False
    sizes = (2, 5, 4), (2, 5, 3), (*of_keys, 9, 3), (*of_keys, 9, 4)
    given = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    outputs = reference.gradients(*given, bits_of(mask), 0.7)
    seeds = tuple(torch.randn_like(one) for one in outputs)
    wanted = torch.autograd.grad(outputs, given, seeds)
    for found, one in zip(reference.second_gradients(seeds, *given, bits_of(mask), 0.7), wanted, strict=True):
        torch.testing.assert_close(found, one)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_jacobians_of_gradients(dtype: torch.dtype) -> None:
    """Hessians by torch.func, of one operand and of two, and gradients of gradients of samples."""
    mask = torch.rand(6, 7) < 0.7
    mask[2] = False
    q, k, v = (one.detach() for one in operands(Case((6, 5), (7, 5), 3), dtype))

    def loss(q: Tensor, k: Tensor) -> Tensor:
        return sk.masked_attention(q, k, v, mask).float().square().sum()

    found = torch.func.jacrev(torch.func.grad(loss, (0, 1)), (0, 1))(q, k)
    wanted = torch.autograd.functional.hessian(loss, (q, k))
    for row, other in zip(found, wanted, strict=True):
        for one, same in zip(row, other, strict=True):
            torch.testing.assert_close(one, same, rtol=0.02, atol=0.02)

    def penalty(q: Tensor) -> Tensor:
        return torch.func.grad(loss)(q, k).float().square().sum()

    samples = torch.stack([q, 2 * q, -q])
    each = torch.stack([torch.func.grad(penalty)(one) for one in samples])
    torch.testing.assert_close(torch.vmap(torch.func.grad(penalty))(samples), each, rtol=0.02, atol=0.02)
