# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of max_pool2d: a gradient goes to the place that the result came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._operation import Operator
from . import reference
from .implementations import MAX_POOL2D, check_forward, compiled


class _MaxPool2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, window: Sequence[int], kernels: Any) -> tuple[Tensor, Tensor]:
        input = input.contiguous() if kernels is compiled else input
        result: tuple[Tensor, Tensor] = kernels.forward_with_places(input, window)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, _, ctx.kernels = inputs
        _, places = output
        ctx.save_for_backward(places)
        ctx.mark_non_differentiable(places)
        ctx.size = tuple(input.shape[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        (places,) = ctx.saved_tensors
        # torch differentiates the reference's own operations again
        kernels = reference if torch.is_grad_enabled() else ctx.kernels
        return kernels.backward(gradient, places, ctx.size), None, None


max_pool2d = Operator(
    MAX_POOL2D,
    "max_pool2d(Tensor input, int[] window) -> (Tensor, Tensor)",
    _MaxPool2d,
    validate=check_forward,
)
