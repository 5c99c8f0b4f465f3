# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Max pooling of images, as `torch.nn.functional.max_pool2d`; see reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...dispatch import is_special
from . import gradients, implementations, reference
from .implementations import MAX_POOL2D, check_forward, compiled

__all__ = ["max_pool2d"]

_kernel, _apply = implementations.forward, gradients.max_pool2d.apply


def max_pool2d(input: Tensor, window: tuple[int, ...]) -> Tensor:
    """The kernel where there is one for `input`, else torch's function. Differentiable any number of times.

    A gradient goes where torch sends it: to the first of elements that are equal, to the last NaN.
    """
    result: Tensor
    differentiable = torch.is_grad_enabled() and input.requires_grad
    if dispatch.forced is not None:
        check_forward(input, window)
        if differentiable:
            result, _ = gradients.max_pool2d(input, window)
        else:
            result = MAX_POOL2D.kernels_of(input).forward(input.contiguous(), window)
        return result
    if MAX_POOL2D.is_compiled(input) and _is_dense(input):
        if not differentiable:
            result = _kernel(input, window)
            return result
        if type(input) is Tensor and input.dtype is torch.float32 and _is_small(input) and not is_special():
            result, _ = _apply(input, window, compiled)
            return result
    return reference.forward(input, window)


def _is_dense(input: Tensor) -> bool:
    """Whether these are images that follow each other without gaps, with elements. torch is fast on channels_last."""
    return input.dim() == 4 and input.is_contiguous() and input.numel() > 0


def _is_small(input: Tensor) -> bool:
    """Whether places in a plane are numbers of 32 bits."""
    return input.size(2) * input.size(3) < 2**31
