# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What sparse_conv2d and sparse_linear accept, and the words in which they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import DTYPES, check_tensor
from ...formats.unstructured import Unstructured, check_contents
from ..convolution import LIMIT, Geometry, OneOrTwo, geometry_of


def validate(
    op: str,
    input: Tensor,
    weight: Unstructured,
    bias: Tensor | None,
    stride: OneOrTwo = 1,
    padding: OneOrTwo | str = 0,
    dilation: OneOrTwo = 1,
    groups: int = 1,
) -> None:
    """Raise TypeError or ValueError, naming the argument, what was given and what is accepted; else return.

    What values, input and bias have to have in common is left to `validate_together`, after autocast.
    """
    if not isinstance(weight, Unstructured):
        raise TypeError(
            f"{op}: weight is of type {type(weight).__name__}, expected a sparsekernels.Unstructured, which"
            " Unstructured.from_dense makes"
        )
    for name, tensor in (("input", input), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        checked = check_tensor(op, name, tensor)
        if checked.device != weight.device:
            raise ValueError(f"{op}: {name} is on {checked.device}, expected the device of weight, {weight.device}")
    if bias is not None and tuple(bias.shape) != weight.shape[:1]:
        raise ValueError(f"{op}: bias has shape {list(bias.shape)}, expected [{weight.shape[0]}], the outputs")
    if op == "sparse_linear":
        _validate_linear(input, weight)
    else:
        _validate_conv2d(input, weight, stride, padding, dilation, groups)


def _validate_linear(input: Tensor, weight: Unstructured) -> None:
    if weight.is_conv:
        raise ValueError(
            f"sparse_linear: weight has shape {list(weight.shape)}, expected [out, in]; a convolution's weight goes"
            " to sparse_conv2d"
        )
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"sparse_linear: input has shape {list(input.shape)}, expected [*, {weight.shape[1]}] with a weight of"
            f" {list(weight.shape)}"
        )


def _validate_conv2d(
    input: Tensor,
    weight: Unstructured,
    stride: OneOrTwo,
    padding: OneOrTwo | str,
    dilation: OneOrTwo,
    groups: int,
) -> None:
    if not weight.is_conv:
        raise ValueError(
            f"sparse_conv2d: weight has shape {list(weight.shape)}, expected [out, in/groups, kh, kw]; a linear"
            " layer's weight goes to sparse_linear"
        )
    geometry = geometry_of(weight.shape, stride, padding, dilation, groups)
    _validate_sizes(geometry)
    if input.dim() not in (3, 4):
        raise ValueError(f"sparse_conv2d: input has shape {list(input.shape)}, expected [N, C, H, W] and [C, H, W]")
    if weight.shape[0] % geometry.groups:
        raise ValueError(f"sparse_conv2d: groups is {groups}, expected a divisor of the {weight.shape[0]} outputs")
    channels, height, width = input.shape[-3:]
    if channels != weight.shape[1] * geometry.groups:
        raise ValueError(
            f"sparse_conv2d: input has {channels} channels, expected {weight.shape[1] * geometry.groups} with a weight"
            f" of {list(weight.shape)} and {geometry.groups} groups"
        )
    if min(geometry.output_size(height, width)) < 1:
        extent_h = geometry.dilation_h * (geometry.kernel_h - 1) + 1
        extent_w = geometry.dilation_w * (geometry.kernel_w - 1) + 1
        raise ValueError(
            f"sparse_conv2d: input has {height}x{width} pixels, expected such that with the padding there are at"
            f" least the {extent_h}x{extent_w} that the kernel spans"
        )


def _validate_sizes(geometry: Geometry) -> None:
    """Raise ValueError for numbers that the kernels cannot compute with."""
    numbers = geometry._asdict()
    for name in ("kernel", "stride", "dilation", "pad"):
        largest = max(value for key, value in numbers.items() if key.startswith(name))
        if largest >= LIMIT:
            name = {"kernel": "kernel size", "pad": "padding"}.get(name, name)
            raise ValueError(f"sparse_conv2d: {name} is {largest}, expected numbers below {LIMIT}")
    largest = max(geometry.kernel_h * geometry.dilation_h, geometry.kernel_w * geometry.dilation_w)
    if largest >= LIMIT:
        raise ValueError(f"sparse_conv2d: kernel size times dilation is {largest}, expected numbers below {LIMIT}")


def validate_together(op: str, input: Tensor, values: Tensor, bias: Tensor | None) -> None:
    """Raise TypeError unless the three are of one dtype."""
    if values.dtype != input.dtype:
        raise TypeError(f"{op}: weight has dtype {values.dtype}, expected that of input, {input.dtype}")
    if bias is not None and bias.dtype != input.dtype:
        raise TypeError(f"{op}: bias has dtype {bias.dtype}, expected that of input, {input.dtype}")


# The kernel operators' own checks, terse: they keep the reference from broadcasting what does not fit.
# check_indices reads the indices, which makes the host wait for a GPU: it is for the CPU.


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"sparse_conv2d: {message}")


def _check_common(
    image: Tensor, values: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]
) -> Geometry:
    _require(len(geometry) == 11, "geometry is of 11 numbers")
    g = Geometry(*geometry)
    _require(image.dim() == 4, "input and grad_output have four dimensions")
    _require(min(g) >= 0 and min(*g[:4], *g[8:]) >= 1, "geometry is of positive numbers, padding may be 0")
    _validate_sizes(g)
    _require(crow_indices.dim() == 1 and crow_indices.numel() >= 2, "crow_indices has one dimension")
    _require(image.size(1) >= 1, "input and grad_output have channels")
    _require(crow_indices.dtype == col_indices.dtype == torch.int32, "indices are int32")
    _require(values.shape == col_indices.shape and values.dim() == 1, "values and col_indices have one size")
    _require(image.dtype in DTYPES and values.dtype == image.dtype, "the tensors have one floating dtype")
    _require(
        crow_indices.device == col_indices.device == values.device == image.device, "the tensors are on one device"
    )
    return g


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
    _require(input.size(1) % g.groups == 0 and outputs % g.groups == 0, "the channels divide into the groups")
    size = g.output_size(input.size(2), input.size(3))
    _require(min(size) >= 1, "the kernel fits the padded input")
    if residual is not None:
        _require(residual.dtype == input.dtype and residual.device == input.device, "residual is as input")
        _require(tuple(residual.shape) == (input.size(0), outputs, *size), "residual has the shape of the output")
    limits = [-math.inf if low is None else low, math.inf if high is None else high]
    _require(limits[0] <= limits[1], "low is a number, and at most high")
    if bias is not None:
        _require(bias.dtype == input.dtype and bias.device == input.device, "bias has the dtype and device of input")
        _require(bias.dim() == 1 and bias.numel() == outputs, "bias has one element an output channel")


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
    _require(permutation.shape == col_indices.shape and permutation.dtype == torch.int32, "permutation as col_indices")
    _require((crow_indices.numel() - 1) % g.groups == 0, "the input channels divide into the groups")
    _require(grad_output.size(1) % g.groups == 0, "the output channels divide into the groups")
    _require(tuple(grad_output.shape[2:]) == g.output_size(height, width), "grad_output has the output's size")


def check_weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]
) -> None:
    g = _check_common(input, input.new_empty(col_indices.shape), crow_indices, col_indices, geometry)
    outputs = crow_indices.numel() - 1
    _require(input.size(1) % g.groups == 0 and outputs % g.groups == 0, "the channels divide into the groups")
    _require(grad_output.dtype == input.dtype and grad_output.device == input.device, "grad_output is as input")
    expected = (input.size(0), outputs, *g.output_size(input.size(2), input.size(3)))
    _require(tuple(grad_output.shape) == expected, "grad_output has the shape of the output")


def check_indices(crow_indices: Tensor, col_indices: Tensor, columns: int, permutation: Tensor | None = None) -> None:
    """Raise ValueError unless these are the compressed rows of a matrix of `columns`; and, if given, a permutation
    within its nonzeros.
    """
    check_contents("sparse_conv2d", crow_indices, col_indices, columns)
    if permutation is not None and permutation.numel():
        low, high = int(permutation.min()), int(permutation.max())
        _require(low >= 0 and high < permutation.numel(), "permutation has indices of values")
