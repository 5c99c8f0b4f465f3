# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The operators that torch knows: schemas, results without data, and what runs where no compiled kernel is registered.

`sparsekernels::_sparse_conv2d`, `_sparse_conv2d_input_gradient` and `_sparse_conv2d_weight_gradient` are kernel
operators: torch's dispatcher hands them to the compiled kernel of the input's device (csrc/sparse_conv2d/bindings.cpp),
or to the next row of the table. They know no gradients, no float64 (which the caller takes to the reference), and no
dimensions but four: a linear layer is the 1x1 case on [rows, in, 1, 1]. The first also adds a residual, of the sizes
and strides of its result, and limits the result to low .. high. Where they take a transposed pattern, the gradient to
the input, it is that of `Unstructured.transposed`.

`sparsekernels::sparse_conv2d`, `sparse_conv2d_input_gradient` and `sparse_conv2d_weight_gradient` know their gradients
(registered in op.py); graphs made by torch.export show these. Their weight is the values at the nonzeros [nnz], or the
dense weight [O, C/G, kh, kw] where its gradient is to be dense: then flat_indices are its nonzeros. transposed is empty
or the three tensors of the transposed pattern, which are worked out where they are not given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import _library
from ..._torch import has_kernel
from ...dispatch import Implementation, select
from ..convolution import Geometry
from . import reference
from .arguments import check_forward, check_indices, check_input_gradient, check_weight_gradient

_PATTERN = "Tensor crow_indices, Tensor col_indices, Tensor? flat_indices, Tensor[] transposed, int[] geometry"
_IMAGE = "SymInt height, SymInt width, bool channels_last"
_SCHEMAS = (
    "_sparse_conv2d(Tensor input, Tensor values, Tensor? bias, Tensor crow_indices, Tensor col_indices, int[] geometry,"
    " Tensor? residual=None, float? low=None, float? high=None) -> Tensor",
    "_plan_sparse_conv2d(Tensor crow_indices, Tensor col_indices, int[] geometry, int columns) -> int",
    "_planned_sparse_conv2d(Tensor input, Tensor weight, Tensor? bias, int plan, Tensor? residual=None,"
    " float? low=None, float? high=None) -> Tensor",
    "_free_sparse_conv2d_plan(int plan) -> ()",
    "_sparse_conv2d_input_gradient(Tensor grad_output, Tensor values, Tensor crow_indices, Tensor col_indices,"
    f" Tensor permutation, int[] geometry, {_IMAGE}) -> Tensor",
    "_sparse_conv2d_weight_gradient(Tensor grad_output, Tensor input, Tensor crow_indices, Tensor col_indices,"
    " int[] geometry) -> Tensor",
    f"sparse_conv2d(Tensor input, Tensor weight, Tensor? bias, {_PATTERN}) -> Tensor",
    f"sparse_conv2d_input_gradient(Tensor grad_output, Tensor weight, {_PATTERN}, SymInt channels, {_IMAGE}) -> Tensor",
    f"sparse_conv2d_weight_gradient(Tensor grad_output, Tensor input, {_PATTERN}) -> Tensor",
)

library = torch.library.Library("sparsekernels", "FRAGMENT")
for _schema in _SCHEMAS:
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

has_plans = has_kernel("sparsekernels::_planned_sparse_conv2d", "CPU")
_IN_LIBRARY = has_kernel("sparsekernels::_sparse_conv2d", "CPU")


def _cpu_supports(input: Tensor) -> str | None:
    if input.device.type != "cpu":
        return f"it runs on cpu, the input is on {input.device}"
    if _library.cpu is None:
        return _library.cpu_missing
    if not _IN_LIBRARY:
        return "the CPU kernels that are installed are older than this operation: build them again"
    if input.dtype == torch.float64:
        return "it computes in float32, the input is float64"
    return None


def _compiled_kernels() -> ModuleType:
    from . import compiled

    return compiled


def _reference_kernels() -> ModuleType:
    return reference


IMPLEMENTATIONS = (
    Implementation("cpu", _cpu_supports, _compiled_kernels),
    Implementation("reference", lambda _: None, _reference_kernels),
)


# What runs, and what results look like, by kernel operator.


def _forward(input: Tensor, *arguments: Any) -> Tensor:
    check_forward(input, *arguments)
    _, _, crow_indices, col_indices, geometry, *_ = arguments
    _check_contents(input, geometry, crow_indices, col_indices)
    return select(IMPLEMENTATIONS, input).kernels().forward(input, *arguments)


def _input_gradient(grad_output: Tensor, *arguments: Any) -> Tensor:
    check_input_gradient(grad_output, *arguments)
    _, crow_indices, col_indices, permutation, geometry, *_ = arguments
    _check_contents(grad_output, geometry, crow_indices, col_indices, permutation)
    return select(IMPLEMENTATIONS, grad_output).kernels().input_gradient(grad_output, *arguments)


def _weight_gradient(grad_output: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    check_weight_gradient(grad_output, input, *arguments)
    crow_indices, col_indices, geometry = arguments
    _check_contents(input, geometry, crow_indices, col_indices)
    return select(IMPLEMENTATIONS, input).kernels().weight_gradient(grad_output, input, *arguments)


def _check_contents(
    image: Tensor, geometry: list[int], crow_indices: Tensor, col_indices: Tensor, permutation: Tensor | None = None
) -> None:
    """What the compiled kernels check while they run. `image` is what the columns count the channels of."""
    if image.device.type == "cpu":
        g = Geometry(*geometry)
        check_indices(crow_indices, col_indices, image.size(1) // g.groups * g.taps, permutation)


def _fake_forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: list[int],
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    check_forward(input, values, bias, crow_indices, col_indices, geometry, residual, low, high)
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
    return _empty_input_gradient(grad_output, crow_indices.numel() - 1, height, width, channels_last)


def _fake_weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: list[int]
) -> Tensor:
    return input.new_empty(col_indices.shape)


def empty_output(input: Tensor, outputs: int, geometry: Sequence[int]) -> Tensor:
    height, width = Geometry(*geometry).output_size(input.size(2), input.size(3))
    return torch.empty(
        (input.size(0), outputs, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=reference.memory_format(reference.is_channels_last(input)),
    )


def _empty_input_gradient(grad_output: Tensor, channels: int, height: int, width: int, channels_last: bool) -> Tensor:
    return torch.empty(
        (grad_output.size(0), channels, height, width),
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=reference.memory_format(channels_last),
    )


def _fake_operator_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    flat_indices: Tensor | None,
    transposed: list[Tensor],
    geometry: list[int],
) -> Tensor:
    return empty_output(input, crow_indices.numel() - 1, geometry)


def _fake_operator_input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    flat_indices: Tensor | None,
    transposed: list[Tensor],
    geometry: list[int],
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    return _empty_input_gradient(grad_output, channels, height, width, channels_last)


def _fake_operator_weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, *rest: Any
) -> Tensor:
    return input.new_empty(col_indices.shape)


_FAKES: dict[str, Callable[..., Tensor]] = {
    "sparse_conv2d": _fake_operator_forward,
    "sparse_conv2d_input_gradient": _fake_operator_input_gradient,
    "sparse_conv2d_weight_gradient": _fake_operator_weight_gradient,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"sparsekernels::{_name}", _fake, lib=library)

_KERNELS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "_sparse_conv2d": (_forward, _fake_forward),
    "_sparse_conv2d_input_gradient": (_input_gradient, _fake_input_gradient),
    "_sparse_conv2d_weight_gradient": (_weight_gradient, _fake_weight_gradient),
}
for _name, (_kernel, _fake) in _KERNELS.items():
    library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparsekernels::{_name}", _fake, lib=library)
