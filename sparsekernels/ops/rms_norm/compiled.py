# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels, CPU and CUDA, as torch's dispatcher finds them by the device of the input.

Signatures and semantics are those of `reference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import operators  # noqa: F401 (defines the operators named below)

# Bound once: on the hot path nothing is looked up by string.
forward_operator = torch.ops.sparsekernels._rms_norm.default
add_forward_operator = torch.ops.sparsekernels._add_rms_norm.default
backward_operator = torch.ops.sparsekernels._rms_norm_backward.default


def forward(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    return forward_operator(input, len(normalized_shape), math.prod(normalized_shape), weight, eps)


def add_forward(
    input: Tensor, residual: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    return add_forward_operator(input, residual, len(normalized_shape), math.prod(normalized_shape), weight, eps)


def backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    grad_sum: Tensor | None,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    dims, size = len(normalized_shape), math.prod(normalized_shape)
    return backward_operator(grad_output, input, dims, size, weight, eps, grad_sum, need_input, need_weight)
