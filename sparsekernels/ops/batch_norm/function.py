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


def takes(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: Act) -> bool:
    """Whether the kernel computes this."""
    return (
        operators.IN_LIBRARY
        and type(input) is Tensor
        and input.device.type == "cpu"
        and input.dtype is torch.float32
        and input.dim() == 4
        and input.is_contiguous()
        and input.numel() > input.size(1)
        and eps > 0
        and 0 <= act.p < 1
        and all(one is None or (one.dtype is torch.float32 and one.is_contiguous()) for one in (weight, bias))
    )


def batch_norm_act(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: Act
) -> tuple[Tensor, Tensor]:
    """y, and the statistics [3, C] of the batch; of arguments that `takes` accepts. See operators.py.

    A seed for dropout is drawn from torch's generator. Differentiable any number of times.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_()) if act.p > 0 else 0
    wanted = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (input, weight, bias))
    if not wanted:
        output, statistics, _ = operators.forward(input, weight, bias, eps, act.low, act.high, act.p, seed)
        return output, statistics
    result: tuple[Tensor, Tensor] = _BatchNormAct.apply(input, weight, bias, eps, act, seed)
    return result


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: Act, seed: int
    ) -> tuple[Tensor, Tensor]:
        output, statistics, kept = operators.forward(input, weight, bias, eps, act.low, act.high, act.p, seed)
        ctx.save_for_backward(input, weight, statistics, kept)
        ctx.eps, ctx.act = eps, act
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return output, statistics

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        input, weight, statistics, kept = ctx.saved_tensors
        nothing = (None,) * 6
        if gradient is None:
            return nothing
        if torch.is_grad_enabled():
            return *_differentiable(ctx, gradient, input, weight, kept), *nothing[3:]
        need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
        of_input, parameters = operators.backward(gradient, input, weight, statistics, kept, ctx.act.p, need_input)
        return (
            of_input if need_input else None,
            parameters[0] if need_weight else None,
            parameters[1] if need_bias else None,
            *nothing[3:],
        )


def _differentiable(
    ctx: Any, gradient: Tensor, input: Tensor, weight: Tensor | None, kept: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients in torch's own operations, which it differentiates again: limits and dropout are a constant.

    They are taken with respect to views, lest hooks of the tensors themselves run here and then once more.
    """
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    if kept.numel() > 0:
        gradient = gradient * (passing(kept, input) / (1 - ctx.act.p))
    own_input, own_weight = input.view_as(input), None if weight is None else weight.view_as(weight)
    plain = F.batch_norm(own_input, None, None, own_weight, None, True, 0.0, ctx.eps)
    given = [own_input if need_input else None, own_weight if need_weight else None]
    wanted = [one for one in given if one is not None]
    found = iter(torch.autograd.grad(plain, wanted, gradient, create_graph=True) if wanted else ())
    results = [None if one is None else next(found) for one in given]
    return *results, gradient.sum((0, 2, 3)) if need_bias else None


def passing(kept: Tensor, input: Tensor) -> Tensor:
    """Of the kernel's bits, 1 where a gradient passes and 0 elsewhere, in shape and dtype of `input`."""
    plane = input[0, 0].numel()
    bits = kept.view(*input.shape[:2], -1, 1).int() >> torch.arange(16, dtype=torch.int32, device=input.device) & 1
    return bits.flatten(2)[:, :, :plane].reshape(input.shape).to(input.dtype)
