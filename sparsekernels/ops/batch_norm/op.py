# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in training with what stands behind it: the kernel where there is one, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import operators


@dataclass(frozen=True)
class Act:
    """What stands behind a BatchNorm: limits as of a ReLU (None: none) and dropout with probability `p`."""

    low: float | None = None
    high: float | None = None
    p: float = 0.0


def takes(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: Act, residual: Tensor | None = None
) -> bool:
    """Whether the kernel computes this."""
    return (
        operators.IN_LIBRARY
        and type(input) is Tensor
        and input.device.type == "cpu"
        and input.dtype is torch.float32
        and input.dim() == 4
        and input.is_contiguous()
        and input.numel() > input.size(1)
        and (residual is None or _is_like(residual, input))
        and eps > 0
        and 0 <= act.p < 1
        and all(one is None or (one.dtype is torch.float32 and one.is_contiguous()) for one in (weight, bias))
    )


def _is_like(residual: Tensor, input: Tensor) -> bool:
    alike = residual.shape == input.shape and residual.dtype == input.dtype and residual.device == input.device
    return type(residual) is Tensor and alike and residual.is_contiguous()


def batch_norm_act(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: Act, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y, and the statistics [3, C] of the batch; of arguments that `takes` accepts. See operators.py.

    A seed for dropout is drawn from torch's generator. Differentiable any number of times.
    """
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_()) if act.p > 0 else 0
    tensors = input, residual, weight, bias
    if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in tensors):
        output, statistics, _ = operators.forward(*tensors, eps, act.low, act.high, act.p, seed)
        return output, statistics
    result: tuple[Tensor, Tensor] = _BatchNormAct.apply(*tensors, eps, act, seed)
    return result


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        act: Act,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        output, statistics, kept = operators.forward(input, residual, weight, bias, eps, act.low, act.high, act.p, seed)
        ctx.save_for_backward(input, weight, statistics, kept)
        ctx.eps, ctx.act = eps, act
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return output, statistics

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        input, weight, statistics, kept = ctx.saved_tensors
        nothing = (None,) * 7
        if gradient is None:
            return nothing
        if torch.is_grad_enabled():
            return *_differentiable(ctx, gradient, input, weight, kept), *nothing[4:]
        need_input, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
        passes_all = kept.numel() == 0
        of_input, parameters, of_residual = operators.backward(
            gradient, input, weight, statistics, kept, ctx.act.p, need_input, need_residual and not passes_all
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
        gradient = gradient * (passing(kept, input) / (1 - ctx.act.p))
    own_input, own_weight = input.view_as(input), None if weight is None else weight.view_as(weight)
    plain = F.batch_norm(own_input, None, None, own_weight, None, True, 0.0, ctx.eps)
    given = [own_input if need_input else None, own_weight if need_weight else None]
    wanted = [one for one in given if one is not None]
    found = iter(torch.autograd.grad(plain, wanted, gradient, create_graph=True) if wanted else ())
    of_input, of_weight = (None if one is None else next(found) for one in given)
    of_bias = gradient.sum((0, 2, 3)) if need_bias else None
    return of_input, gradient if need_residual else None, of_weight, of_bias


def passing(kept: Tensor, input: Tensor) -> Tensor:
    """Of the kernel's bits, 1 where a gradient passes and 0 elsewhere, in shape and dtype of `input`."""
    plane = input[0, 0].numel()
    bits = kept.view(*input.shape[:2], -1, 1).int() >> torch.arange(16, dtype=torch.int32, device=input.device) & 1
    return bits.flatten(2)[:, :, :plane].reshape(input.shape).to(input.dtype)
