# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Max pooling: what torch's own gives, element by element, and gradients where it sends them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.max_pool2d.op import max_pool2d

CASES = [
    ((2, 3, 8, 8), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 112, 112), (3, 3, 2, 2, 1, 1)),
    ((1, 1, 1, 1), (1, 1, 1, 1, 0, 0)),
    ((3, 2, 7, 33), (3, 2, 1, 3, 1, 0)),
    ((1, 5, 33, 7), (2, 5, 3, 1, 1, 2)),
    ((2, 2, 6, 100), (6, 40, 6, 2, 3, 20)),
    ((1, 2, 5, 64), (5, 64, 1, 1, 0, 0)),
    ((70, 40, 2, 2), (2, 2, 2, 2, 0, 0)),
    ((1, 3, 9, 257), (3, 3, 4, 4, 1, 1)),
    ((0, 3, 8, 8), (2, 2, 2, 2, 0, 0)),
    ((3, 5, 4, 4), (2, 2, 2, 2, 0, 0)),  # small planes, several of them in a vector
    ((1, 37, 2, 2), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 9, 10), (3, 3, 2, 2, 0, 0)),
    ((5, 3, 5, 9), (2, 2, 3, 1, 0, 0)),
    ((2, 7, 17, 17), (2, 2, 2, 2, 0, 0)),
    ((2, 7, 56, 56), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 12, 70), (4, 5, 2, 2, 2, 2)),
    ((3, 5, 16, 16), (2, 2, 2, 2, 0, 0)),  # halved, two rows of results in a vector
    ((2, 3, 7, 16), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 33, 64), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 5, 101), (2, 2, 2, 2, 0, 0)),
    ((1, 2, 2, 33), (2, 2, 2, 2, 0, 0)),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def theirs(x: torch.Tensor, window: tuple[int, ...]) -> torch.Tensor:
    return F.max_pool2d(x, window[:2], window[2:4], window[4:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "window"), CASES)
def test_same_as_torch(shape: tuple[int, ...], window: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    for view in (x, x.contiguous(memory_format=torch.channels_last), x.flip(3), x - 100):
        assert torch.equal(max_pool2d(view, window), theirs(view, window))


def test_nan_and_infinities_spread_as_in_torch() -> None:
    x = torch.randn(2, 3, 20, 40)
    x.view(-1)[torch.randperm(x.numel())[:60]] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(20)
    for window in ((2, 2, 2, 2, 0, 0), (3, 3, 1, 1, 1, 1), (3, 3, 2, 2, 1, 1)):
        narrow = x[:, :, :, :16].contiguous()
        torch.testing.assert_close(max_pool2d(narrow, window), theirs(narrow, window), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(max_pool2d(x, window), theirs(x, window), rtol=0, atol=0, equal_nan=True)
        last = x.bfloat16().contiguous(memory_format=torch.channels_last)
        result, expected = max_pool2d(last, window), theirs(last, window)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        assert result.stride() == expected.stride()
    all_lowest = torch.full((1, 1, 4, 4), -math.inf)
    assert torch.equal(max_pool2d(all_lowest, (2, 2, 2, 2, 0, 0)), torch.full((1, 1, 2, 2), -math.inf))


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
@pytest.mark.parametrize(
    "window",
    [
        (2, 2, 2, 2, 0),
        (0, 2, 2, 2, 0, 0),
        (2, 2, 0, 2, 0, 0),
        (2, 2, 2, 2, 2, 0),
        (2, 2, 2, 2, -1, 0),
        (9, 2, 2, 2, 0, 0),
    ],
)
def test_what_does_not_fit_is_refused(window: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, ValueError), match="max_pool2d: expected .*, got "):
        torch.ops.sparsekernels._max_pool2d(torch.randn(1, 2, 8, 8), window)


def test_no_gaps_are_taken_for_granted() -> None:
    """A view of every other column is torch's business."""
    x = torch.randn(2, 3, 8, 16)[..., ::2]
    assert torch.equal(max_pool2d(x, (2, 2, 2, 2, 0, 0)), theirs(x, (2, 2, 2, 2, 0, 0)))


def test_unbatched_images_are_torchs_business() -> None:
    x = torch.randn(3, 8, 8)
    assert torch.equal(max_pool2d(x, (2, 2, 2, 2, 0, 0)), theirs(x, (2, 2, 2, 2, 0, 0)))


# Gradients.

built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def gradients(pool: Callable[..., Tensor], x: Tensor, window: tuple[int, ...]) -> tuple[Tensor, ...]:
    leaf = x.clone().requires_grad_()
    output = pool(leaf, window)
    generator = torch.Generator().manual_seed(1)
    return output.detach(), *torch.autograd.grad(output, leaf, torch.randn(output.shape, generator=generator))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "window"), CASES)
def test_gradients_are_torchs(shape: tuple[int, ...], window: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bit by bit; also where many elements are equal, as behind a ReLU, and where all are minus infinity."""
    x = torch.randn(shape).to(dtype)
    for one in (x, x.relu(), x.round(), torch.full_like(x, -math.inf), x.contiguous(memory_format=torch.channels_last)):
        assert all(map(torch.equal, gradients(max_pool2d, one, window), gradients(theirs, one, window)))


@pytest.mark.parametrize("window", [(2, 2, 2, 2, 0, 0), (3, 3, 1, 1, 1, 1), (3, 3, 2, 2, 1, 1), (3, 4, 3, 3, 0, 2)])
def test_gradients_at_what_is_no_number_are_torchs(window: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 20, 40)
    x.view(-1)[torch.randperm(x.numel())[:900]] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(300)
    for actual, expected in zip(gradients(max_pool2d, x, window), gradients(theirs, x, window), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


NARROW = [(2, 2), (4, 2), (2, 4), (4, 4), (8, 8), (6, 8), (12, 8), (16, 8), (16, 16), (12, 16), (2, 16)]


@pytest.mark.parametrize("size", NARROW)
@pytest.mark.parametrize("planes", [1, 3, 17, 70])
def test_narrow_planes_that_are_halved(size: tuple[int, int], planes: int) -> None:
    """16 results at a time where 64 elements are planes or a part of one; ties, infinities and NaN included."""
    torch.manual_seed(planes)
    x = torch.randint(-3, 3, (1, planes, *size)).float()
    special = torch.tensor([math.nan, math.inf, -math.inf])
    is_special = torch.rand(x.shape) < 0.2
    x[is_special] = special[torch.randint(3, (int(is_special.sum()),))]
    x[:, ::5] = -math.inf
    window = (2, 2, 2, 2, 0, 0)
    own, other = (x.clone().requires_grad_() for _ in range(2))
    result, expected = max_pool2d(own, window), theirs(other, window)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(own.grad, other.grad)


@built
def test_the_kernel_is_used_for_gradients() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    name = "_MaxPool2dBackward"
    assert type(max_pool2d(x, (2, 2, 2, 2, 0, 0)).grad_fn).__name__ == name
    for other in (x.double(), x.contiguous(memory_format=torch.channels_last), x.bfloat16()):
        assert type(max_pool2d(other, (2, 2, 2, 2, 0, 0)).grad_fn).__name__ != name
    with torch.no_grad():
        assert max_pool2d(x, (2, 2, 2, 2, 0, 0)).grad_fn is None


@built
def test_second_derivatives() -> None:
    """Of the sum of the gradient's cubes, which depend on the gradient that comes in; against torch's."""
    x, window = torch.randn(2, 3, 9, 9), (3, 3, 2, 2, 1, 1)
    found = []
    for pool in (max_pool2d, theirs):
        leaf, weight = x.clone().requires_grad_(), torch.linspace(-1, 1, 150).view(2, 3, 5, 5).requires_grad_()
        (first,) = torch.autograd.grad(pool(leaf, window).pow(3), leaf, weight, create_graph=True)
        found.append((first, *torch.autograd.grad(first.pow(3).sum(), (leaf, weight))))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@built
def test_gradients_have_the_same_bits_for_any_number_of_threads() -> None:
    x, threads, results = torch.randn(8, 16, 40, 40), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(max_pool2d, x, (3, 3, 1, 1, 1, 1)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@built
@pytest.mark.parametrize(
    "change",
    [
        {"gradient": torch.randn(1, 2, 4, 5)},
        {"gradient": torch.randn(1, 2, 4, 4).double()},
        {"gradient": torch.randn(2, 4, 4)},
        {"places": torch.zeros(1, 2, 4, 4, dtype=torch.int64)},
        {"places": torch.full((1, 2, 4, 4), 64, dtype=torch.int32)},
        {"places": torch.full((1, 2, 4, 4), -1, dtype=torch.int32)},
        {"size": [8]},
        {"size": [0, 8]},
        {"size": [1 << 16, 1 << 16]},
    ],
)
def test_malformed_backward(change: dict[str, object]) -> None:
    places = torch.zeros(1, 2, 4, 4, dtype=torch.int32)
    given = {"gradient": torch.randn(1, 2, 4, 4), "places": places, "size": [8, 8]}
    with pytest.raises((RuntimeError, ValueError), match="max_pool2d: expected .*, got "):
        torch.ops.sparsekernels._max_pool2d_backward(**{**given, **change})


@built
def test_malformed_forward() -> None:
    with pytest.raises((RuntimeError, ValueError), match="max_pool2d: expected .*, got "):
        torch.ops.sparsekernels._max_pool2d_places(torch.randn(1, 2, 8, 8).bfloat16(), (2, 2, 2, 2, 0, 0))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8)])
def test_backends_by_name(shape: tuple[int, ...]) -> None:
    """Each runs the call, gradients included, or says why it cannot."""
    window = (2, 2, 2, 2, 0, 0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(shape).to(dtype).requires_grad_()
        for backend in ("reference", *(["cpu"] if _library.cpu is not None else [])):
            with sk.use_backend(backend):
                with torch.no_grad():
                    assert torch.equal(max_pool2d(x, window), theirs(x, window))
                if backend == "cpu" and dtype is not torch.float32:
                    with pytest.raises(sk.BackendError, match="expected input of dtype torch.float32, .*, got torch"):
                        max_pool2d(x, window)
                    continue
                (ours,) = torch.autograd.grad(max_pool2d(x, window).sum(), x)
                assert torch.equal(ours, torch.autograd.grad(theirs(x, window).sum(), x)[0])


@built
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # kernels are looped over under vmap
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backend_by_name_inside_of_vmap(dtype: torch.dtype) -> None:
    """A batched tensor does not say whether it has a gradient, and only a call with one is limited to float32."""
    window, x = (2, 2, 2, 2, 0, 0), torch.randn(4, 2, 3, 8, 8).to(dtype)

    def pooled(one: Tensor) -> Tensor:
        return max_pool2d(one, window)

    with sk.use_backend("cpu"):
        assert torch.equal(vmap(pooled)(x), theirs(x.flatten(0, 1), window).unflatten(0, (4, 2)))
        for transform in (grad(lambda x: vmap(pooled)(x).sum()), vmap(grad(lambda x: pooled(x).sum()))):
            if dtype is torch.float32:
                assert transform(x).shape == x.shape
            else:
                with pytest.raises(sk.BackendError, match="expected input of dtype torch.float32, .*, got torch"):
                    transform(x)
