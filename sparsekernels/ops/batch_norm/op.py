# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in training with what stands behind it, a sum, limits and dropout, in one pass; see reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...dispatch import is_special, is_transformed
from . import gradients, implementations, reference
from .arguments import Act, takes
from .implementations import compiled

__all__ = ["Act", "batch_norm_act", "takes"]

_kernel, _apply = implementations.forward, gradients.batch_norm_act.apply


def batch_norm_act(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: Act, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y, and the statistics [3, C] of the batch; of arguments that `takes` accepts.

    A seed for dropout is drawn from torch's generator. Differentiable any number of times.
    """
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_()) if act.p > 0 else 0
    tensors = input, residual, weight, bias
    numbers = eps, act.low, act.high, act.p, seed
    if is_transformed() and dispatch.forced in (None, "reference"):  # torch differentiates the reference itself
        output, statistics, _ = reference.forward(*tensors, eps, act.low, act.high, act.p, seed)
    elif is_special() or input.dtype not in implementations.BATCH_NORM.dtypes:
        output, statistics, _ = gradients.batch_norm_act(*tensors, *numbers)
    elif torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors):
        output, statistics, _ = _apply(*tensors, *numbers, compiled)
    else:
        output, statistics, _ = _kernel(*tensors, *numbers)
    return output, statistics
