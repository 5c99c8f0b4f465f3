# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Layers of single elements whose dense weight is on a GPU: torch multiplies by it as it is.

To gather its values and expand them again would give the same product, later. So it is computed with whatever lies
outside of the pattern, which is what the layer promises, and nobody has to look, for which the host would wait. What
the pattern is for is the gradient: zero outside, or, where the weight is not zero there, that of the dense layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import dispatch
from ..._torch import is_jit_tracing, may_be_kept, outside_of_transforms
from ...formats import BlockSparse, SparseFormat, Unstructured
from ...formats.compressed_rows import CompressedRows
from .blocks import has_block_kernel


def is_for_torch_here(pattern: SparseFormat, weight: Any) -> bool:
    """Whether torch is to multiply by a dense weight of this pattern."""
    if not isinstance(weight, Tensor) or not weight.is_cuda or dispatch.forced is not None or is_jit_tracing():
        return False
    if type(pattern) is BlockSparse:
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        if has_block_kernel(weight.device, dtype, pattern.block_size):
            return False
    elif type(pattern) is not Unstructured:
        return False
    return weight.shape == pattern.shape and pattern.device == weight.device


def with_gradient_at(pattern: Any, weight: Tensor) -> Tensor:
    """A dense weight as it is, whose gradient is zero outside of the pattern where the weight is."""
    if not torch.is_grad_enabled() or not (weight.requires_grad or dispatch.is_transformed()):
        return weight
    return _WithGradientAt.apply(weight, kept_mask(pattern))  # type: ignore[no-any-return, no-untyped-call]


def with_dense_gradient(pattern: Any, weight: Tensor) -> Tensor:
    """A dense weight, zero outside of the pattern, whose gradient is all of it."""
    if not torch.is_grad_enabled() or not (weight.requires_grad or dispatch.is_transformed()):
        return torch.where(kept_mask(pattern), weight, 0)
    return _WithDenseGradient.apply(weight, kept_mask(pattern))  # type: ignore[no-any-return, no-untyped-call]


def kept_mask(pattern: CompressedRows) -> Tensor:
    """The mask of a pattern, worked out once; in a CUDA graph that is captured first, in each replay."""
    mask = pattern._shared.mask
    if mask is None:
        with outside_of_transforms(), torch.inference_mode(False):  # autograd saves no tensors of inference mode
            mask = pattern.mask
        if may_be_kept(mask):
            pattern._shared.mask = mask
    return mask


class _WithDenseGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _WithGradientAt(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, mask = ctx.saved_tensors
        has_more = ((weight != 0) & ~mask).any()
        return torch.where(mask | has_more, gradient, 0), None
