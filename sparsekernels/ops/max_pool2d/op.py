# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Max pooling: the kernel where there is one, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dispatch import is_special
from . import operators


def max_pool2d(input: Tensor, window: tuple[int, ...]) -> Tensor:
    """The kernel where there is one for `input`, else torch's function. Differentiable any number of times.

    A gradient goes where torch sends it: to the first of elements that are equal, to the last NaN.
    """
    if operators.IN_LIBRARY and input.device.type == "cpu" and input.dim() == 4 and input.is_contiguous():
        result: Tensor
        if not torch.is_grad_enabled() or not input.requires_grad:
            if input.numel() > 0 and input.dtype in (torch.float32, torch.bfloat16, torch.float16):
                result = operators.max_pool2d(input, window)
                return result
        elif type(input) is Tensor and input.dtype is torch.float32 and _is_small(input) and not is_special():
            result = _MaxPool2d.apply(input, window)
            return result
    return operators.by_torch(input, list(window))


def _is_small(input: Tensor) -> bool:
    """Whether places in a plane are numbers of 32 bits; and there are any."""
    return input.numel() > 0 and input.size(2) * input.size(3) < 2**31


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, window: tuple[int, ...]) -> Tensor:
        output, places = operators.places(input, window)
        ctx.save_for_backward(places)
        ctx.size = tuple(input.shape[2:])
        ctx.set_materialize_grads(False)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return None, None
        (places,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return operators.backward(gradient, places, ctx.size), None
        # in torch's own operations, which it differentiates again
        images, channels = places.shape[:2]
        nowhere = gradient.new_zeros(images, channels, ctx.size[0] * ctx.size[1])
        found = nowhere.scatter_add(2, places.flatten(2).long(), gradient.flatten(2))
        return found.view(images, channels, *ctx.size), None
