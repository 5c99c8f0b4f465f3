# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weight is masked anew in each call: x @ (w * mask).T, of which w * mask is not kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import implementations
from .gradients import masked_product


def masked_linear(input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """The layer, for a mask of bool or of the dtype of `weight`; what it leaves out of the weight is not read."""
    rows, weight, *_ = masked_product.cast(input.reshape(-1, input.size(-1)), weight, None, None, None)
    if rows.dtype != weight.dtype:
        raise TypeError(f"MaskedLinear: expected input of dtype {weight.dtype} like weight, got {rows.dtype}")
    if mask.dtype == torch.bool:
        output: Tensor = masked_product(rows, weight.mT, None, _transposed_bits(mask), None)
    else:
        output = _WithFactors.apply(rows, weight, mask.to(weight.dtype))
    if bias is not None:
        output = output + bias.to(output.dtype)
    return output.reshape(*input.shape[:-1], weight.size(0))


def _transposed_bits(mask: Tensor) -> Tensor:
    bits: Tensor = implementations.transpose_bits(implementations.pack(mask), mask.size(-1))
    return bits


def _multiplied(weight: Tensor, mask: Tensor) -> Tensor:
    """weight * mask, with zeros where the mask is zero, whatever stands there."""
    return (weight * mask).masked_fill_(mask == 0, 0)


class _WithFactors(torch.autograd.Function):
    """Between forward and backward there are the weight and the mask; their product is made where it is used.

        dx = dy @ (w * mask),   with g = dy.T @ x:   dw = g * mask,   dmask = g * w

    All products are torch's: g is needed everywhere where the mask has a gradient, and of random elements the others
    are not faster for being sparse, since the mask would have to be packed first (docs/decisions.md#masked-linear).
    """

    @staticmethod
    def forward(input: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return input @ _multiplied(weight, mask).mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mask = ctx.saved_tensors
        need_input, need_weight, need_mask = ctx.needs_input_grad
        to_input = to_weight = to_mask = None
        if need_input:
            # the mask has a gradient where it is zero as well, so that its own gradient may not be masked
            everywhere = need_mask and torch.is_grad_enabled()
            to_input = gradient @ (weight * mask if everywhere else _multiplied(weight, mask))
        if need_weight or need_mask:
            product = gradient.mT @ input
            to_mask = product * weight if need_mask else None
            if need_weight:
                to_weight = product * mask if need_mask else _multiplied(product, mask)
        return to_input, to_weight, to_mask
