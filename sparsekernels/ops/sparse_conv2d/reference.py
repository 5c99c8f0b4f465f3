# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""Sparse convolution as its definition reads, in plain torch: what every other implementation is held to.

    y[n, o, p, q] = bias[o] + sum over the nonzeros (i, ky, kx) of row o of
                        w[o, i, ky, kx] * x[n, g * C/G + i, p * sh + ky * dh - top, q * sw + kx * dw - left]

with x zero outside of its bounds, C input channels in G groups, and g = o / (O/G) the group of output channel o. It is
the dense convolution by a weight that is zero outside of the pattern. bfloat16 and float16 are computed in float32 and
rounded once at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from ..._torch import are_functorch_transforms_active
from ..convolution import Geometry, pad
from ..precision import wide


def is_channels_last(input: Tensor) -> bool:
    """Whether results follow `input` into channels_last: as torch decides for its convolutions.

    By sizes and strides alone (torch's `suggest_memory_format`): gaps do not count, and what could be either, one
    channel of one pixel with equal strides, is contiguous. So is what becomes that when torch copies it: several images
    of one pixel and one channel. Inside of the transforms of torch.func nothing is channels_last: vmap cannot tell the
    layout of its tensors.
    """
    if input.dim() != 4 or are_functorch_transforms_active():
        return False
    images, channels, height, width = input.shape
    of_image, of_channel, of_row, of_pixel = input.stride()
    if not (of_channel > 0 and of_channel * channels <= of_pixel and of_pixel * width <= of_row):  # most end here
        return False
    if not (of_row * height <= of_image and of_row * height != of_channel):
        return False
    pixels = channels * height * width
    return bool(images * pixels > 0 and (images == 1 or pixels > 1))


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last and not are_functorch_transforms_active() else torch.contiguous_format


def row_of_each(crow_indices: Tensor, count: int) -> Tensor:
    """The row, int64, that each of `count` stored entries lies in."""
    rows = torch.arange(crow_indices.numel() - 1, device=crow_indices.device)
    return torch.repeat_interleave(rows, crow_indices.diff(), output_size=count)


def _positions(crow_indices: Tensor, col_indices: Tensor, columns: int) -> Tensor:
    return row_of_each(crow_indices, col_indices.numel()) * columns + col_indices


def _scatter(values: Tensor, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    dense = values.new_zeros(torch.Size(shape).numel())
    return dense.scatter(0, positions, values).view(shape)


def scattered(values: Tensor, crow_indices: Tensor, col_indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The dense weight of this shape, in the dtype of the values."""
    columns = torch.Size(shape[1:]).numel()
    return _scatter(values, _positions(crow_indices, col_indices, columns), shape)


def used_weight(weight: Tensor, flat_indices: Tensor) -> Tensor:
    """A dense weight at its pattern and zero elsewhere, which torch differentiates to the gradient of the whole."""
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask = mask.index_fill(0, flat_indices, True).view(weight.shape)
    nothing = (weight - weight.detach()).nan_to_num(0.0, 0.0, 0.0)
    return torch.where(mask, weight, nothing)


def values(weight: Tensor, flat_indices: Tensor) -> Tensor:
    """The elements at these places. Raises ValueError for a weight that is not zero elsewhere; on a GPU, for which
    nobody is to wait, they are all NaN then.
    """
    found = weight.flatten().index_select(0, flat_indices)
    if weight.is_cuda:
        return torch.where(weight.count_nonzero() == found.count_nonzero(), found, float("nan"))
    if int(weight.count_nonzero()) != int(found.count_nonzero()):
        raise ValueError(
            "sparse_conv2d: expected weight that is zero outside of its pattern in compiled code, got nonzeros;"
            " set_pattern() takes them in, then compile again"
        )
    return found


def forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Geometry,
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """The convolution of the padded input by the weight that `values` are scattered into; plus residual, and no less
    than low nor more than high.
    """
    g = Geometry(*geometry)
    shape = (crow_indices.numel() - 1, input.size(1) // g.groups, g.kernel_h, g.kernel_w)
    positions = _positions(crow_indices, col_indices, shape[1] * g.taps)
    return dense_forward(input, _scatter(wide(values), positions, shape), bias, g, residual, low, high)


def dense_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """`forward` by a weight [O, C/G, kh, kw] with its zeros."""
    g = geometry
    output = F.conv2d(
        pad(wide(input), g),
        wide(weight),
        None if bias is None else wide(bias),
        stride=(g.stride_h, g.stride_w),
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
    )
    if residual is not None:
        output = output + wide(residual)
    if low is not None or high is not None:
        output = output.clamp(low, high)
    return output.to(input.dtype).contiguous(memory_format=memory_format(is_channels_last(input)))


def input_gradient(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    permutation: Tensor,
    geometry: Geometry,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    """Gradient to an input of height x width: the transposed convolution of grad_output, without the padding.

    The indices are those of the transposed pattern: row g * C/G + i holds (o, tap) at column o * taps + tap, o counted
    within group g, and permutation says where in `values` each entry is.
    """
    g = Geometry(*geometry)
    channels, outputs = crow_indices.numel() - 1, grad_output.size(1) // g.groups
    positions = _positions(crow_indices, col_indices, outputs * g.taps)
    transposed = _scatter(
        wide(values)[permutation.long()], positions, (g.groups, channels // g.groups, outputs, g.taps)
    )
    weight = transposed.transpose(1, 2).reshape(g.groups * outputs, channels // g.groups, g.kernel_h, g.kernel_w)
    padded_h, padded_w = height + g.pad_top + g.pad_bottom, width + g.pad_left + g.pad_right
    gradient = conv2d_input(
        (grad_output.size(0), channels, padded_h, padded_w),
        weight,
        wide(grad_output),
        stride=(g.stride_h, g.stride_w),
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
    )
    inner = gradient[:, :, g.pad_top : g.pad_top + height, g.pad_left : g.pad_left + width]
    return inner.to(grad_output.dtype).contiguous(memory_format=memory_format(channels_last))


def weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: Geometry
) -> Tensor:
    """Gradient to the values: that of the dense weight at the nonzeros."""
    g = Geometry(*geometry)
    dense = conv2d_weight(
        pad(wide(input), g),
        (grad_output.size(1), input.size(1) // g.groups, g.kernel_h, g.kernel_w),
        wide(grad_output),
        stride=(g.stride_h, g.stride_w),
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
    )
    positions = _positions(crow_indices, col_indices, dense[0].numel())
    return dense.flatten()[positions].to(input.dtype)
