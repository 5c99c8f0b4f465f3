# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The elements of a dense tensor that a mask uses: what torch's indexing gives, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import gradgradcheck

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.formats import Unstructured
from sparsekernels.ops.sparse_conv2d.elements import Elements, has_kernels_for
from sparsekernels.ops.sparse_conv2d.outside import Guard, Outside

SIZES = [(1,), (63,), (64,), (65,), (3, 4097), (64 * 64 + 1,), (5, 7, 3, 3), (300, 784), (1_000_003,)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
compiled = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def drawn(size: tuple[int, ...], dtype: torch.dtype, density: float) -> tuple[Tensor, Tensor]:
    """A tensor with NaN, infinities and both zeros, and a mask."""
    draws = torch.Generator().manual_seed(len(size))
    tensor = torch.randn(size, generator=draws).to(dtype)
    flat = tensor.view(-1)
    for value in (math.nan, math.inf, -0.0, 0.0):
        flat[torch.randint(flat.numel(), (max(1, flat.numel() // 9),), generator=draws)] = value
    return tensor, torch.rand(size, generator=draws) < density


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_what_indexing_gives(size: tuple[int, ...], dtype: torch.dtype, density: float) -> None:
    tensor, mask = drawn(size, dtype, density)
    elements = Elements(mask)
    assert elements.count == int(mask.sum())
    values = elements.take(tensor)
    assert torch.equal(bits(values), bits(tensor[mask]))
    expected = torch.zeros_like(tensor).masked_scatter(mask, values)
    assert torch.equal(bits(elements.spread(values)), bits(expected))
    into = tensor.clone()
    elements.spread_into(into, values)
    assert torch.equal(bits(into), bits(expected))
    assert elements.others(tensor) == int(((tensor != 0) & ~mask).sum())
    cleared = tensor.clone()
    elements.clear_others(cleared)
    assert torch.equal(cleared.nan_to_num(7), tensor.masked_fill(~mask, 0).nan_to_num(7))
    assert torch.equal(bits(cleared[mask]), bits(tensor[mask]))
    assert elements.others(cleared.masked_fill(~mask, 0)) == 0


@pytest.mark.parametrize("lays_out", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(0, 1)])
def test_other_strides(lays_out: Callable[[Tensor], Tensor]) -> None:
    tensor, mask = drawn((6, 6, 3, 3), torch.float32, 0.3)
    other = lays_out(tensor)
    mask = mask if other.shape == tensor.shape else lays_out(mask).contiguous()
    elements = Elements(mask)
    values = elements.take(other)
    assert torch.equal(bits(values), bits(other[mask]))
    elements.spread_into(other, values)
    assert torch.equal(bits(other), bits(torch.zeros_like(other).masked_scatter(mask, values)))


@compiled
def test_threads_change_no_bit() -> None:
    tensor, mask = drawn((1_000_003,), torch.float32, 0.1)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        try:
            elements, cleared = Elements(mask), tensor.clone()
            elements.clear_others(cleared)
            results.append((elements.take(tensor), elements.spread(elements.take(tensor)), cleared))
        finally:
            torch.set_num_threads(threads)
    for one in results[1:]:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(one, results[0], strict=True))


@compiled
def test_writing_counts_as_a_write() -> None:
    tensor, mask = drawn((8, 8), torch.float32, 0.5)
    elements, version = Elements(mask), tensor._version
    elements.spread_into(tensor, elements.take(tensor))
    after = tensor._version
    elements.clear_others(tensor)
    assert version < after < tensor._version
    weight = torch.randn(8, 8, requires_grad=True)
    product = (weight * weight).sum()
    elements.clear_others(weight.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_does_not_fit_is_refused(dtype: torch.dtype) -> None:
    tensor, mask = drawn((8, 9), dtype, 0.5)
    ops = torch.ops.sparsekernels
    guard = ops._sparse_conv2d_guard(mask)
    values = ops._taken_elements(tensor, guard)
    refused = [
        lambda: ops._taken_elements(torch.zeros(8, 1000, dtype=dtype), guard),
        lambda: ops._taken_elements(tensor, guard[:-1]),
        lambda: ops._taken_elements(tensor, guard.int()),
        lambda: ops._taken_inside(torch.zeros(8, 1000, dtype=dtype), guard, 0, 0.0),
        lambda: ops._spread_elements(values[:-1], guard, [8, 9]),
        lambda: ops._spread_elements(values, guard, [8, 900]),
        lambda: ops._spread_elements(values, guard, [-8, -9]),
        lambda: ops._spread_elements(values.view(1, -1), guard, [8, 9]),
        lambda: ops._spread_elements_(tensor, values[:-1], guard),
        lambda: ops._spread_elements_(tensor.t(), values, guard),
        lambda: ops._spread_elements_(tensor, values.to(torch.float64 if dtype.itemsize < 8 else torch.float32), guard),
        lambda: ops._clear_others_(tensor.t(), guard),
        lambda: ops._clear_others_(torch.zeros(8, 1000, dtype=dtype), guard),
        lambda: ops._taken_elements(tensor.int(), guard),
    ]
    before = tensor.clone()
    for call in refused:
        with pytest.raises((RuntimeError, ValueError), match="expected"):
            call()
    assert torch.equal(bits(tensor), bits(before))


@compiled
def test_what_kernels_are_not_for() -> None:
    x = torch.randn(4, 4)
    assert has_kernels_for(x)
    assert has_kernels_for(torch.nn.Parameter(x))
    for other in (x.t(), x.to_sparse(), x.int(), x.to("meta"), x[:, :2], x.as_subclass(type("Own", (Tensor,), {}))):
        assert not has_kernels_for(other)
    with sk.use_backend("reference"):
        assert not has_kernels_for(x)


class TestValuesInside:
    """What a layer multiplies by, and the gradient of its weight."""

    def made(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Unstructured, Guard]:
        mask = torch.rand(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.2
        weight = torch.randn(6, 5, 3, 3, dtype=dtype).mul(mask).requires_grad_()
        return weight, Unstructured.of_mask(mask, dtype), Guard()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_values_and_gradient(self, dtype: torch.dtype) -> None:
        weight, pattern, guard = self.made(dtype)
        values = guard.values_inside(pattern, weight, math.inf)
        assert torch.equal(values, pattern.values_of(weight))
        gradient = torch.randn_like(values)
        (own,) = torch.autograd.grad(values, weight, gradient)
        (expected,) = torch.autograd.grad(pattern.values_of(weight), weight, gradient)
        assert torch.equal(own, expected)
        assert own.is_contiguous()

    @pytest.mark.parametrize("value", [1.0, -1e-45, math.nan, math.inf])
    @pytest.mark.parametrize("multiply_adds", [0.0, math.inf])
    def test_a_nonzero_elsewhere_is_found(self, value: float, multiply_adds: float) -> None:
        weight, pattern, guard = self.made()
        guard.values_inside(pattern, weight, multiply_adds)
        place = (~pattern.mask).flatten().nonzero()[-1, 0]
        with torch.no_grad():
            weight.view(-1)[place] = value
        for _ in range(2):
            with pytest.raises(Outside):
                guard.values_inside(pattern, weight, multiply_adds)
        with torch.no_grad():
            weight.view(-1)[place] = 0
        guard.values_inside(pattern, weight, multiply_adds)

    def test_parts_of_a_large_weight_that_was_not_written_to(self) -> None:
        mask = torch.rand(512, 512, generator=torch.Generator().manual_seed(1)) < 0.01
        weight, pattern, guard = torch.randn(512, 512).mul(mask).requires_grad_(), Unstructured.of_mask(mask), Guard()
        for _ in range(3):
            assert torch.equal(guard.values_inside(pattern, weight, 0.0), pattern.values_of(weight))
        weight.data.view(-1)[(~mask).flatten().nonzero()[1000:60_000, 0]] = 1  # autograd counts no write
        with pytest.raises(Outside):
            guard.values_inside(pattern, weight, 0.0)

    def test_second_derivatives(self) -> None:
        weight, pattern, guard = self.made(torch.float64)
        outside = ~pattern.mask

        def loss(free: Tensor) -> Tensor:
            return guard.values_inside(pattern, free.masked_fill(outside, 0), math.inf).pow(3).sum()

        assert gradgradcheck(loss, weight.detach().requires_grad_())

    def test_batched_gradients(self) -> None:
        weight, pattern, guard = self.made()
        values = guard.values_inside(pattern, weight, math.inf)
        several = torch.randn(3, values.numel())
        (batched,) = torch.autograd.grad(values, weight, several, is_grads_batched=True, retain_graph=True)
        for one, gradient in zip(batched, several, strict=True):
            assert torch.equal(one, torch.autograd.grad(values, weight, gradient, retain_graph=True)[0])
