# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What batch_norm_act accepts: what the kernel computes, and the checks of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import _library


@dataclass(frozen=True)
class Act:
    """What stands behind a BatchNorm: limits as of a ReLU (None: none) and dropout with probability `p`."""

    low: float | None = None
    high: float | None = None
    p: float = 0.0


def takes(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: Act, residual: Tensor | None = None
) -> bool:
    """Whether the compiled kernel computes this."""
    return (
        _library.cpu is not None
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


def _require(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"batch_norm: expected {expected}, got {got}")


def _check_common(input: Tensor, per_channel: dict[str, Tensor | None], p: float) -> None:
    has_elements = input.dim() >= 2 and input.numel() > 0
    _require(has_elements, "input of two dimensions or more, with elements", list(input.shape))
    for name, tensor in per_channel.items():
        if tensor is not None:
            expected = f"{name} of shape [{input.size(1)}]"
            _require(tuple(tensor.shape) == (input.size(1),), expected, list(tensor.shape))
    _require(0 <= p < 1, "p of at least 0 and below 1", p)


def _check_like(name: str, tensor: Tensor, input: Tensor) -> None:
    alike = tensor.shape == input.shape and tensor.dtype == input.dtype and tensor.device == input.device
    expected = f"{name} of shape {list(input.shape)}, {input.dtype} on {input.device} as input"
    _require(alike, expected, f"{list(tensor.shape)}, {tensor.dtype} on {tensor.device}")


def check_forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    low: float | None,
    high: float | None,
    p: float,
    seed: int,
) -> None:
    """Raise ValueError for arguments that do not fit."""
    _check_common(input, {"weight": weight, "bias": bias}, p)
    _require(eps > 0, "eps above 0", eps)
    if residual is not None:
        _check_like("residual", residual, input)


def check_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    kept: Tensor,
    p: float,
    need_input: bool,
    need_residual: bool,
) -> None:
    """Raise ValueError for arguments that do not fit."""
    _check_common(input, {"weight": weight}, p)
    _check_like("gradient", gradient, input)
    shape = 3, input.size(1)
    _require(tuple(statistics.shape) == shape, f"statistics of shape {list(shape)}", list(statistics.shape))
    words = input.size(0) * input.size(1) * words_of(input)
    fits = kept.dtype == torch.int16 and kept.dim() == 1 and kept.numel() in (0, words)
    _require(fits, f"kept of torch.int16, of [0] or [{words}]", f"{kept.dtype}, {list(kept.shape)}")


def words_of(input: Tensor) -> int:
    """How many words of 16 bits `kept` has for a plane."""
    return (input[0, 0].numel() + 15) // 16
