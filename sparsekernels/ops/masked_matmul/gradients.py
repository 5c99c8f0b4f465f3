# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of masked products, which are masked products: the masks change places with what they belong to.

da = (dy where its mask is) @ B^T   where the mask of a is
db = A^T @ (dy where its mask is)   where the mask of b is
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dispatch import is_transformed
from .._operation import Operator
from ..precision import wide
from . import implementations
from .arguments import check_product
from .implementations import MASKED_MATMUL, fake_product


def _transposed(bits: Tensor | None, columns: int) -> Tensor | None:
    return None if bits is None else implementations.transpose_bits(bits, columns)


def _summed(kernels: Any, arguments: tuple[Any, ...], shape: torch.Size) -> Tensor:
    """A product summed over the batch dimensions that an operand of `shape` does not have, rounded once."""
    a, b, *masks = arguments
    if (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.size(-2), b.size(-1)) == shape:
        result: Tensor = masked_product.on(kernels, a, b, *masks)
        return result
    total: Tensor = masked_product.on(kernels, wide(a), wide(b), *masks).sum_to_size(shape)
    return total.to(a.dtype)


def _batched(tensor: Tensor | None, at: int | None, dims: int) -> Tensor | None:
    """With the dimension that vmap maps in front of `dims` others."""
    if tensor is None or at is None:
        return tensor
    tensor = tensor.movedim(at, 0)
    return tensor.reshape(tensor.size(0), *[1] * (dims + 1 - tensor.dim()), *tensor.shape[1:])


class _MaskedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        a: Tensor, b: Tensor, a_bits: Tensor | None, b_bits: Tensor | None, bits: Tensor | None, kernels: Any
    ) -> Tensor:
        result: Tensor = kernels.product(a, b, a_bits, b_bits, bits)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.kernels = inputs
        ctx.save_for_backward(*tensors)
        # as objects, which tables are kept beside: hooks of saved tensors may copy. Transforms wrap saved ones alone
        ctx.masks = None if is_transformed() else tensors[2:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *masks = ctx.saved_tensors
        a_bits, b_bits, bits = masks if ctx.masks is None else ctx.masks
        to_a = to_b = None
        if ctx.needs_input_grad[0]:
            right, b_transposed = b.mT, _transposed(b_bits, b.size(-1))
            to_a = _summed(ctx.kernels, (gradient, right, bits, b_transposed, a_bits), a.shape)
        if ctx.needs_input_grad[1]:
            left, a_transposed = a.mT, _transposed(a_bits, a.size(-1))
            to_b = _summed(ctx.kernels, (left, gradient, a_transposed, bits, b_bits), b.shape)
        return to_a, to_b, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        *tensors, kernels = arguments
        places = in_dims[:5]
        dims = max(one.dim() - (at is not None) for one, at in zip(tensors, places, strict=True) if one is not None)
        batched = list(map(_batched, tensors, places, [dims] * 5))
        _, _, of_a, of_b, of_result = (at is not None for at in places)
        for operand, is_needed in ((0, of_a or (of_result and places[1] is None)), (1, of_b)):
            one = tensors[operand]
            if places[operand] is None and is_needed:  # a mask alone is mapped: it belongs to that many operands
                batched[operand] = one.expand(info.batch_size, *[1] * (dims - one.dim()), *one.shape)
        return _MaskedProduct.apply(*batched, kernels), 0


masked_product = Operator(
    MASKED_MATMUL,
    "masked_product(Tensor a, Tensor b, Tensor? a_bits, Tensor? b_bits, Tensor? bits) -> Tensor",
    _MaskedProduct,
    fake_product,
    validate=check_product,
    autocast={"cpu": None, "cuda": None},
    differentiates_reference=True,
)
