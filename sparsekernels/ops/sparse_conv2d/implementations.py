# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of sparse_conv2d and sparse_linear, and their kernel operators.

`sparsekernels::_sparse_conv2d`, `_sparse_conv2d_input_gradient` and `_sparse_conv2d_weight_gradient` are compiled in
csrc/sparse_conv2d/bindings.cpp. They know no float64, which is the reference's, and no dimensions but four: a linear
layer is the 1x1 case on [rows, in, 1, 1]. The first also adds a residual, of the sizes and strides of its result, and
limits the result to low .. high. Where they take a transposed pattern, the gradient to the input, it is that of
`Unstructured.transposed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Call, Implementation, is_transformed
from ...formats.unstructured import Unstructured
from .._operation import Operation, register_fake
from .._triton_support import supports_call
from ..convolution import Geometry
from ..precision import COMPUTED_IN_FLOAT32
from . import reference
from .arguments import check_forward, check_indices, check_input_gradient, check_weight_gradient


def _triton() -> Any:
    # into compiled code the tables of patterns must not be traced, and tensors of transforms have no memory to read
    if torch.compiler.is_compiling() or is_transformed():
        return IN_TRITON.compiled
    return _eager_triton()


def _eager_triton() -> Any:
    from . import expanded

    return expanded


def _of_operator(function: str) -> Callable[..., Tensor]:
    return lambda *arguments: getattr(_eager_triton(), function)(*arguments)


def _supports_triton(call: Call) -> str | None:
    reason = supports_call(call)
    if reason is None and (call.format, call.block_size) != (Unstructured.format, None):
        return f"it takes {Unstructured.format!r} weights of single elements"
    if reason is None and call.dtype not in COMPUTED_IN_FLOAT32:
        return f"it takes {', '.join(str(dtype)[6:] for dtype in COMPUTED_IN_FLOAT32)}, the input is {call.dtype}"
    return reason


SPARSE_CONV2D = Operation(
    "sparse_conv2d, sparse_conv1d, sparse_linear",
    reference,
    devices=("cpu",),
    others=(Implementation("triton", _supports_triton, _triton),),
    dtypes=COMPUTED_IN_FLOAT32,
    format=Unstructured.format,
)
compiled = SPARSE_CONV2D.compiled


# What is wrong with a call of the reference; the compiled kernels check the same while they run.


def _check_forward(input: Tensor, *arguments: Any) -> None:
    check_forward(input, *arguments)
    _, _, crow_indices, col_indices, geometry, *_ = arguments
    _check_contents(input, geometry, crow_indices, col_indices)


def _check_input_gradient(grad_output: Tensor, *arguments: Any) -> None:
    check_input_gradient(grad_output, *arguments)
    _, crow_indices, col_indices, permutation, geometry, *_ = arguments
    _check_contents(grad_output, geometry, crow_indices, col_indices, permutation)


def _check_weight_gradient(grad_output: Tensor, input: Tensor, *arguments: Any) -> None:
    check_weight_gradient(grad_output, input, *arguments)
    crow_indices, col_indices, geometry = arguments
    _check_contents(input, geometry, crow_indices, col_indices)


def _check_contents(
    image: Tensor, geometry: list[int], crow_indices: Tensor, col_indices: Tensor, permutation: Tensor | None = None
) -> None:
    """`image` is what the columns count the channels of."""
    if image.device.type == "cpu":
        g = Geometry(*geometry)
        check_indices(crow_indices, col_indices, image.size(1) // g.groups * g.taps, permutation)


# Results without data.


def empty_output(input: Tensor, outputs: int, geometry: Sequence[int]) -> Tensor:
    height, width = Geometry(*geometry).output_size(input.size(2), input.size(3))
    return torch.empty(
        (input.size(0), outputs, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=reference.memory_format(reference.is_channels_last(input)),
    )


def empty_input_gradient(grad_output: Tensor, channels: int, height: int, width: int, channels_last: bool) -> Tensor:
    return torch.empty(
        (grad_output.size(0), channels, height, width),
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=reference.memory_format(channels_last),
    )


def _fake_forward(input: Tensor, *arguments: Any) -> Tensor:
    check_forward(input, *arguments)
    _, _, crow_indices, _, geometry, *_ = arguments
    return empty_output(input, crow_indices.numel() - 1, geometry)


def _fake_input_gradient(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    permutation: Tensor,
    geometry: list[int],
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    return empty_input_gradient(grad_output, crow_indices.numel() - 1, height, width, channels_last)


def _fake_weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: list[int]
) -> Tensor:
    return input.new_empty(col_indices.shape)


_FORWARD = (
    "sparse_conv2d(Tensor input, Tensor values, Tensor? bias, Tensor crow_indices, Tensor col_indices, int[] geometry,"
    " Tensor? residual=None, float? low=None, float? high=None) -> Tensor"
)
_INPUT_GRADIENT = (
    "sparse_conv2d_input_gradient(Tensor grad_output, Tensor values, Tensor crow_indices, Tensor col_indices,"
    " Tensor permutation, int[] geometry, SymInt height, SymInt width, bool channels_last) -> Tensor"
)
_WEIGHT_GRADIENT = (
    "sparse_conv2d_weight_gradient(Tensor grad_output, Tensor input, Tensor crow_indices, Tensor col_indices,"
    " int[] geometry) -> Tensor"
)
forward = SPARSE_CONV2D.kernel("forward", "_" + _FORWARD, _fake_forward, check=_check_forward)
input_gradient = SPARSE_CONV2D.kernel(
    "input_gradient", "_" + _INPUT_GRADIENT, _fake_input_gradient, check=_check_input_gradient
)
weight_gradient = SPARSE_CONV2D.kernel(
    "weight_gradient", "_" + _WEIGHT_GRADIENT, _fake_weight_gradient, check=_check_weight_gradient
)

IN_TRITON = Operation(
    "sparse_conv2d in Triton",
    SimpleNamespace(**{name: _of_operator(name) for name in ("forward", "input_gradient", "weight_gradient")}),
)
"""The row "triton" as operators, for code that is compiled or transformed while this backend is asked for by name."""
IN_TRITON.kernel("forward", "triton_" + _FORWARD, _fake_forward)
IN_TRITON.kernel("input_gradient", "triton_" + _INPUT_GRADIENT, _fake_input_gradient)
IN_TRITON.kernel("weight_gradient", "triton_" + _WEIGHT_GRADIENT, _fake_weight_gradient)

SPARSE_CONV2D.kernel(
    "values",
    "_sparse_values(Tensor weight, Tensor flat_indices) -> Tensor",
    lambda weight, flat_indices: weight.new_empty(flat_indices.shape),
)

_BITMAP_LINEAR = (
    "_bitmap_linear(Tensor input, Tensor words, Tensor crow_indices, Tensor values, Tensor? bias) -> Tensor"
)
bitmap_linear = SPARSE_CONV2D.define(_BITMAP_LINEAR)
"""input [..., in] of 1 to 16 rows by a weight [out, in] as the words of a bitmap (bitmap.py) and its values. CUDA's."""

register_fake(
    _BITMAP_LINEAR,
    lambda input, words, crow_indices, values, bias: input.new_empty((*input.shape[:-1], words.size(0))),
)

# What the compiled library says of itself; it has to be loaded.

fma_from_l1_gflops = SPARSE_CONV2D.define("_fma_from_l1_gflops() -> float")
"""The rate of multiply-adds with one operand from L1, measured on all threads of torch; takes 0.1 s."""

kept_kernel_bytes = SPARSE_CONV2D.define("_kept_kernel_bytes() -> int")
"""Of generated code that is kept at present; -1 where code may not be generated."""

most_kernel_bytes = SPARSE_CONV2D.define("_most_kernel_bytes() -> int")
"""That may be kept, of patterns in use."""
