# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution by a weight in blocks as its definition reads: the dense convolution by the weight with its zeros.

The weight is the values of the blocks [nnz], in the order of `BlockSparse`, or the dense weight [O, C/G, kh, kw], of
which the blocks are used. bfloat16 and float16 are computed in float32 and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from ...formats import BlockSparse
from ..convolution import Geometry, pad
from ..precision import wide
from . import reference


def pattern_of(
    crow_indices: Tensor,
    col_indices: Tensor,
    block: Sequence[int],
    rows: int,
    channels: int,
    geometry: Sequence[int],
    dtype: torch.dtype,
) -> BlockSparse:
    """The pattern of a call's tensors. channels: of a group.

    Raises:
        TypeError, ValueError: As `BlockSparse` does.
    """
    g = Geometry(*geometry)
    shape = rows, channels, g.kernel_h, g.kernel_w
    return BlockSparse.of_indices(shape, (block[0], block[1]), crow_indices, col_indices, dtype)


def dense_of(weight: Tensor, pattern: BlockSparse) -> Tensor:
    """The weight with its zeros, wide."""
    if weight.dim() == 1:
        return pattern.with_values(wide(weight)).to_dense()
    return wide(reference.used_weight(weight, pattern.flat_indices))


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    block: Sequence[int],
    rows: int,
    geometry: Sequence[int],
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """The convolution of the padded input; plus residual, and no less than low nor more than high."""
    g = Geometry(*geometry)
    pattern = pattern_of(crow_indices, col_indices, block, rows, input.size(1) // g.groups, g, weight.dtype)
    return reference.dense_forward(input, dense_of(weight, pattern), bias, g, residual, low, high)


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    block: Sequence[int],
    geometry: Sequence[int],
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    """Gradient to an input [N, channels, height, width]: the transposed convolution, without the padding."""
    g = Geometry(*geometry)
    rows = grad_output.size(1)
    pattern = pattern_of(crow_indices, col_indices, block, rows, channels // g.groups, g, weight.dtype)
    padded_h, padded_w = height + g.pad_top + g.pad_bottom, width + g.pad_left + g.pad_right
    gradient = conv2d_input(
        (grad_output.size(0), channels, padded_h, padded_w),
        dense_of(weight, pattern),
        wide(grad_output),
        stride=(g.stride_h, g.stride_w),
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
    )
    inner = gradient[:, :, g.pad_top : g.pad_top + height, g.pad_left : g.pad_left + width]
    return inner.to(grad_output.dtype).contiguous(memory_format=reference.memory_format(channels_last))


def weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    block: Sequence[int],
    geometry: Sequence[int],
    count: int,
) -> Tensor:
    """Gradient to the values, of which there are `count`: that of the dense weight at the blocks."""
    g = Geometry(*geometry)
    rows, channels = grad_output.size(1), input.size(1) // g.groups
    pattern = pattern_of(crow_indices, col_indices, block, rows, channels, g, input.dtype)
    dense = conv2d_weight(
        pad(wide(input), g),
        (rows, channels, g.kernel_h, g.kernel_w),
        wide(grad_output),
        stride=(g.stride_h, g.stride_w),
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
    )
    return dense.flatten()[pattern.flat_indices].to(input.dtype)
