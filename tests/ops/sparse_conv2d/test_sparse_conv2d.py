# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_linear: every implementation on every case and dtype against the oracle, and what all
promise.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_conv2d_cases import (
    CASES,
    CONVOLUTIONS,
    DTYPES,
    LINEARS,
    Case,
    as_it_is,
    channels_last,
    empty,
    full,
    inputs,
    ragged,
    random,
    runs,
)
from torch import Tensor

import sparsekernels as sk
from sparsekernels.dispatch import select
from sparsekernels.ops.convolution import geometry_of
from sparsekernels.ops.sparse_conv2d import reference
from sparsekernels.ops.sparse_conv2d.implementations import SPARSE_CONV2D
from sparsekernels.testing import assert_verified, compare

RUNS = [(backend, device, dtype) for dtype in DTYPES for backend, device in runs(dtype)]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_run = pytest.mark.parametrize(
    ("backend", "device", "dtype"), RUNS, ids=lambda value: str(value).removeprefix("torch.")
)
by_float32_run = pytest.mark.parametrize(("backend", "device"), runs(), ids=lambda value: value)


def ours(case: Case, weight: sk.Unstructured) -> Callable[..., Tensor]:
    """input, values[, bias] -> output by the public function."""
    if case.is_linear:
        return lambda x, v, *b: sk.sparse_linear(x, weight.with_values(v), *b)
    options = (case.stride, case.padding, case.dilation, case.groups)
    return lambda x, v, *b: sk.sparse_conv2d(x, weight.with_values(v), b[0] if b else None, *options)


def definition(case: Case, weight: sk.Unstructured) -> Callable[..., Tensor]:
    """The same by the reference, which torch differentiates."""

    def run(x: Tensor, v: Tensor, *b: Tensor) -> Tensor:
        if case.is_linear:
            images = x.reshape(-1, case.weight[1], 1, 1)
        else:
            images = x if x.dim() == 4 else x[None]
        bias = b[0] if b else None
        y = reference.forward(images, v, bias, weight.crow_indices, weight.col_indices, case.geometry)
        if case.is_linear:
            return y.view(*x.shape[:-1], case.weight[0])
        return y if x.dim() == 4 else y[0]

    return run


@by_run
@by_case
def test_sparse_conv2d(backend: str, device: str, dtype: torch.dtype, case: Case) -> None:
    weight, tensors = inputs(case, dtype, device)
    with sk.use_backend(backend):
        assert_verified(ours(case, weight), definition(case, weight), tensors)


def kernel_operator(backend: str, input: Tensor) -> Callable[..., Tensor]:
    """`_sparse_conv2d` of one backend."""
    call = SPARSE_CONV2D.call_of(input)
    forward: Callable[..., Tensor] = select(SPARSE_CONV2D.implementations, call, backend).kernels().forward
    return forward


@by_run
@by_case
def test_epilogue(backend: str, device: str, dtype: torch.dtype, case: Case) -> None:
    """A residual and two limits, each with and without the others, against the reference in float64."""
    weight, (input, values, *bias) = inputs(case, dtype, device)
    images = input.detach()
    images = images.reshape(-1, case.weight[1], 1, 1) if case.is_linear else images
    images = images if images.dim() == 4 else images[None]
    bias = bias[0].detach() if bias else None
    pattern = (weight.crow_indices, weight.col_indices, list(case.geometry))
    forward = kernel_operator(backend, images)
    plain = forward(images, values.detach(), bias, *pattern)
    residual = torch.randn_like(plain)
    for other, low, high in (
        (residual, 0.0, None),
        (residual, None, None),
        (None, 0.0, 0.5),
        (residual, -0.25, 0.5),
        (None, None, 0.0),
    ):
        y = forward(images, values.detach(), bias, *pattern, other, low, high)
        wide = [None if t is None else t.double() for t in (images, values.detach(), bias, other)]
        truth = reference.forward(*wide[:3], *pattern, wide[3], low, high)
        # What the limits cut off has no error any more, in either: the reference's is that of the sums before.
        sums = reference.forward(*wide[:3], *pattern, wide[3])
        error = reference.forward(images, values.detach(), bias, *pattern, other).double() - sums
        comparison = compare("output", y, truth, truth + error)
        assert comparison.passed, (comparison, other is None, low, high)
        assert y.stride() == plain.stride()


@by_float32_run
@pytest.mark.parametrize("view", [as_it_is, channels_last])
def test_epilogue_keeps_nan(backend: str, device: str, view: Callable[[Tensor], Tensor]) -> None:
    """A limit is no way out of NaN, neither in the residual nor in the input; infinities are limited."""
    weight = sk.Unstructured.from_dense(torch.randn(40, 8, 1, 1), torch.rand(40, 8, 1, 1) < 0.9).to(device)
    x = view(torch.randn(2, 8, 6, 6)).to(device)
    pattern = (weight.crow_indices, weight.col_indices, list(geometry_of(weight.shape, 1, 0, 1, 1)))
    forward = kernel_operator(backend, x)
    residual = torch.zeros_like(forward(x, weight.values, None, *pattern))
    residual[0, 3, 2, 1], residual[1, 4, 5, 5], residual[1, 4, 5, 4] = math.nan, math.inf, -math.inf
    y = forward(x, weight.values, None, *pattern, residual, 0.0, 6.0)
    assert y.isnan().nonzero().tolist() == [[0, 3, 2, 1]]
    assert (y[1, 4, 5, 5], y[1, 4, 5, 4]) == (6, 0)
    x[0, :, 0, 0] = math.nan
    y = forward(x, weight.values, None, *pattern, None, 0.0, None)
    assert y[0, :, 0, 0].isnan().all()


@by_float32_run
def test_epilogue_refuses(backend: str, device: str) -> None:
    weight = sk.Unstructured.from_dense(torch.randn(6, 5, 3, 3), torch.rand(6, 5, 3, 3) < 0.5).to(device)
    x = torch.randn(2, 5, 7, 7, device=device)
    pattern = (weight.crow_indices, weight.col_indices, list(geometry_of(weight.shape, 1, 1, 1, 1)))
    forward = torch.ops.sparsekernels._sparse_conv2d.default
    good = torch.randn(2, 6, 7, 7, device=device)
    for bad in (good[:1], good[:, :5], good.double(), good[0]):
        with pytest.raises((RuntimeError, ValueError), match="residual"):
            forward(x, weight.values, None, *pattern, bad)
    for low, high in ((1.0, 0.0), (math.nan, None), (None, math.nan)):
        with pytest.raises((RuntimeError, ValueError), match="low"):
            forward(x, weight.values, None, *pattern, good, low, high)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@by_case
def test_same_as_torch(case: Case, dtype: torch.dtype) -> None:
    """The reference itself, and what runs by default, held to torch's own conv2d and linear: values and gradients."""
    weight, tensors = inputs(case, dtype, "cpu")

    def theirs(x: Tensor, v: Tensor, *b: Tensor) -> Tensor:
        dense = v.new_zeros(math.prod(weight.shape)).scatter(0, weight.flat_indices, v).view(weight.shape)
        if case.is_linear:
            return F.linear(x, dense, *b)
        return F.conv2d(x, dense, b[0] if b else None, case.stride, case.padding, case.dilation, case.groups)

    for backend in (None, "reference"):
        with sk.use_backend(backend) if backend else contextlib.nullcontext():
            assert_verified(ours(case, weight), theirs, tensors)


@by_run
@pytest.mark.parametrize("training", [False, True])
def test_layout_of_results(backend: str, device: str, dtype: torch.dtype, training: bool) -> None:
    """channels_last where the input is that and could not be called contiguous; then the gradient is as well."""
    weight = sk.Unstructured.from_dense(torch.randn(6, 5, 3, 3), torch.rand(6, 5, 3, 3) < 0.3).to(device, dtype)
    for make, expected in (
        (lambda: torch.randn(2, 5, 8, 8), torch.contiguous_format),
        (lambda: channels_last(torch.randn(2, 5, 8, 8)), torch.channels_last),
        (lambda: torch.randn(2, 5, 8, 16)[..., ::2], torch.contiguous_format),
    ):
        x = make().to(device, dtype).requires_grad_(training)
        with sk.use_backend(backend):
            y = sk.sparse_conv2d(x, weight, padding=1)
            assert y.is_contiguous(memory_format=expected)
            if training:
                # seen by a hook, before torch lays it out like the leaf
                layouts: list[bool] = []
                x.register_hook(lambda g, seen=layouts, as_=expected: seen.append(g.is_contiguous(memory_format=as_)))
                y.sum().backward()
                assert layouts == [True]


# Derivatives

CHECKED = (
    Case("stride and padding", (2, 4, 4, 5), (3, 4, 3, 2), stride=(1, 2), padding=1, mask=random(0.4)),
    Case("groups and dilation", (1, 4, 5, 5), (4, 2, 2, 2), dilation=2, groups=2, mask=random(0.5)),
    Case("same, no bias", (2, 2, 3, 3), (2, 2, 2, 2), padding="same", mask=ragged, bias=False),
    Case("linear", (3, 4), (5, 4), mask=random(0.4)),
)
by_checked_case = pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Thousands of tiny calls, each of which would wait for the other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@by_checked_case
@pytest.mark.usefixtures("one_thread")
def test_first_second_and_third_derivatives(case: Case) -> None:
    weight, tensors = inputs(case, torch.float64, "cpu")
    function = ours(case, weight)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*tensors).pow(3).sum(), tensors[:2], create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, tensors)


@pytest.mark.parametrize(
    "case",
    [
        *CHECKED,
        *(case for case in CASES if case.name in ("batch 17", "stride 2, batch 17", "1x1", "channels last", "5 rows")),
    ],
    ids=lambda case: case.name,
)
@by_run
def test_second_derivatives(backend: str, device: str, dtype: torch.dtype, case: Case) -> None:
    """One gradient as output, and the gradients of that, in the dtypes that the kernels have."""
    weight, tensors = inputs(case, dtype, device)
    shape = definition(case, weight)(*tensors).shape
    g = torch.randn(shape).to(device, dtype).requires_grad_()

    x, v = (tensor.detach() for tensor in tensors[:2])

    def of_input(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(g: Tensor, v: Tensor) -> Tensor:
            at = x.detach().to(v.dtype).requires_grad_()
            return torch.autograd.grad(function(at, v), at, g, create_graph=True)[0]

        return run

    def of_values(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(g: Tensor, x: Tensor) -> Tensor:
            at = v.detach().to(x.dtype).requires_grad_()
            return torch.autograd.grad(function(x, at), at, g, create_graph=True)[0]

        return run

    with sk.use_backend(backend):
        assert_verified(of_input(ours(case, weight)), of_input(definition(case, weight)), [g, tensors[1]])
        assert_verified(of_values(ours(case, weight)), of_values(definition(case, weight)), [g, tensors[0]])


@by_float32_run
@pytest.mark.parametrize("needed", ["input", "values", "bias", "input, bias", "values, bias"])
def test_gradients_to_some(backend: str, device: str, needed: str) -> None:
    case = next(case for case in CONVOLUTIONS if case.name == "stride 2")
    weight, tensors = inputs(case, torch.float32, device)
    for name, tensor in zip(("input", "values", "bias"), tensors, strict=True):
        tensor.requires_grad_(name in needed)
    with sk.use_backend(backend):
        assert_verified(ours(case, weight), definition(case, weight), tensors)


@by_float32_run
def test_the_backward_runs_on_the_backend_of_its_forward(backend: str, device: str) -> None:
    weight, tensors = inputs(CONVOLUTIONS[1], torch.float32, device)
    with sk.use_backend(backend):
        y = ours(CONVOLUTIONS[1], weight)(*tensors)
        inside = torch.autograd.grad(y, tensors, torch.ones_like(y), retain_graph=True)
    outside = torch.autograd.grad(y, tensors, torch.ones_like(y))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


# The same bits

STEADY = (
    Case("large batch", (64, 16, 12, 12), (32, 16, 3, 3), padding=1),
    Case("one large image", (1, 16, 33, 33), (32, 16, 3, 3), padding=1),
    Case("stride 2", (16, 16, 14, 14), (48, 16, 3, 3), stride=2, padding=1),
    Case("channels last", (8, 32, 14, 14), (32, 32, 3, 3), padding=1, view=channels_last),
    Case("1x1", (8, 64, 14, 14), (64, 64, 1, 1)),
    Case("ragged", (16, 16, 7, 7), (33, 16, 3, 3), padding=1, mask=ragged),
    Case("linear", (600, 64), (64, 64)),
    Case("linear of one row", (1, 512), (512, 512)),
)


@pytest.mark.parametrize("case", STEADY, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_bits_do_not_depend_on_threads(case: Case, dtype: torch.dtype) -> None:
    if ("cpu", "cpu") not in runs():
        pytest.skip("the reference is torch's own convolution, which promises nothing of the kind")
    weight, tensors = inputs(case, dtype, "cpu")
    function = ours(case, weight)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            y = function(*tensors)
            results.append((y.detach(), *torch.autograd.grad(y, tensors[:2], torch.ones_like(y) / 3)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", STEADY[1:], ids=lambda case: case.name)
def test_bits_do_not_depend_on_callers_beside(case: Case) -> None:
    """Eight Python threads, each with its own input, through one weight at once."""
    if ("cpu", "cpu") not in runs():
        pytest.skip("the reference is torch's own convolution, which promises nothing of the kind")
    weight, (input, values, *bias) = inputs(case, torch.float32, "cpu")
    threads = 8
    images = [(input.detach() + i).requires_grad_() for i in range(threads)]
    function = ours(case, weight)
    ready = threading.Barrier(threads)

    def both(i: int) -> tuple[Tensor, ...]:
        y = function(images[i], values, *bias)
        return y.detach(), *torch.autograd.grad(y, (images[i], values), torch.ones_like(y) / 3)

    def call(i: int) -> list[tuple[Tensor, ...]]:
        ready.wait(timeout=30)
        return [both(i) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(call, range(threads)))
    for i, calls in enumerate(found):
        alone = both(i)
        for beside in calls:
            assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


# Special values


@by_run
def test_nan_stays_where_it_belongs(backend: str, device: str, dtype: torch.dtype) -> None:
    """An input's NaN reaches the outputs whose nonzeros read it, and no others."""
    if backend == "reference":
        pytest.skip("it is dense: NaN times zero is NaN")
    weight = torch.zeros(3, 2, 3, 3)
    weight[0, 0, 1, 1], weight[1, 1, 0, 0] = 2.0, 3.0
    pattern = sk.Unstructured.from_dense(weight).to(device, dtype)
    for batch in (1, 16, 17):
        x = torch.ones(batch, 2, 5, 5, device=device, dtype=dtype)
        x[0, 0, 2, 2] = float("nan")
        x[-1, 1, 3, 3] = float("inf")
        with sk.use_backend(backend):
            y = sk.sparse_conv2d(x, pattern, padding=1)
        assert y.isnan().sum() == 1
        assert y[0, 0, 2, 2].isnan()
        assert y.isinf().sum() == 1
        assert y[-1, 1, 4, 4].isinf()


@by_run
@pytest.mark.parametrize("size", [5, 7, 9, 17])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("view", [as_it_is, channels_last], ids=["contiguous", "channels last"])
def test_nan_that_no_nonzero_reads_reaches_no_gradient(
    backend: str,
    device: str,
    dtype: torch.dtype,
    size: int,
    batch: int,
    view: Callable[[Tensor], Tensor],
) -> None:
    """Tap (0, 0) with padding 1 never reads the last row and column of the input; nor do gradients flow there."""
    if backend == "reference":
        pytest.skip("it is dense: NaN times zero is NaN")
    for rows, channels in ((5, 4), (20, 9)):  # small ones take another route
        mask = torch.zeros(rows, channels, 3, 3, dtype=torch.bool)
        mask[:, :, 0, 0] = True
        weight = sk.Unstructured.from_dense(torch.randn(mask.shape), mask).to(device, dtype)
        x = torch.randn(batch, channels, size, size).to(device, dtype)
        x[:, :, -1], x[..., -1] = float("nan"), float("nan")
        x, v = view(x).requires_grad_(), weight.values.clone().requires_grad_()
        with sk.use_backend(backend):
            y = sk.sparse_conv2d(x, weight.with_values(v), padding=1)
            to_input, to_values = torch.autograd.grad(y, (x, v), torch.randn_like(y))
        assert y.isfinite().all()
        assert to_values.isfinite().all()
        assert to_input.isfinite().all()
        assert not to_input[:, :, -1].any()
        assert not to_input[..., -1].any()


@by_run
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(1, 1, 0, 1), (1, 2, 0, 1), (3, 1, 1, 1), (3, 1, 0, 1), (3, 2, 1, 1), (2, 1, 1, 1), (3, 1, 2, 2), (3, 1, 3, 1)],
)
def test_nan_reaches_the_gradients_of_the_nonzeros_that_read_it(
    backend: str, device: str, dtype: torch.dtype, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    """And no others: not by what an earlier call left in memory, nor by lanes that are no positions."""
    if backend == "reference":
        pytest.skip("it is dense: NaN times zero is NaN")
    mask = torch.rand(20, 36, kernel, kernel) < 0.3
    weight = sk.Unstructured.from_dense(torch.randn(mask.shape), mask).to(device, dtype)

    def gradient(x: Tensor) -> Tensor:
        values = weight.values.clone().requires_grad_()
        y = sk.sparse_conv2d(x, weight.with_values(values), None, stride, padding, dilation)
        return torch.autograd.grad(y.sum(), values)[0]

    for size, batch in itertools.product((3, 4, 7, 8, 14, 33), (1, 3, 18)):
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        where = torch.zeros(batch, 36, size, size)
        where[0, ::2, 0, 0] = where[0, 1::5, size // 2, -1] = 1
        where[-1, ::7, -1, -1] = where[-1, ::3, -1, size // 2] = 1
        dense = torch.zeros(mask.shape, requires_grad=True)
        y = torch.nn.functional.conv2d(where, dense, None, stride, padding, dilation)
        expected = torch.autograd.grad(y.sum(), dense)[0][mask] > 0
        with sk.use_backend(backend):
            gradient(torch.full((batch + 3, 36, size + 5, size + 2), math.nan, device=device, dtype=dtype))
            found = gradient(torch.where(where > 0, math.nan, torch.randn(where.shape)).to(device, dtype))
        assert torch.equal(found.isnan().cpu(), expected), (size, batch)


@by_run
@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((1, 1, 1, 1600), (32, 1, 1, 64), {"stride": (1, 64)}),  # one channel, strips whose last lanes are empty
        ((2, 1, 8, 200), (16, 1, 8, 8), {"stride": 8}),
        ((3, 2, 5, 40), (32, 1, 5, 7), {"groups": 2, "dilation": (1, 3)}),
        ((19, 6, 1, 130), (39, 2, 2, 8), {"padding": (2, 0), "dilation": (4, 1), "groups": 3}),  # no tap reaches
        ((2, 40, 9, 9), (1, 40, 3, 3), {}),  # one row
    ],
)
def test_an_earlier_call_leaves_no_nan(
    backend: str,
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    options: dict[str, Any],
) -> None:
    """Whatever lies in memory that a call has no use for: gradients are finite after a larger call of NaN."""
    pattern = sk.Unstructured.from_dense(torch.randn(weight), torch.rand(weight) < 0.7).to(device, dtype)
    for fill, larger in ((math.nan, 50), (1.0, 0)):
        x = torch.full((shape[0] + larger // 10, *shape[1:3], shape[3] + larger), fill, device=device, dtype=dtype)
        values = pattern.values.clone().requires_grad_()
        x.requires_grad_()
        with sk.use_backend(backend):
            y = sk.sparse_conv2d(x, pattern.with_values(values), **options)
            grads = torch.autograd.grad(y, (x, values), torch.ones_like(y))
    assert y.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


# Random shapes


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [low + draw(st.integers(0, 12)) for low in least]
    shape = (draw(st.integers(0, 20)), groups * draw(st.integers(1, 9)), *size)
    views = (as_it_is, channels_last, lambda x: x.transpose(0, 3).contiguous().transpose(0, 3))
    return Case(
        "random",
        shape,
        (groups * draw(st.sampled_from([*range(1, 10), 14, 33])), shape[1] // groups, *kernel),
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        groups=groups,
        mask=draw(st.sampled_from([random(0.1), random(0.5), full, empty, ragged])),
        bias=draw(st.booleans()),
        view=draw(st.sampled_from(views)),
    )


@st.composite
def linears(draw: st.DrawFn) -> Case:
    leading = draw(st.lists(st.integers(0, 9), max_size=3))
    width = draw(st.integers(1, 70))
    mask = draw(st.sampled_from([random(0.1), random(0.5), full, empty, ragged]))
    return Case("random", (*leading, width), (draw(st.integers(1, 70)), width), mask=mask, bias=draw(st.booleans()))


@settings(max_examples=200)
@given(st.one_of(convolutions(), linears()), st.sampled_from(DTYPES))
def test_any_shape(case: Case, dtype: torch.dtype) -> None:
    weight, tensors = inputs(case, dtype, "cpu")
    for backend, device in runs(dtype):
        if device == "cpu":
            with sk.use_backend(backend):
                assert_verified(ours(case, weight), definition(case, weight), tensors)


def test_automatic_choice_is_the_first_row_that_supports_the_call() -> None:
    for case in (CONVOLUTIONS[1], LINEARS[3]):
        weight, tensors = inputs(case, torch.float32, "cpu")
        automatic = ours(case, weight)(*tensors)
        with sk.use_backend(runs()[0][0]):
            assert torch.equal(ours(case, weight)(*tensors), automatic)
