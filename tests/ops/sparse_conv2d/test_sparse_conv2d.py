# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d, sparse_conv1d and sparse_linear: every implementation on every case and dtype against the oracle, and
what all promise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_conv2d_cases import (
    CONVOLUTIONS,
    DTYPES,
    LINEARS,
    SEQUENCES,
    Case,
    as_it_is,
    by_case,
    by_float32_run,
    by_run,
    channels_last,
    definition,
    empty,
    full,
    inputs,
    ours,
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
    images = case.images(input.detach())
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
        function = F.conv2d if len(case.weight) == 4 else F.conv1d
        return function(x, dense, b[0] if b else None, case.stride, case.padding, case.dilation, case.groups)

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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_conv1d_lays_results_out_as_torch_does(dtype: torch.dtype, training: bool) -> None:
    dense = torch.randn(6, 5, 3) * (torch.rand(6, 5, 3) < 0.4)
    weight = sk.Unstructured.from_dense(dense.to(dtype))
    shapes = torch.randn(2, 5, 8), torch.randn(2, 8, 5).transpose(1, 2), torch.randn(2, 1, 8).expand(-1, 5, -1)
    for x in (*shapes, torch.randn(5, 8), torch.randn(1, 5, 1), torch.randn(8, 5).t(), torch.randn(2, 1, 5).mT):
        x = x.to(dtype).requires_grad_(training)
        y, expected = sk.sparse_conv1d(x, weight, padding=1), F.conv1d(x, weight.to_dense(), padding=1)
        assert (y.shape, y.stride()) == (expected.shape, expected.stride())
        assert y.is_contiguous()


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


@st.composite
def sequences(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel, dilation, padding = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(0, 5))
    length = max(1, dilation * (kernel - 1) + 1 - 2 * padding) + draw(st.integers(0, 40))
    shape = (draw(st.integers(0, 20)), groups * draw(st.integers(1, 9)), length)
    return Case(
        "random",
        shape,
        (groups * draw(st.sampled_from([*range(1, 10), 14, 33])), shape[1] // groups, kernel),
        stride=draw(st.integers(1, 4)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        mask=draw(st.sampled_from([random(0.1), random(0.5), full, empty, ragged])),
        bias=draw(st.booleans()),
        view=draw(st.sampled_from((as_it_is, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)))),
    )


@settings(max_examples=250)
@given(st.one_of(convolutions(), linears(), sequences()), st.sampled_from(DTYPES))
def test_any_shape(case: Case, dtype: torch.dtype) -> None:
    weight, tensors = inputs(case, dtype, "cpu")
    for backend, device in runs(dtype):
        if device == "cpu":
            with sk.use_backend(backend):
                assert_verified(ours(case, weight), definition(case, weight), tensors)


def test_automatic_choice_is_the_first_row_that_supports_the_call() -> None:
    for case in (CONVOLUTIONS[1], LINEARS[3], SEQUENCES[1]):
        weight, tensors = inputs(case, torch.float32, "cpu")
        automatic = ours(case, weight)(*tensors)
        with sk.use_backend(runs()[0][0]):
            assert torch.equal(ours(case, weight)(*tensors), automatic)
