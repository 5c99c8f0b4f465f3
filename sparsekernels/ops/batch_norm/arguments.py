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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"batch_norm_act: {message}")


def _check_common(input: Tensor, per_channel: tuple[Tensor | None, ...], p: float) -> None:
    _require(input.dim() >= 2 and input.numel() > 0, "input: expected two dimensions or more, with elements")
    for tensor in per_channel:
        _require(tensor is None or tuple(tensor.shape) == (input.size(1),), "weight and bias: expected [channels]")
    _require(0 <= p < 1, "p: expected a number of at least 0 and below 1")


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
    _check_common(input, (weight, bias), p)
    _require(eps > 0, "eps: expected a number above 0")
    if residual is not None:
        alike = residual.shape == input.shape and residual.dtype == input.dtype and residual.device == input.device
        _require(alike, "residual: expected shape, dtype and device of input")


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
    _check_common(input, (weight,), p)
    alike = gradient.shape == input.shape and gradient.dtype == input.dtype and gradient.device == input.device
    _require(alike, "gradient: expected shape, dtype and device of input")
    _require(tuple(statistics.shape) == (3, input.size(1)), "statistics: expected what the forward pass gave")
    words = input.size(0) * input.size(1) * words_of(input)
    _require(
        kept.dtype == torch.int16 and kept.dim() == 1 and kept.numel() in (0, words),
        "kept: expected what the forward pass gave",
    )


def words_of(input: Tensor) -> int:
    """How many words of 16 bits `kept` has for a plane."""
    return (input[0, 0].numel() + 15) // 16
