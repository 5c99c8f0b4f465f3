# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""BatchNorm over a batch, as in training, with a sum, limits and dropout behind it, in plain torch.

    z = (x - mean) / sqrt(var + eps) * weight + bias + r     mean and variance of each channel over images and pixels
    y = drop(min(max(z, low), high))                         drop: zero with probability p, else divided by 1 - p

input: [N, C, *], with elements; residual (r): as input, or None: 0; weight, bias: [C] or None; 0 <= p < 1. Which
elements are dropped follows from `seed`, and from the place of the element alone (philox.py).

Sources: Ioffe & Szegedy, 2015, arXiv:1502.03167, algorithm 1; Srivastava et al., 2014, "Dropout".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import wide
from .arguments import words_of
from .philox import drawn


def _per_channel(parameter: Tensor, like: Tensor) -> Tensor:
    return parameter.to(like.dtype).view(-1, *[1] * (like.dim() - 2))


def threshold_of(p: float) -> int:
    """An element is dropped where its random number of 32 bits is below this."""
    return min(round(p * 2**32), 2**32 - 1)


def forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    low: float | None,
    high: float | None,
    p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y; statistics [3, C]: mean, variance (of the elements, not an estimate), 1 / sqrt(var + eps); and `kept`.

    kept: int16 [N * C * words]. Bit i % 16 of word i / 16 of a plane says whether the gradient of element i passes: it
    lay between the limits and was not dropped. It is empty where every gradient passes.
    """
    x = wide(input)
    dims = (0, *range(2, input.dim()))
    variance, mean = torch.var_mean(x, dims, correction=0)
    scale = torch.rsqrt(variance + eps)
    z = (x - _per_channel(mean, x)) * _per_channel(scale, x)
    z = z if weight is None else z * _per_channel(weight, x)
    z = z if bias is None else z + _per_channel(bias, x)
    z = z if residual is None else z + wide(residual)
    passes = torch.ones_like(z, dtype=torch.bool)
    if low is not None:
        passes = passes & (z > low)
    if high is not None:
        passes = passes & (z < high)
    is_limited = low is not None or high is not None
    output = torch.where(passes, z, z.detach().clamp(low, high)) if is_limited else z  # no gradient at a limit either
    threshold = threshold_of(p)
    if threshold > 0:
        images, channels = input.shape[:2]
        numbers = drawn(images, channels, input[0, 0].numel(), seed, input.device)
        survives = (numbers >= threshold).view(input.shape)
        output = torch.where(survives, output / (1 - p), 0)
        passes = passes & survives
    passes_all = low is None and high is None and threshold == 0
    kept = input.new_empty(0, dtype=torch.int16) if passes_all else _packed(passes, words_of(input))
    return output.to(input.dtype).contiguous(), torch.stack([mean, variance, scale]), kept


def _packed(passes: Tensor, words: int) -> Tensor:
    planes = passes.flatten(2) if passes.dim() > 2 else passes[:, :, None]
    bits = F.pad(planes.int(), (0, 16 * words - planes.size(2))).reshape(-1, 16)
    packed: Tensor = (bits << torch.arange(16, dtype=torch.int32, device=passes.device)).sum(1)
    return packed.to(torch.int16)


def passing(kept: Tensor, input: Tensor) -> Tensor:
    """Of the bits of `kept`, 1 where a gradient passes and 0 elsewhere, in shape and dtype of `input`."""
    plane = input[0, 0].numel()
    bits = kept.view(*input.shape[:2], -1, 1).int() >> torch.arange(16, dtype=torch.int32, device=input.device) & 1
    return bits.flatten(2)[:, :, :plane].reshape(input.shape).to(input.dtype)


def backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    kept: Tensor,
    p: float,
    need_input: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to x, to weight and bias [2, C], and to r. The first and the last are empty if not needed.

    With g = gradient / (1 - p) where it passes and h = (x - mean) / sqrt(var + eps), of each channel:

        dx = weight / sqrt(var + eps) * (g - mean(g) - h * mean(g * h)),  dweight = sum(g * h),  dbias = sum(g),  dr = g
    """
    x, g = wide(input), wide(gradient)
    dims = (0, *range(2, input.dim()))
    if kept.numel() > 0:
        g = g * (passing(kept, x) / (1 - p))
    mean, _, scale = statistics
    h = (x - _per_channel(mean, x)) * _per_channel(scale, x)
    parameters = torch.stack([(g * h).sum(dims), g.sum(dims)])
    of_input = of_residual = input.new_empty(0)
    if need_input:
        count = x.numel() // x.size(1)
        to_weight, to_bias = (_per_channel(one, x) / count for one in parameters)
        factor = scale if weight is None else scale * weight
        of_input = (_per_channel(factor, x) * (g - to_bias - h * to_weight)).to(input.dtype).contiguous()
    if need_residual:
        of_residual = g.to(input.dtype).contiguous()
    return of_input, parameters, of_residual
