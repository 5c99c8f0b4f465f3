# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""RMSNorm as its definition reads, in plain torch: what every other implementation is held to.

    y_i = x_i / rms(x) * w_i,   rms(x) = sqrt(mean(x^2) + eps)      (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)

the mean over the trailing dimensions named by `normalized_shape`. bfloat16 and float16 are computed in float32 and
rounded once at the end. Two variants, which the transformers of the field have:

    UNIT_OFFSET    w_i = 1 + weight_i
    CAST_BEFORE    x_i / rms(x) is rounded to the dtype of x, then multiplied by w_i; y has the dtype that torch gives a
                   product of the two. A derivative takes the rounding for the identity, as that of `Tensor.to` does
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import wide, wide_dtype
from .arguments import CAST_BEFORE, UNIT_OFFSET


def _default_eps(input: Tensor) -> float:
    return torch.finfo(wide_dtype(input)).eps


def _like(result: Tensor, input: Tensor) -> Tensor:
    """`result` in the dtype of `input`, contiguous."""
    return result.to(input.dtype).contiguous()


def rows_are_contiguous(input: Tensor, normalized_shape: Sequence[int]) -> bool:
    """Whether the normalized dimensions of `input` lie side by side in memory, whatever the strides between rows."""
    dims, expected = len(normalized_shape), 1
    for size, stride in zip(input.shape[-dims:][::-1], input.stride()[-dims:][::-1], strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def empty_output(input: Tensor) -> Tensor:
    """An uninitialized result: contiguous, as torch's own."""
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def reciprocal_rms(input: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """1 / sqrt(mean(input^2) + eps) over `dims`, kept as size-one dimensions."""
    return torch.rsqrt(input.square().mean(dims, keepdim=True) + eps)


def scale_of(weight: Tensor, input: Tensor, variant: int) -> Tensor:
    """What a call on `input` multiplies by, in the wider of the type computed in and that of the weight."""
    weight = weight.to(torch.promote_types(weight.dtype, wide_dtype(input)))
    return 1 + weight if variant & UNIT_OFFSET else weight


def forward(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> Tensor:
    """y = x * r * w, with r = 1 / rms(x)."""
    dims = tuple(range(-len(normalized_shape), 0))
    x = wide(input)
    output = x * reciprocal_rms(x, dims, _default_eps(input) if eps is None else eps)
    if weight is None:
        return _like(output, input)
    dtype = input.dtype
    if variant & CAST_BEFORE:
        output, dtype = wide(output.to(dtype)), torch.promote_types(dtype, weight.dtype)
    return (output * scale_of(weight, input, variant)).to(dtype).contiguous()


def add_forward(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> tuple[Tensor, Tensor]:
    """The norm of s = input + residual, and s. s is rounded to the dtype of `input` before it is normalized."""
    total = _like(input + residual, input)
    return forward(total, normalized_shape, weight, eps, variant), total


def backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    grad_sum: Tensor | None,
    need_input: bool,
    need_weight: bool,
    variant: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gradients to input and weight.

    With w as in the forward, a = w * dy (elementwise), r = 1 / rms(x), c = mean(a * x) over a row:

        dx = r * a - r^3 * c * x  (+ grad_sum)
        dw = sum over rows of dy * x * r

    A gradient that is not needed comes back as an empty tensor.
    """
    dims = tuple(range(-len(normalized_shape), 0))
    leading = tuple(range(input.dim() - len(normalized_shape)))
    x, g = wide(input), wide(grad_output)
    r = reciprocal_rms(x, dims, _default_eps(input) if eps is None else eps)
    grad_input, grad_weight = input.new_empty(0), (input if weight is None else weight).new_empty(0)
    if need_input:
        a = g if weight is None else g * scale_of(weight, input, variant)
        dx = r * a - r.pow(3) * (a * x).mean(dims, keepdim=True) * x
        grad_input = _like(dx if grad_sum is None else dx + grad_sum, input)
    if need_weight:
        assert weight is not None
        dw = g * x * r
        grad_weight = (dw.sum(leading) if leading else dw).to(weight.dtype).contiguous()
    return grad_input, grad_weight


def double_backward(
    u: Tensor | None,
    v: Tensor | None,
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `backward` to grad_output, input and weight, for the gradients u of dx and v of dw.

    With r, a, c as in `backward`, n the length of a row, and per row

        S1 = sum(u * a),  S2 = sum(u * x),  S3 = sum(v * dy * x),  t = S1 - 3 * r^2 * c * S2 + S3,

    the scalar that is differentiated is L = sum over rows of r * S1 - r^3 * c * S2 + r * S3, and

        dL/d(dy) = w * (r * u - r^3 * S2 / n * x) + r * v * x
        dL/dx    = r * v * dy - r^3 * (t / n * x + c * u + S2 / n * a)
        dL/dw    = sum over rows of dy * (r * u - r^3 * S2 / n * x)

    Plain differentiable torch, so derivatives of any higher order follow.
    """
    dims = tuple(range(-len(normalized_shape), 0))
    leading = tuple(range(input.dim() - len(normalized_shape)))
    x, dy = wide(input), wide(grad_output)
    w = None if weight is None else scale_of(weight, input, variant).to(x.dtype)
    u = torch.zeros_like(x) if u is None else wide(u)
    n = max(math.prod(normalized_shape), 1)
    r = reciprocal_rms(x, dims, _default_eps(input) if eps is None else eps)
    r3 = r.pow(3)
    a = dy if w is None else w * dy
    c = (a * x).mean(dims, keepdim=True)
    s2 = (u * x).sum(dims, keepdim=True)
    t = (u * a).sum(dims, keepdim=True) - 3 * r.square() * c * s2
    projected = r * u - r3 * s2 / n * x
    to_dy = projected if w is None else w * projected
    to_w = None if weight is None else dy * projected
    to_x = -r3 * (c * u + s2 / n * a)
    if v is not None:
        v = v.to(x.dtype)
        t = t + (v * dy * x).sum(dims, keepdim=True)
        to_dy = to_dy + r * v * x
        to_x = to_x + r * v * dy
    to_x = to_x - r3 * t / n * x
    if weight is not None and to_w is not None:
        to_w = (to_w.sum(leading) if leading else to_w).to(weight.dtype)
    return to_dy.to(grad_output.dtype), to_x.to(input.dtype), to_w
