# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The operators that torch knows: schemas, results without data, and what runs where no compiled kernel is registered.

`sparsekernels::_rms_norm`, `_add_rms_norm` and `_rms_norm_backward` are kernel operators: torch's dispatcher hands them
to the compiled kernel of the input's device (csrc/rms_norm/bindings*.cpp), or to the next row of the table. They know
no gradients, and take normalized_shape as two numbers, how many sizes it has and their product: a list of one size
costs 0.4 us more on its way through the dispatcher, a sixth of a small call.

`sparsekernels::rms_norm`, `add_rms_norm` and `rms_norm_backward` know their gradients (registered in op.py); graphs
made by torch.export show these.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import _library
from ...dispatch import Implementation, select
from . import reference
from .arguments import validate

_SHAPE, _KERNEL_SHAPE = "SymInt[] normalized_shape", "int normalized_dims, SymInt normalized_size"
_SCHEMAS = {
    "rms_norm": "(Tensor input, {shape}, Tensor? weight, float? eps) -> Tensor",
    "add_rms_norm": "(Tensor input, Tensor residual, {shape}, Tensor? weight, float? eps) -> (Tensor, Tensor)",
    "rms_norm_backward": (
        "(Tensor grad_output, Tensor input, {shape}, Tensor? weight, float? eps, Tensor? grad_sum, bool need_input,"
        " bool need_weight) -> (Tensor, Tensor)"
    ),
}

library = torch.library.Library("sparsekernels", "FRAGMENT")
for _name, _schema in _SCHEMAS.items():
    library.define(_name + _schema.format(shape=_SHAPE), tags=(torch.Tag.pt2_compliant_tag,))
    library.define(f"_{_name}" + _schema.format(shape=_KERNEL_SHAPE), tags=(torch.Tag.pt2_compliant_tag,))


def _compiled_for(device: str, loaded: str | None, missing: str) -> Callable[[Tensor], str | None]:
    def supports(input: Tensor) -> str | None:
        if input.device.type != device:
            return f"it runs on {device}, the input is on {input.device}"
        return missing if loaded is None else None

    return supports


_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def _triton_supports(input: Tensor) -> str | None:
    if not _TRITON_INSTALLED:
        return "the package triton is not installed"
    if input.device.type == "cuda" or (input.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return f"it runs on cuda, or on cpu in Triton's interpreter (TRITON_INTERPRET=1); the input is on {input.device}"


def _compiled_kernels() -> ModuleType:
    from . import compiled

    return compiled


def _triton_kernels() -> ModuleType:
    from . import triton

    return triton


def _reference_kernels() -> ModuleType:
    return reference


IMPLEMENTATIONS = (
    Implementation("cuda", _compiled_for("cuda", _library.cuda, _library.cuda_missing), _compiled_kernels),
    Implementation("cpu", _compiled_for("cpu", _library.cpu, _library.cpu_missing), _compiled_kernels),
    Implementation("triton", _triton_supports, _triton_kernels),
    Implementation("reference", lambda _: None, _reference_kernels),
)


# What runs, and what results look like, by operator. Written over normalized_shape; a kernel operator's own is made of
# its two numbers, after the check that they fit.


def _forward(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    validate("rms_norm", input, normalized_shape, weight, eps)
    return select(IMPLEMENTATIONS, input).kernels().forward(input, normalized_shape, weight, eps)


def _add_forward(
    input: Tensor, residual: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
    return select(IMPLEMENTATIONS, input).kernels().add_forward(input, residual, normalized_shape, weight, eps)


def _backward(grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return select(IMPLEMENTATIONS, input).kernels().backward(grad_output, input, *arguments)


def _fake_forward(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    validate("rms_norm", input, normalized_shape, weight, eps)
    return reference.empty_output(input)


def _fake_add_forward(
    input: Tensor, residual: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
    return reference.empty_output(input), reference.empty_output(input)


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    grad_sum: Tensor | None,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    grad_input = reference.empty_output(input) if need_input else input.new_empty(0)
    like_weight = input if weight is None else weight
    return grad_input, like_weight.new_empty(tuple(normalized_shape) if need_weight else (0,))


def _with_shape(function: Callable[..., Any], input_at: int, tensors: int) -> Callable[..., Any]:
    """`function` with the two numbers of a kernel operator, behind its first `tensors` arguments, for the shape."""

    def run(*arguments: Any) -> Any:
        input = arguments[input_at]
        dims, size = arguments[tensors : tensors + 2]
        shape = tuple(input.shape[input.dim() - dims :]) if 0 < dims <= input.dim() else (size,)
        if math.prod(shape) != size:
            raise ValueError(f"normalized_shape has {size} elements, expected {math.prod(shape)} as in the input")
        return function(*arguments[:tensors], shape, *arguments[tensors + 2 :])

    return run


# What runs, what it looks like without data, where the input is, and how many tensors come before the shape.
_KERNELS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int, int]] = {
    "rms_norm": (_forward, _fake_forward, 0, 1),
    "add_rms_norm": (_add_forward, _fake_add_forward, 0, 2),
    "rms_norm_backward": (_backward, _fake_backward, 1, 2),
}
for _name, (_kernel, _fake, _input_at, _tensors) in _KERNELS.items():
    library.impl(f"_{_name}", _with_shape(_kernel, _input_at, _tensors), "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparsekernels::_{_name}", _with_shape(_fake, _input_at, _tensors), lib=library)
    torch.library.register_fake(f"sparsekernels::{_name}", _fake, lib=library)
