# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What sparse_conv2d, sparse_conv1d and sparse_linear accept, and the words in which they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import DTYPES, check_tensor
from ...formats import SparseFormat
from ...formats.compressed_rows import check_contents
from ..convolution import LIMIT, Geometry, OneOrTwo, geometry_of


def validate(
    op: str,
    input: Tensor,
    weight: SparseFormat,
    bias: Tensor | None,
    stride: OneOrTwo = 1,
    padding: OneOrTwo | str = 0,
    dilation: OneOrTwo = 1,
    groups: int = 1,
) -> None:
    """Raise TypeError or ValueError, naming the argument, what was given and what is accepted; else return.

    What values, input and bias have to have in common is left to `validate_together`, after autocast.
    """
    validate_pattern(op, weight)
    for name, tensor in (("input", input), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        checked = check_tensor(op, name, tensor)
        if checked.device != weight.device:
            raise ValueError(f"{op}: expected {name} on {weight.device} like weight, got {checked.device}")
    if bias is not None and tuple(bias.shape) != weight.shape[:1]:
        raise ValueError(f"{op}: expected bias of shape [{weight.shape[0]}] for the outputs, got {list(bias.shape)}")
    if op == "sparse_linear":
        _validate_linear(input, weight)
    else:
        _validate_convolution(op, input, weight, stride, padding, dilation, groups)


_OPERATIONS = {
    2: ("sparse_linear", "[out, in]", "a linear layer's weight"),
    3: ("sparse_conv1d", "[out, in/groups, k]", "a convolution's weight of one tap dimension"),
    4: ("sparse_conv2d", "[out, in/groups, kh, kw]", "a convolution's weight of two tap dimensions"),
}
"""By the dimensions of a weight: the operation that takes it, its shape in words, and what it is."""


def validate_pattern(op: str, weight: SparseFormat) -> None:
    """Raise TypeError or ValueError for what is no sparse weight, or one of another operation."""
    if not isinstance(weight, SparseFormat):
        raise TypeError(
            f"{op}: expected weight to be a sparsekernels.Unstructured or BlockSparse (made by their from_dense), got"
            f" {type(weight).__name__}"
        )
    other, _, what = _OPERATIONS[len(weight.shape)]
    if other != op:
        expected = next(shape for name, shape, _ in _OPERATIONS.values() if name == op)
        raise ValueError(f"{op}: expected weight of shape {expected}, got {list(weight.shape)}; {what} goes to {other}")


def _validate_linear(input: Tensor, weight: SparseFormat) -> None:
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"sparse_linear: expected input of shape [*, {weight.shape[1]}] with weight of shape"
            f" {list(weight.shape)}, got {list(input.shape)}"
        )


def _validate_convolution(
    op: str,
    input: Tensor,
    weight: SparseFormat,
    stride: OneOrTwo,
    padding: OneOrTwo | str,
    dilation: OneOrTwo,
    groups: int,
) -> None:
    geometry = geometry_of(weight.shape, stride, padding, dilation, groups)
    _validate_sizes(geometry, op)
    dims = len(weight.shape) - 2
    if input.dim() not in (dims + 1, dims + 2):
        images = "[N, C, H, W] or [C, H, W]" if dims == 2 else "[N, C, L] or [C, L]"
        raise ValueError(f"{op}: expected input of shape {images}, got {list(input.shape)}")
    if weight.shape[0] % geometry.groups:
        raise ValueError(f"{op}: expected groups to divide the {weight.shape[0]} outputs, got {groups}")
    channels = input.shape[-dims - 1]
    height, width = input.shape[-2:] if dims == 2 else (1, input.shape[-1])
    if channels != weight.shape[1] * geometry.groups:
        raise ValueError(
            f"{op}: expected input of {weight.shape[1] * geometry.groups} channels with weight of shape"
            f" {list(weight.shape)} and {geometry.groups} groups, got {channels}"
        )
    if min(geometry.output_size(height, width)) < 1:
        extent_h = geometry.dilation_h * (geometry.kernel_h - 1) + 1
        extent_w = geometry.dilation_w * (geometry.kernel_w - 1) + 1
        extent, given = f"{extent_h}x{extent_w} pixels", f"{height}x{width}"
        if dims == 1:
            extent, given = f"{extent_w} positions", str(width)
        raise ValueError(
            f"{op}: expected input of at least the {extent} that the kernel spans, with padding, got {given} without"
        )


def _validate_sizes(geometry: Geometry, op: str = "sparse_conv2d") -> None:
    """Raise ValueError for numbers that the kernels cannot compute with."""
    numbers = geometry._asdict()
    for name in ("kernel", "stride", "dilation", "pad"):
        largest = max(value for key, value in numbers.items() if key.startswith(name))
        if largest >= LIMIT:
            name = {"kernel": "kernel size", "pad": "padding"}.get(name, name)
            raise ValueError(f"{op}: expected {name} below {LIMIT}, got {largest}")
    largest = max(geometry.kernel_h * geometry.dilation_h, geometry.kernel_w * geometry.dilation_w)
    if largest >= LIMIT:
        raise ValueError(f"{op}: expected kernel size times dilation below {LIMIT}, got {largest}")


def validate_together(op: str, input: Tensor, values: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless the three are on one device, TypeError unless they are of one dtype."""
    for name, tensor in (("weight", values), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{op}: expected {name} on {input.device} like input, got {tensor.device}")
    if values.dtype != input.dtype:
        raise TypeError(f"{op}: expected weight of dtype {input.dtype} like input, got {values.dtype}")
    if bias is not None and bias.dtype != input.dtype:
        raise TypeError(f"{op}: expected bias of dtype {input.dtype} like input, got {bias.dtype}")


# The kernel operators' own checks, terse: they keep the reference from broadcasting what does not fit.
# check_indices reads the indices, which makes the host wait for a GPU: it is for the CPU.


def _require(condition: bool, expected: str, *given: object) -> None:
    if not condition:
        got = ", ".join(str(list(one) if isinstance(one, torch.Size) else one) for one in given)
        raise ValueError(f"sparse_conv2d: expected {expected}, got {got}")


def _check_common(
    image: Tensor, values: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]
) -> Geometry:
    _require(len(geometry) == 11, "geometry of 11 numbers", len(geometry))
    g = Geometry(*geometry)
    _require(image.dim() == 4, "input and grad_output of 4 dimensions", image.dim())
    _require(min(g) >= 0 and min(*g[:4], *g[8:]) >= 1, "geometry of positive numbers, or 0 for padding", geometry)
    _validate_sizes(g)
    _require(
        crow_indices.dim() == 1 and crow_indices.numel() >= 2,
        "crow_indices of 1 dimension and at least 2 elements",
        crow_indices.shape,
    )
    _require(image.size(1) >= 1, "input and grad_output with channels", image.shape)
    _require(
        crow_indices.dtype == col_indices.dtype == torch.int32,
        "crow_indices and col_indices of dtype torch.int32",
        crow_indices.dtype,
        col_indices.dtype,
    )
    _require(
        values.shape == col_indices.shape and values.dim() == 1,
        "values and col_indices of 1 dimension and one size",
        values.shape,
        col_indices.shape,
    )
    _require(
        image.dtype in DTYPES and values.dtype == image.dtype,
        "input, grad_output and values of one floating dtype",
        image.dtype,
        values.dtype,
    )
    _require(
        crow_indices.device == col_indices.device == values.device == image.device,
        "input, grad_output, values and indices on one device",
        image.device,
        values.device,
        crow_indices.device,
        col_indices.device,
    )
    return g


def check_limits(low: float | None, high: float | None) -> None:
    """Raise ValueError where no result lies between them."""
    limits = [-math.inf if low is None else low, math.inf if high is None else high]
    _require(limits[0] <= limits[1], "low of at most high", low, high)


def check_forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    g = _check_common(input, values, crow_indices, col_indices, geometry)
    outputs = crow_indices.numel() - 1
    _require(input.size(1) % g.groups == 0 and outputs % g.groups == 0, "groups to divide the channels", g.groups)
    size = g.output_size(input.size(2), input.size(3))
    _require(min(size) >= 1, "input that the kernel fits into with padding", input.shape)
    if residual is not None:
        like_input = residual.dtype == input.dtype and residual.device == input.device
        _require(like_input, "residual of the dtype and device of input", residual.dtype, residual.device)
        fits = tuple(residual.shape) == (input.size(0), outputs, *size)
        _require(fits, "residual of the shape of the output", residual.shape)
    check_limits(low, high)
    if bias is not None:
        like_input = bias.dtype == input.dtype and bias.device == input.device
        _require(like_input, "bias of the dtype and device of input", bias.dtype, bias.device)
        _require(bias.dim() == 1 and bias.numel() == outputs, "bias of one element per output channel", bias.shape)


def check_input_gradient(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    permutation: Tensor,
    geometry: Sequence[int],
    height: int,
    width: int,
    channels_last: bool,
) -> None:
    g = _check_common(grad_output, values, crow_indices, col_indices, geometry)
    like_columns = permutation.shape == col_indices.shape and permutation.dtype == torch.int32
    _require(like_columns, "permutation of the shape and dtype of col_indices", permutation.shape, permutation.dtype)
    inputs, outputs = crow_indices.numel() - 1, grad_output.size(1)
    _require(inputs % g.groups == 0 and outputs % g.groups == 0, "groups to divide the channels", g.groups)
    fits = tuple(grad_output.shape[2:]) == g.output_size(height, width)
    _require(fits, "grad_output of the size of the output", grad_output.shape)


def check_weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]
) -> None:
    g = _check_common(input, input.new_empty(col_indices.shape), crow_indices, col_indices, geometry)
    outputs = crow_indices.numel() - 1
    _require(input.size(1) % g.groups == 0 and outputs % g.groups == 0, "groups to divide the channels", g.groups)
    like_input = grad_output.dtype == input.dtype and grad_output.device == input.device
    _require(like_input, "grad_output of the dtype and device of input", grad_output.dtype, grad_output.device)
    fits = tuple(grad_output.shape) == (input.size(0), outputs, *g.output_size(input.size(2), input.size(3)))
    _require(fits, "grad_output of the shape of the output", grad_output.shape)


def check_indices(crow_indices: Tensor, col_indices: Tensor, columns: int, permutation: Tensor | None = None) -> None:
    """Raise ValueError unless these are the compressed rows of a matrix of `columns`; and, if given, a permutation
    within its nonzeros.
    """
    check_contents("sparse_conv2d", crow_indices, col_indices, columns)
    if permutation is not None and permutation.numel():
        low, high = int(permutation.min()), int(permutation.max())
        _require(low >= 0 and high < permutation.numel(), f"permutation from 0 to {permutation.numel() - 1}", low, high)
