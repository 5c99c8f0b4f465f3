# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of rms_norm and add_rms_norm, in eager calls and of the registered operators.

The backward pass is an operator itself, which knows its own gradients: `reference.double_backward`, in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._operation import Arguments, Operator
from . import implementations, reference
from .implementations import RMS_NORM


class _RMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None,
        eps: float | None,
        variant: int,
        kernels: Any,
    ) -> Tensor:
        return kernels.forward(input, normalized_shape, weight, eps, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, shape, weight, eps, variant, kernels = inputs
        ctx.call = shape, eps, variant, kernels
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        need_input, _, need_weight, *_ = ctx.needs_input_grad
        shape, eps, variant, kernels = ctx.call
        if torch.is_grad_enabled():
            grad_input, grad_weight = rms_norm_backward.on(
                kernels, grad_output, input, shape, weight, eps, None, need_input, need_weight, variant
            )
        else:
            grad_input, grad_weight = kernels.backward(
                grad_output, input, shape, weight, eps, None, need_input, need_weight, variant
            )
        grad_input = grad_input if need_input else None
        return grad_input, None, grad_weight if need_weight else None, None, None, None


class _AddRMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        residual: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None,
        eps: float | None,
        variant: int,
        kernels: Any,
    ) -> tuple[Tensor, Tensor]:
        return kernels.add_forward(input, residual, normalized_shape, weight, eps, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, shape, weight, eps, variant, kernels = inputs
        ctx.call = shape, eps, variant, kernels
        ctx.save_for_backward(output[1], weight)
        ctx.set_materialize_grads(False)  # a caller that uses one of the results pays no zeros for the other

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_sum: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return grad_sum, grad_sum, None, None, None, None, None
        total, weight = ctx.saved_tensors
        need_input, need_residual, _, need_weight, *_ = ctx.needs_input_grad
        shape, eps, variant, kernels = ctx.call
        need_total = need_input or need_residual
        if torch.is_grad_enabled():
            grad_total, grad_weight = rms_norm_backward.on(
                kernels, grad_output, total, shape, weight, eps, grad_sum, need_total, need_weight, variant
            )
        else:
            grad_total, grad_weight = kernels.backward(
                grad_output, total, shape, weight, eps, grad_sum, need_total, need_weight, variant
            )
        return (
            grad_total if need_input else None,
            grad_total if need_residual else None,
            None,
            grad_weight if need_weight else None,
            None,
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
        grad_output, input, shape, weight, eps, _, ctx.need_input, ctx.need_weight, variant, _ = inputs
        ctx.call = shape, eps, variant
        ctx.save_for_backward(grad_output, input, weight)

    @staticmethod
    def backward(ctx: Any, grad_grad_input: Tensor, grad_grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, input, weight = ctx.saved_tensors
        u = grad_grad_input if ctx.need_input else None
        v = grad_grad_weight if ctx.need_weight else None
        shape, eps, variant = ctx.call
        to_dy, to_x, to_w = reference.double_backward(u, v, grad_output, input, shape, weight, eps, variant)
        gradients = to_dy, to_x, None, to_w, None, u, None, None, None, None
        return tuple(one if need else None for one, need in zip(gradients, ctx.needs_input_grad, strict=True))


def _with(count: int) -> Callable[..., Arguments]:
    """Of a schema's arguments, `count` of them: torch leaves those out at the end that have their default, 0."""
    return lambda *given: (*given, *[0] * (count - len(given)))


rms_norm = Operator(
    RMS_NORM,
    "rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, int variant=0) -> Tensor",
    _RMSNorm,
    implementations.fake_forward,
    validate=implementations.check_forward,
    from_schema=_with(5),
    autocast={"cuda": torch.float32},
)
add_rms_norm = Operator(
    RMS_NORM,
    "add_rms_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, float? eps,"
    " int variant=0) -> (Tensor, Tensor)",
    _AddRMSNorm,
    implementations.fake_add_forward,
    validate=implementations.check_add_forward,
    from_schema=_with(6),
)
rms_norm_backward = Operator(
    RMS_NORM,
    "rms_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps,"
    " Tensor? grad_sum, bool need_input, bool need_weight, int variant=0) -> (Tensor, Tensor)",
    _RMSNormBackward,
    implementations.fake_backward,
    from_schema=_with(9),
)


implementations.register_add_autocast("add_rms_norm", rms_norm.overload)
