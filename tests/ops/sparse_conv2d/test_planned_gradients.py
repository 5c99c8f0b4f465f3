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
    with pytest.raises(ValueError, match="expected grad_output of the batch of input"):
        plans.weight_gradient(dy[:1], x, plan)
    with pytest.raises(ValueError, match="expected input with the channels of the plan"):
        plans.weight_gradient(dy, x[:, :4], plan)
    with pytest.raises(ValueError, match="expected grad_output of the dtype of input"):
        plans.weight_gradient(dy.bfloat16(), x, plan)
