# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Max pooling of images, as `torch.nn.functional.max_pool2d`; see reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ..._torch import is_differentiated
from ...dispatch import BackendError, is_special, is_transformed
from . import gradients, implementations, reference
from .implementations import MAX_POOL2D, check_forward, compiled

__all__ = ["max_pool2d"]

_kernel, _apply = implementations.forward, gradients.max_pool2d.apply


def max_pool2d(input: Tensor, window: tuple[int, ...]) -> Tensor:
    """The kernel where there is one for `input`, else torch's function. Differentiable any number of times.

    A gradient goes where torch sends it: to the first of elements that are equal, to the last NaN.
    """
    result: Tensor
    if dispatch.forced is not None:
        check_forward(input, window)
        return _on_backend(input, window)
    if MAX_POOL2D.is_compiled(input) and _is_dense(input) and not is_transformed():
        if not (torch.is_grad_enabled() and input.requires_grad):
            result = _kernel(input, window)
            return result
        if type(input) is Tensor and input.dtype is torch.float32 and _is_small(input) and not is_special():
            result, _ = _apply(input, window, compiled)
            return result
    return reference.forward(input, window)


def _on_backend(input: Tensor, window: tuple[int, ...]) -> Tensor:
    """A call on the backend that was asked for by name."""
    result: Tensor
    if input.dim() == 3:
        return _on_backend(input.unsqueeze(0), window).squeeze(0)
    kernels = MAX_POOL2D.kernels_of(input)
    differentiable = torch.is_grad_enabled() and is_differentiated(input)
    if kernels is reference or not differentiable:
        result = kernels.forward(input.contiguous(), window)
        return result
    if input.dtype is not torch.float32:
        raise BackendError(
            f"use_backend({dispatch.forced!r}): expected input of dtype torch.float32, which alone has gradients there,"
            f" got {input.dtype}"
        )
    result, _ = gradients.max_pool2d(input, window)
    return result


def _is_dense(input: Tensor) -> bool:
    """Whether these are images that follow each other without gaps, with elements.

    torch is fast on channels_last in float32; in half types it takes five times as long as the kernel.
    """
    if input.dim() != 4 or input.numel() == 0:
        return False
    if input.is_contiguous():
        return True
    is_half = input.dtype in (torch.bfloat16, torch.float16) and not input.requires_grad
    return is_half and input.is_contiguous(memory_format=torch.channels_last)


def _is_small(input: Tensor) -> bool:
    """Whether places in a plane are numbers of 32 bits."""
    return input.size(2) * input.size(3) < 2**31
