# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of batch_norm_act. The backward pass is one kernel; derivatives of it are torch's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._operation import Operator
from .arguments import check_forward
from .implementations import BATCH_NORM, fake_forward
from .reference import passing


class _BatchNormAct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *of_forward, kernels = arguments
        result: tuple[Tensor, Tensor, Tensor] = kernels.forward(*of_forward)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        input, _, weight, _, ctx.eps, _, _, ctx.p, _, ctx.kernels = inputs
        _, statistics, kept = output
        ctx.save_for_backward(input, weight, statistics, kept)
        ctx.mark_non_differentiable(statistics, kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        input, weight, statistics, kept = ctx.saved_tensors
        nothing = (None,) * 10
        if gradient is None:
            return nothing
        if torch.is_grad_enabled():
            return *_differentiable(ctx, gradient, input, weight, kept), *nothing[4:]
        need_input, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
        passes_all = kept.numel() == 0
        of_input, parameters, of_residual = ctx.kernels.backward(
            gradient, input, weight, statistics, kept, ctx.p, need_input, need_residual and not passes_all
        )
        if passes_all:
            of_residual = gradient
        return (
            of_input if need_input else None,
            of_residual if need_residual else None,
            parameters[0] if need_weight else None,
            parameters[1] if need_bias else None,
            *nothing[4:],
        )


def _differentiable(
    ctx: Any, gradient: Tensor, input: Tensor, weight: Tensor | None, kept: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients in torch's own operations, which it differentiates again: limits and dropout are a constant.

    They are taken with respect to views, lest hooks of the tensors themselves run here and then once more.
    """
    need_input, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    if kept.numel() > 0:
        gradient = gradient * (passing(kept, input) / (1 - ctx.p))
    own_input, own_weight = input.view_as(input), None if weight is None else weight.view_as(weight)
    plain = F.batch_norm(own_input, None, None, own_weight, None, True, 0.0, ctx.eps)
    given = [own_input if need_input else None, own_weight if need_weight else None]
    wanted = [one for one in given if one is not None]
    found = iter(torch.autograd.grad(plain, wanted, gradient, create_graph=True) if wanted else ())
    of_input, of_weight = (None if one is None else next(found) for one in given)
    of_bias = gradient.sum((0, *range(2, input.dim()))) if need_bias else None
    return of_input, gradient if need_residual else None, of_weight, of_bias


batch_norm_act = Operator(
    BATCH_NORM,
    "batch_norm_act(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, float? low, float? high,"
    " float p, int seed) -> (Tensor, Tensor, Tensor)",
    _BatchNormAct,
    fake_forward,
    validate=check_forward,
    differentiates_reference=True,
)
