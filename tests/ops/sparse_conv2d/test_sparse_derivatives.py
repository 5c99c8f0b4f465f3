# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_linear: derivatives of every order, and on which backend they run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sparse_conv2d_cases import (
    CASES,
    CONVOLUTIONS,
    Case,
    by_case,
    by_float32_run,
    by_run,
    definition,
    inputs,
    ours,
    ragged,
    random,
)
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.sparse_conv2d import op, reference
from sparsekernels.testing import assert_verified

CHECKED = (
    Case("stride and padding", (2, 4, 4, 5), (3, 4, 3, 2), stride=(1, 2), padding=1, mask=random(0.4)),
    Case("groups and dilation", (1, 4, 5, 5), (4, 2, 2, 2), dilation=2, groups=2, mask=random(0.5)),
    Case("same, no bias", (2, 2, 3, 3), (2, 2, 2, 2), padding="same", mask=ragged, bias=False),
    Case("linear", (3, 4), (5, 4), mask=random(0.4)),
    Case("1d, groups", (2, 4, 7), (6, 2, 3), stride=2, padding=2, dilation=2, groups=2, mask=random(0.5)),
    Case("1d, channels last", (2, 7, 4), (3, 4, 2), padding="same", mask=ragged, view=lambda x: x.transpose(1, 2)),
)
by_checked_case = pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)


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


@by_run
@by_case
def test_dense_gradients(backend: str, device: str, dtype: torch.dtype, case: Case) -> None:
    """The gradient to the whole of a dense weight, as of a layer with dense_grad=True; and the others beside it."""
    pattern, (input, _, *bias) = inputs(case, dtype, device)
    dense = torch.randn(case.weight, generator=torch.Generator().manual_seed(1)).to(device, dtype).requires_grad_()

    def ours(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        if case.is_linear:
            return op.linear(x, pattern, w, b[0] if b else None)
        function = op.conv2d if len(case.weight) == 4 else op.conv1d
        return function(x, pattern, w, b[0] if b else None, case.stride, case.padding, case.dilation, case.groups)

    def definition(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        used = reference.used_weight(w, pattern.flat_indices).view(*w.shape[:2], *case.geometry[:2])
        y = reference.dense_forward(case.images(x), used, b[0] if b else None, case.geometry)
        return case.result(y, x)

    with sk.use_backend(backend):
        assert_verified(ours, definition, [input, dense, *bias])
