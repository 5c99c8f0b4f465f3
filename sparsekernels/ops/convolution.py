# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a convolution is besides its tensors."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

OneOrTwo = int | Sequence[int]

LIMIT = 2**20
"""Kernel size, stride, padding, dilation, and kernel size times dilation are below this."""


class Geometry(NamedTuple):
    """Kernel size, stride, zero padding of the four sides, dilation and groups; `int[] geometry` of the operators."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int
    dilation_h: int
    dilation_w: int
    groups: int

    @property
    def taps(self) -> int:
        return self.kernel_h * self.kernel_w

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output; not positive where the kernel is larger than the padded input."""
        padded_h, padded_w = height + self.pad_top + self.pad_bottom, width + self.pad_left + self.pad_right
        return (
            (padded_h - self.dilation_h * (self.kernel_h - 1) - 1) // self.stride_h + 1,
            (padded_w - self.dilation_w * (self.kernel_w - 1) - 1) // self.stride_w + 1,
        )


LINEAR = Geometry(
    kernel_h=1,
    kernel_w=1,
    stride_h=1,
    stride_w=1,
    pad_top=0,
    pad_bottom=0,
    pad_left=0,
    pad_right=0,
    dilation_h=1,
    dilation_w=1,
    groups=1,
)
"""A linear layer is the 1x1 convolution of images of one pixel."""


def pad(input: Tensor, geometry: Geometry) -> Tensor:
    """The input with the zeros around it; itself where there are none."""
    g = geometry  # its fields: Dynamo of torch 2.10 does not see into a tuple that is a property of it
    sides = (g.pad_left, g.pad_right, g.pad_top, g.pad_bottom)
    return F.pad(input, sides) if any(sides) else input


def pair(op: str, name: str, value: OneOrTwo, least: int, dims: int = 2) -> tuple[int, int]:
    """`value` for height and width. Raises TypeError or ValueError, in words that name `op`, for all else.

    dims: 1 where there is a width alone; the number for the height is then `least`, which does nothing.
    """
    expected = f"expected {name} to be an integer of at least {least}" + (" or two of them" if dims == 2 else "")
    try:
        # torch's own modules and functions also take a sequence of one
        numbers = [operator.index(value)] if not isinstance(value, Sequence) else [operator.index(v) for v in value]
    except TypeError:
        raise TypeError(f"{op}: {expected}, got {value!r}") from None
    if len(numbers) not in range(1, dims + 1) or min(numbers) < least:
        raise ValueError(f"{op}: {expected}, got {value!r}")
    return (numbers[0] if dims == 2 else least), numbers[-1]


def geometry_of(
    weight_shape: tuple[int, ...],
    stride: OneOrTwo,
    padding: OneOrTwo | str,
    dilation: OneOrTwo,
    groups: int,
) -> Geometry:
    """The geometry of a call of conv2d; with a weight of three dimensions, of conv1d, whose images are one pixel high.

    Raises TypeError or ValueError, in words that name the operation, for what that does not accept.
    """
    _, _, kernel_h, kernel_w = shape_of_images(weight_shape)
    dims = len(weight_shape) - 2
    op = f"sparse_conv{dims}d"
    stride_h, stride_w = pair(op, "stride", stride, 1, dims)
    dilation_h, dilation_w = pair(op, "dilation", dilation, 1, dims)
    if isinstance(padding, str):
        if padding == "same" and (stride_h, stride_w) != (1, 1):
            raise ValueError(f'{op}: expected stride to be 1 with padding "same", got {stride!r}')
        extents = dilation_h * (kernel_h - 1), dilation_w * (kernel_w - 1)
        top, bottom, left, right = _named_padding(op, padding, *extents, dims)
    else:
        top, left = bottom, right = pair(op, "padding", padding, 0, dims)
    try:
        groups = operator.index(groups)
    except TypeError:
        raise TypeError(f"{op}: expected groups to be an integer of at least 1, got {groups!r}") from None
    if groups < 1:
        raise ValueError(f"{op}: expected groups to be an integer of at least 1, got {groups}")
    return Geometry(kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, groups)


def shape_of_images(weight_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a weight as one of a convolution of images: a linear layer's are one pixel, conv1d's one high."""
    out, inputs, *kernel = weight_shape
    return out, inputs, *(1, 1)[len(kernel) :], *kernel


def _named_padding(op: str, padding: str, height: int, width: int, dims: int) -> tuple[int, int, int, int]:
    """height, width: what a kernel spans beside one pixel."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        numbers = "an integer or two of them" if dims == 2 else "an integer"
        raise ValueError(f'{op}: expected padding to be "same", "valid", {numbers}, got {padding!r}')
    return height // 2, height - height // 2, width // 2, width - width // 2  # as torch: the odd one below and right


# Looking one up takes 0.2 us where working it out takes 3.
cached_geometry_of = functools.lru_cache(maxsize=1024, typed=True)(geometry_of)
