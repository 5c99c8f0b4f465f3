# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of what the Triton kernels for blocks are called with, which read where that says. They ask no device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..convolution import Geometry
from ..precision import COMPUTED_IN_FLOAT32
from .arguments import _require, _validate_sizes, check_limits


def check_common(
    image: Tensor, crow_indices: Tensor, col_indices: Tensor, block: Sequence[int], geometry: Sequence[int]
) -> Geometry:
    """The geometry; raise ValueError for an image, indices or numbers that do not fit."""
    _require(len(geometry) == 11, "geometry of 11 numbers", len(geometry))
    g = Geometry(*geometry)
    _require(min(g) >= 0 and min(*g[:4], *g[8:]) >= 1, "geometry of positive numbers, or 0 for padding", list(geometry))
    _validate_sizes(g)
    _require(len(block) == 2, "block of 2 numbers", len(block))
    _require(image.dim() == 4, "input and grad_output of 4 dimensions", image.dim())
    _require(image.dtype in COMPUTED_IN_FLOAT32, "input and grad_output of float32 or a half type", image.dtype)
    _require(
        crow_indices.device == col_indices.device == image.device,
        "input, grad_output and indices on one device",
        image.device,
        crow_indices.device,
        col_indices.device,
    )
    return g


def check_weight(image: Tensor, weight: Tensor, values: int, shape: Sequence[int]) -> None:
    """Raise ValueError for a weight that is neither `values` values nor a dense one of `shape`, or not as the image."""
    _check_like(image, "weight", weight)
    fits = weight.numel() == values if weight.dim() == 1 else tuple(weight.shape) == tuple(shape)
    _require(fits, f"weight of {values} values, or a dense one of {list(shape)}", weight.shape)


def check_forward(
    input: Tensor,
    bias: Tensor | None,
    rows: int,
    geometry: Geometry,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
) -> None:
    """Raise ValueError for what does not fit the input."""
    height, width = input.shape[2:]
    _require(min(geometry.output_size(height, width)) >= 1, "input that the kernel fits into", input.shape)
    _check_channels(input.size(1), rows, geometry)
    check_limits(low, high)
    if bias is not None:
        _check_like(input, "bias", bias)
        _require(tuple(bias.shape) == (rows,), "bias of one element per output channel", bias.shape)
    if residual is not None:
        _check_like(input, "residual", residual)
        _check_output("residual", residual, input.size(0), rows, geometry, input.shape[2:])


def check_input_gradient(grad_output: Tensor, channels: int, height: int, width: int, geometry: Geometry) -> None:
    """Raise ValueError for a gradient that is not of the size of the output."""
    _check_channels(channels, grad_output.size(1), geometry)
    _check_output("grad_output", grad_output, grad_output.size(0), grad_output.size(1), geometry, (height, width))


def check_weight_gradient(grad_output: Tensor, input: Tensor, geometry: Geometry) -> None:
    """Raise ValueError for a gradient that is not of the size of the output."""
    _check_like(input, "grad_output", grad_output)
    _require(grad_output.dim() == 4, "grad_output of 4 dimensions", grad_output.dim())
    _check_channels(input.size(1), grad_output.size(1), geometry)
    _check_output("grad_output", grad_output, input.size(0), grad_output.size(1), geometry, input.shape[2:])


def _check_channels(channels: int, rows: int, geometry: Geometry) -> None:
    groups = geometry.groups
    _require(channels % groups == 0 and rows % groups == 0, "groups to divide the channels", groups)
    _require(channels >= groups and rows >= groups, "input and output with channels", channels, rows)


def _check_like(image: Tensor, name: str, tensor: Tensor) -> None:
    same = tensor.dtype == image.dtype and tensor.device == image.device
    _require(same, f"{name} of {image.dtype} on {image.device} like input", tensor.dtype, tensor.device)
    _require(tensor.layout is torch.strided, f"{name} of layout torch.strided", tensor.layout)


def _check_output(name: str, tensor: Tensor, batch: int, rows: int, geometry: Geometry, size: Sequence[int]) -> None:
    """size: of the input."""
    height, width = size
    expected = (batch, rows, *geometry.output_size(height, width))
    _require(tuple(tensor.shape) == expected, f"{name} of the shape of the output, {list(expected)}", tensor.shape)
