# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients by a plan's number have the bits of those by indices, from the first call and from the next."""

from __future__ import annotations

import pytest
import torch
from sparse_conv2d_cases import CONVOLUTIONS, Case, inputs, runs
from torch import Tensor

from sparsekernels.ops.sparse_conv2d import implementations, plans, reference
from sparsekernels.ops.sparse_conv2d.plans import plan_of
from sparsekernels.testing import compare

pytestmark = pytest.mark.skipif(("cpu", "cpu") not in runs(), reason="the CPU kernels are not built")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda one: str(one)[6:])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda one: one.name)
def test_gradients(case: Case, dtype: torch.dtype) -> None:
    weight, (x, values, *_) = inputs(case, dtype, "cpu")
    x, values, geometry = x.detach(), values.detach(), case.geometry
    x = x if x.dim() == 4 else x[None]
    weight = weight.with_values(values)
    plan = plan_of(weight, geometry)
    indices = (weight.crow_indices, weight.col_indices)
    y = implementations.forward(x, values, None, *indices, geometry)
    image = (x.size(2), x.size(3), reference.is_channels_last(x))
    gradient = torch.randn_like(y)
    for dy in (gradient, gradient[:1], gradient.contiguous(memory_format=torch.channels_last)):
        source = x[: dy.size(0)]
        by_indices = implementations.input_gradient(dy, values, *weight.transposed(geometry.groups), geometry, *image)
        to_values = implementations.weight_gradient(dy, source, *indices, geometry)
        for _ in range(2):
            for given in (values, weight.to_dense()):
                same(plans.input_gradient(dy, given, plan, *image), by_indices)
            same(plans.weight_gradient(dy, source, plan), to_values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda one: str(one)[6:])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda one: one.name)
def test_epilogue_of_an_input_gradient(case: Case, dtype: torch.dtype) -> None:
    """Bias, residual and limits, as a layer has them that multiplies by the transposed weight; held to the oracle."""
    weight, (x, values, *_) = inputs(case, dtype, "cpu")
    x, values, geometry = x.detach(), values.detach(), case.geometry
    x = x if x.dim() == 4 else x[None]
    plan, transposed = plan_of(weight, geometry), weight.transposed(geometry.groups)
    dy = torch.randn(x.size(0), case.weight[0], *geometry.output_size(*x.shape[2:])).to(dtype)
    image = (x.size(2), x.size(3), reference.is_channels_last(x))
    bias = torch.randn(x.size(1)).to(dtype)
    residual = torch.randn_like(plans.input_gradient(dy, values, plan, *image))
    if (geometry.stride_h, geometry.stride_w) != (1, 1):
        for more in ((bias,), (None, residual), (None, None, 0.0), (None, None, None, 0.0)):
            with pytest.raises(ValueError, match="expected stride 1 of an input gradient with .*, got [234]"):
                plans.input_gradient(dy, values, plan, *image, *more)
        return
    for add, other, low, high in ((bias, None, None, None), (None, residual, 0.0, None), (bias, residual, -0.5, 0.5)):

        def sums(
            dy: Tensor,
            values: Tensor,
            add: Tensor | None = add,
            other: Tensor | None = other,
            wide: torch.dtype = dtype,
        ) -> Tensor:
            y = reference.input_gradient(dy.to(wide), values.to(wide), *transposed, geometry, *image)
            y = y if add is None else y + add.to(wide)[:, None, None]
            return y if other is None else y + other.to(wide)

        y = plans.input_gradient(dy, values, plan, *image, add, other, low, high)
        truth = sums(dy, values, wide=torch.float64)
        by_reference = sums(dy, values, wide=torch.float32).to(dtype).double()
        limited = truth if low is None else truth.clamp(low, high)
        # what the limits cut off has no error any more, in either
        assert compare("input gradient", y, limited, limited + (by_reference - truth)).passed
        assert y.stride() == residual.stride()


def same(one: Tensor, other: Tensor) -> None:
    assert one.stride() == other.stride()
    assert torch.equal(one, other)


def test_what_does_not_fit_the_plan() -> None:
    case = Case("", (2, 6, 9, 10), (8, 6, 3, 3), stride=2, padding=1)
    weight, (x, values, *_) = inputs(case, torch.float32, "cpu")
    x, values, plan = x.detach(), values.detach(), plan_of(weight, case.geometry)
    dy = torch.randn(2, 8, 5, 5)
    plans.input_gradient(dy, values, plan, 9, 10, False)
    plans.weight_gradient(dy, x, plan)
    with pytest.raises(ValueError, match="expected grad_output of the channels of the output"):
        plans.input_gradient(dy[:, :4], values, plan, 9, 10, False)
    with pytest.raises(ValueError, match="expected grad_output of the size of the output"):
        plans.input_gradient(dy, values, plan, 9, 12, False)
    with pytest.raises(ValueError, match="expected weight of the nonzeros of the plan"):
        plans.input_gradient(dy, values[1:], plan, 9, 10, False)
    with pytest.raises(ValueError, match="expected weight of the dtype and device of grad_output"):
        plans.input_gradient(dy, values.double(), plan, 9, 10, False)
    for bias in (torch.ones(8), torch.ones(6).double(), torch.ones(6, 1)):
        with pytest.raises(ValueError, match="expected bias of one element per output channel"):
            plans.input_gradient(dy, values, plan, 9, 10, False, bias)
    ones = Case("", (2, 6, 9, 10), (8, 6, 3, 3), padding=1)
    other, (z, *_) = inputs(ones, torch.float32, "cpu")
    z, dz = z.detach(), torch.randn(2, 8, 9, 10)
    for residual in (z[:1], z.double(), z.contiguous(memory_format=torch.channels_last)):
        with pytest.raises(ValueError, match="expected residual of the shape, strides, dtype"):
            plans.input_gradient(dz, other.values, plan_of(other, ones.geometry), 9, 10, False, None, residual)
    with pytest.raises(ValueError, match="expected low of at most high"):
        plans.input_gradient(dz, other.values, plan_of(other, ones.geometry), 9, 10, False, None, None, 1.0, 0.0)
    with pytest.raises(ValueError, match="expected grad_output of the batch of input"):
        plans.weight_gradient(dy[:1], x, plan)
    with pytest.raises(ValueError, match="expected input with the channels of the plan"):
        plans.weight_gradient(dy, x[:, :4], plan)
    with pytest.raises(ValueError, match="expected grad_output of the dtype of input"):
        plans.weight_gradient(dy.bfloat16(), x, plan)
