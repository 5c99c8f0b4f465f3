# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of rms_norm and add_rms_norm, in eager calls and of the registered operators.

The backward pass is an operator itself, which knows its own gradients: `reference.double_backward`, in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._operation import Operator
from . import implementations, reference
from .implementations import RMS_NORM


class _RMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, kernels: Any
    ) -> Tensor:
        return kernels.forward(input, normalized_shape, weight, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, shape, weight, eps, kernels = inputs
        ctx.call = shape, eps, kernels
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        need_input, _, need_weight, _, _ = ctx.needs_input_grad
        shape, eps, kernels = ctx.call
        if torch.is_grad_enabled():
            grad_input, grad_weight = rms_norm_backward.on(
                kernels, grad_output, input, shape, weight, eps, None, need_input, need_weight
            )
        else:
            grad_input, grad_weight = kernels.backward(
                grad_output, input, shape, weight, eps, None, need_input, need_weight
            )
        return grad_input if need_input else None, None, grad_weight if need_weight else None, None, None


class _AddRMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        residual: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None,
        eps: float | None,
        kernels: Any,
    ) -> tuple[Tensor, Tensor]:
        return kernels.add_forward(input, residual, normalized_shape, weight, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, shape, weight, eps, kernels = inputs
        ctx.call = shape, eps, kernels
        ctx.save_for_backward(output[1], weight)
        ctx.set_materialize_grads(False)  # a caller that uses one of the results pays no zeros for the other

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_sum: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return grad_sum, grad_sum, None, None, None, None
        total, weight = ctx.saved_tensors
        need_input, need_residual, _, need_weight, _, _ = ctx.needs_input_grad
        shape, eps, kernels = ctx.call
        need_total = need_input or need_residual
        if torch.is_grad_enabled():
            grad_total, grad_weight = rms_norm_backward.on(
                kernels, grad_output, total, shape, weight, eps, grad_sum, need_total, need_weight
            )
        else:
            grad_total, grad_weight = kernels.backward(
                grad_output, total, shape, weight, eps, grad_sum, need_total, need_weight
            )
        return (
            grad_total if need_input else None,
            grad_total if need_residual else None,
            None,
            grad_weight if need_weight else None,
            None,
            None,
        )


class _RMSNormBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *of_backward, kernels = arguments
        return kernels.backward(*of_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad_output, input, ctx.normalized_shape, weight, ctx.eps, _, ctx.need_input, ctx.need_weight, _ = inputs
        ctx.save_for_backward(grad_output, input, weight)

    @staticmethod
    def backward(ctx: Any, grad_grad_input: Tensor, grad_grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, input, weight = ctx.saved_tensors
        u = grad_grad_input if ctx.need_input else None
        v = grad_grad_weight if ctx.need_weight else None
        to_dy, to_x, to_w = reference.double_backward(u, v, grad_output, input, ctx.normalized_shape, weight, ctx.eps)
        gradients = to_dy, to_x, None, to_w, None, u, None, None, None
        return tuple(one if need else None for one, need in zip(gradients, ctx.needs_input_grad, strict=True))


rms_norm = Operator(
    RMS_NORM,
    "rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps) -> Tensor",
    _RMSNorm,
    implementations.fake_forward,
    validate=implementations.check_forward,
    autocast={"cuda": torch.float32},
)
add_rms_norm = Operator(
    RMS_NORM,
    "add_rms_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, float? eps)"
    " -> (Tensor, Tensor)",
    _AddRMSNorm,
    implementations.fake_add_forward,
    validate=implementations.check_add_forward,
)
rms_norm_backward = Operator(
    RMS_NORM,
    "rms_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps,"
    " Tensor? grad_sum, bool need_input, bool need_weight) -> (Tensor, Tensor)",
    _RMSNormBackward,
    implementations.fake_backward,
)


implementations.register_add_autocast("add_rms_norm", rms_norm.overload)
