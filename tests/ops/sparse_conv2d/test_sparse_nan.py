# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d: NaN and infinity reach what reads them, and nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_conv2d_cases import (
    as_it_is,
    by_run,
    channels_last,
)
from torch import Tensor

import sparsekernels as sk

DENSE = ("reference", "triton")
"""Backends that multiply zeros, some calls at least."""


@by_run
def test_nan_stays_where_it_belongs(backend: str, device: str, dtype: torch.dtype) -> None:
    """An input's NaN reaches the outputs whose nonzeros read it, and no others."""
    if backend in DENSE:
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
    if backend in DENSE:
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
    if backend in DENSE:
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
