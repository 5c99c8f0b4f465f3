# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of masked attention. The backward pass is an operator, whose own derivatives are
`reference.second_gradients`, in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...dispatch import is_transformed
from .._operation import Operator
from ..precision import wide
from . import reference
from .arguments import check_backward, check_forward
from .implementations import MASKED_ATTENTION, fake_backward, fake_forward


def _batched(tensors: list[Tensor], in_dims: Sequence[int | None], size: int, own: Sequence[int]) -> list[Tensor]:
    """With the dimensions that vmap maps in front of the same number of others; those in `own` have one in any case."""
    places = list(in_dims[: len(tensors)])
    for i in own:
        if places[i] is None:
            tensors[i], places[i] = tensors[i].expand(size, *tensors[i].shape), 0
    dims = max(one.dim() - (at is not None) for one, at in zip(tensors, places, strict=True))
    found = []
    for one, at in zip(tensors, places, strict=True):
        if at is None:
            found.append(one)
            continue
        moved = one.movedim(at, 0)
        found.append(moved.reshape(moved.size(0), *[1] * (dims + 1 - moved.dim()), *moved.shape[1:]))
    return found


class _MaskedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bits: Tensor, scale: float, training: bool, kernels: Any
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = kernels.forward(q, k, v, bits, scale, training)
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.scale, _, ctx.kernels = inputs
        ctx.save_for_backward(*tensors, *output)
        # as an object, which tables are kept beside: hooks of saved tensors may copy. Transforms wrap saved ones alone
        ctx.bits = None if is_transformed() else tensors[3]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 7
        if gradient is None:
            return nothing
        q, k, v, bits, y, statistics, rest = ctx.saved_tensors
        bits = bits if ctx.bits is None else ctx.bits
        batch, of_keys = y.shape[:-2], torch.broadcast_shapes(k.shape[:-2], v.shape[:-2])
        if q.shape[:-2] == batch and k.shape[:-2] == v.shape[:-2]:
            given = q, k, v
        else:  # summed afterwards over the batch dimensions that an operand has not, then rounded
            gradient, y, rest = wide(gradient), wide(y) + (wide(rest) if rest.numel() > 0 else 0), rest.new_empty(0)
            rest = wide(rest)
            given = (
                wide(q).expand(*batch, *q.shape[-2:]),
                wide(k).expand(*of_keys, *k.shape[-2:]),
                wide(v).expand(*of_keys, *v.shape[-2:]),
            )
        found = masked_attention_backward.on(ctx.kernels, gradient, *given, bits, y, statistics, rest, ctx.scale)
        needed = ctx.needs_input_grad
        return *(
            one.sum_to_size(like.shape).to(like.dtype) if need else None
            for one, like, need in zip(found, (q, k, v), needed, strict=False)
        ), *nothing[3:]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, ...]:
        *tensors, scale, training, kernels = arguments
        results = _MaskedAttention.apply(*_batched(tensors, in_dims, info.batch_size, (0,)), scale, training, kernels)
        return results, (0, 0, 0 if results[2].dim() > 1 else None)


class _MaskedAttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *of_backward, kernels = arguments
        results: tuple[Tensor, Tensor, Tensor] = kernels.backward(*of_backward)
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        gradient, q, k, v, bits, _, _, _, ctx.scale, _ = inputs
        ctx.save_for_backward(gradient, q, k, v, bits)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 10
        if all(one is None for one in gradients):
            return nothing
        gradient, q, k, v, bits = ctx.saved_tensors
        dq, dk, dv = (
            torch.zeros_like(like) if one is None else one for one, like in zip(gradients, (q, k, v), strict=True)
        )
        # in formulas: a gradient taken in here would be of tensors that torch.func has wrapped otherwise
        found = reference.second_gradients((dq, dk, dv), gradient, q, k, v, bits, ctx.scale)
        needed = ctx.needs_input_grad
        return *(one if need else None for one, need in zip(found, needed, strict=False)), *nothing[4:]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, ...]:
        *tensors, scale, kernels = arguments
        # each sample has gradients of its own
        own = (0, 1, 2, 3, 5, 6, 7) if tensors[7].dim() > 1 else (0, 1, 2, 3, 5, 6)
        batched = _batched(tensors, in_dims, info.batch_size, own)
        return _MaskedAttentionBackward.apply(*batched, scale, kernels), (0, 0, 0)


masked_attention = Operator(
    MASKED_ATTENTION,
    "masked_attention(Tensor q, Tensor k, Tensor v, Tensor bits, float scale, bool training)"
    " -> (Tensor, Tensor, Tensor)",
    _MaskedAttention,
    fake_forward,
    validate=check_forward,
    autocast={"cpu": None, "cuda": None},
    differentiates_reference=True,
)
masked_attention_backward = Operator(
    MASKED_ATTENTION,
    "masked_attention_backward(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor bits, Tensor y,"
    " Tensor statistics, Tensor rest, float scale) -> (Tensor, Tensor, Tensor)",
    _MaskedAttentionBackward,
    fake_backward,
    validate=check_backward,
)
