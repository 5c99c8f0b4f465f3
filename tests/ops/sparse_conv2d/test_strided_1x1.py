# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The dense weight gradient of 1x1 kernels with a stride, which torch gets without one: its own may crash."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekernels.ops.convolution import geometry_of
from sparsekernels.ops.sparse_conv2d import gradients
from sparsekernels.testing import compare

SHAPES = [  # input, output channels, stride, padding, groups
    ((2, 11, 9, 12), 16, (1, 2), 0, 1),
    ((3, 6, 10, 7), 8, (2, 2), 1, 2),
    ((1, 15, 5, 6), 7, (3, 1), (0, 2), 1),
    ((2, 4, 1, 1), 3, (2, 2), 0, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("shape", "channels", "stride", "padding", "groups"), SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_without_a_stride(
    shape: tuple[int, ...],
    channels: int,
    stride: tuple[int, int],
    padding: int | tuple[int, int],
    groups: int,
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, original = [], torch.nn.grad.conv2d_weight

    def spied(input: Tensor, size: tuple[int, ...], grad_output: Tensor, **options: object) -> Tensor:
        given.append(options["stride"])
        return original(input, size, grad_output, **options)

    monkeypatch.setattr(torch.nn.grad, "conv2d_weight", spied)
    weight_shape = (channels, shape[1] // groups, 1, 1)
    input = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.zeros(weight_shape, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(input.double(), weight, None, stride, padding, 1, groups)
    grad_output = torch.randn(output.shape).to(dtype).contiguous(memory_format=memory_format)
    (truth,) = torch.autograd.grad(output, weight, grad_output.double())
    geometry = geometry_of(weight_shape, stride, padding, 1, groups)
    actual = gradients.dense_weight_gradient(grad_output, input, geometry)
    assert given == [(1, 1)]
    assert actual.dtype is dtype
    assert actual.shape == weight_shape
    assert compare("weight", actual, truth, truth.to(dtype), dtype is torch.float64).passed
