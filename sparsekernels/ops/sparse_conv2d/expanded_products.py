# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""torch's products and convolutions by a dense weight, for weights that were expanded, and dense weight gradients.

A convolution that is a product with rows is made as one. Where the padding is the same on both sides torch is told of
it, so that the input is not copied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

from ..._torch import has_bfloat16_convolutions
from ..convolution import Geometry, pad
from ..precision import wide, wide_dtype
from .reference import is_channels_last


def product_dtype(like: Tensor) -> torch.dtype:
    """In which torch multiplies: on the CPU its sums of short dtypes are not all in float32."""
    return like.dtype if like.is_cuda else wide_dtype(like)


def as_rows(images: Tensor, geometry: Geometry) -> Tensor | None:
    """Images [N, C, H, W] as rows [N * H * W, C], where a convolution is a product with these that need no copy of all.

    Those of one pixel always are, whose elements are copied where they are apart.
    """
    is_product = geometry.taps == 1 and geometry[2:8] == (1, 1, 0, 0, 0, 0) and geometry.groups == 1
    if not is_product:
        return None
    if images.size(2) * images.size(3) == 1:
        rows = images.flatten(1)
        return rows if rows.stride(1) == 1 or rows.size(1) == 1 else rows.contiguous()
    if not is_channels_last(images) or not images.is_contiguous(memory_format=torch.channels_last):
        return None
    return images.permute(0, 2, 3, 1).reshape(-1, images.size(1))


def as_images(y: Tensor, like: Tensor) -> Tensor:
    """Rows as images of the pixels of `like`, and in its layout."""
    images, _, height, width = like.shape
    if height * width == 1 and not is_channels_last(like):
        return y.view(images, -1, 1, 1)
    return y.view(images, height, width, -1).permute(0, 3, 1, 2)


def _padding(geometry: Geometry) -> tuple[int, int] | None:
    g = geometry
    return (g.pad_top, g.pad_left) if (g.pad_top, g.pad_left) == (g.pad_bottom, g.pad_right) else None


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    g, padding = geometry, _padding(geometry)
    if padding is None:
        input, padding = pad(input, g), (0, 0)
    return F.conv2d(input, weight, bias, (g.stride_h, g.stride_w), padding, (g.dilation_h, g.dilation_w), g.groups)


def product_sums(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight.t(), not rounded: the float32 sums of short dtypes.

    torch.mm has them on CUDA, but not where float16 is to be summed as such.
    """
    is_short = rows.dtype is not wide_dtype(rows)
    in_float16 = rows.dtype is torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation
    if rows.is_cuda and is_short and not in_float16:
        return torch.mm(rows, weight.t(), out_dtype=torch.float32)
    return F.linear(wide(rows), wide(weight))


def conv2d_sums(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution, not rounded: in float32 of short dtypes, since cuDNN's results of these are as short."""
    return conv2d(wide(input), wide(weight), None, geometry)


def conv2d_input(shape: tuple[int, int, int, int], weight: Tensor, grad_output: Tensor, geometry: Geometry) -> Tensor:
    g, padding = geometry, _padding(geometry)
    images, channels, height, width = shape
    if padding is None:
        padded = images, channels, height + g.pad_top + g.pad_bottom, width + g.pad_left + g.pad_right
        whole = conv2d_input(padded, weight, grad_output, g._replace(pad_top=0, pad_bottom=0, pad_left=0, pad_right=0))
        return whole[:, :, g.pad_top : g.pad_top + height, g.pad_left : g.pad_left + width]
    return grad.conv2d_input(
        shape, weight, grad_output, (g.stride_h, g.stride_w), padding, (g.dilation_h, g.dilation_w), g.groups
    )


def dense_weight_gradient(grad_output: Tensor, input: Tensor, geometry: Geometry) -> Tensor:
    """Gradient to every element of the weight, [O, C/G, kh, kw]: torch's convolution, in float16 by way of float32.

    On the CPU torch's own in float16 is slower and not as exact as the oracle asks for, and in bfloat16 neither is it
    on processors for which oneDNN has none; with a stride, that of a 1x1
    kernel writes past its memory, so that the input's other pixels are left out before: docs/decisions.md.
    """
    g, padding, stride = geometry, _padding(geometry), (geometry.stride_h, geometry.stride_w)
    leaves_pixels_out = (g.kernel_h, g.kernel_w) == (1, 1) and stride != (1, 1)
    padded = input
    if padding is None or leaves_pixels_out:
        padded, padding = pad(input, g), (0, 0)
    if leaves_pixels_out:
        height, width = (size * step for size, step in zip(grad_output.shape[2:], stride, strict=True))
        padded, stride = padded[:, :, : height : g.stride_h, : width : g.stride_w], (1, 1)
    is_short = input.dtype is torch.float16 or (input.dtype is torch.bfloat16 and not has_bfloat16_convolutions())
    if is_short and not input.is_cuda:
        padded, grad_output = padded.float(), grad_output.float()
    gradient = grad.conv2d_weight(
        padded,
        (grad_output.size(1), input.size(1) // g.groups, g.kernel_h, g.kernel_w),
        grad_output,
        stride=stride,
        padding=padding,
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
    )
    return gradient.to(input.dtype)


def whole_weight_gradient(grad_output: Tensor, input: Tensor, geometry: Geometry) -> Tensor:
    """The gradient to every element of the weight, [O, C/G, kh, kw], with its taps at equal distances."""
    dtype = product_dtype(input)
    rows = as_rows(input, geometry)
    by_output = as_rows(grad_output, geometry)
    if rows is not None and by_output is not None:
        return (by_output.to(dtype).t() @ rows.to(dtype))[:, :, None, None]
    dense = dense_weight_gradient(grad_output.to(dtype), input.to(dtype), geometry)
    if min(dense.shape[2:]) > 1 and dense.stride(2) != dense.size(3) * dense.stride(3):
        dense = dense.contiguous()
    return dense


def tap_stride(weight: Tensor) -> int:
    """From tap to tap, which are at equal distances. A size of 1 may have any stride."""
    return weight.stride(2 if weight.size(3) == 1 else 3)
