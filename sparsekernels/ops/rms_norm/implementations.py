# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of rms_norm and add_rms_norm, and their kernel operators.

`sparsekernels::_rms_norm`, `_add_rms_norm` and `_rms_norm_backward` are compiled in csrc/rms_norm/bindings*.cpp. They
take normalized_shape as two numbers, how many sizes it has and their product: a list of one size costs 0.4 us more on
its way through the dispatcher, a sixth of a small call. The variant of the call is added to the first of them: two
arguments more cost as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Implementation
from .._operation import Arguments, Operation, register_autocast
from .._triton_support import supports_call
from . import reference
from .arguments import CAST_BEFORE, keeps_dtype, validate


def _triton() -> Any:
    from . import triton

    return triton


RMS_NORM = Operation(
    "rms_norm", reference, devices=("cuda", "cpu"), others=(Implementation("triton", supports_call, _triton),)
)
compiled = RMS_NORM.compiled


def _forward(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, variant: int = 0
) -> Tensor:
    return forward(input, len(normalized_shape) + variant, math.prod(normalized_shape), weight, eps)


def _add_forward(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> tuple[Tensor, Tensor]:
    return add_forward(input, residual, len(normalized_shape) + variant, math.prod(normalized_shape), weight, eps)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    grad_sum: Tensor | None,
    need_input: bool,
    need_weight: bool,
    variant: int = 0,
) -> tuple[Tensor, Tensor]:
    dims, size = len(normalized_shape) + variant, math.prod(normalized_shape)
    return backward(grad_output, input, dims, size, weight, eps, grad_sum, need_input, need_weight)


def _from_schema(tensors: int, input_at: int = 0) -> Callable[..., Arguments]:
    """normalized_shape for the two numbers behind the first `tensors` arguments, after the check that they fit."""

    def arguments(*given: Any) -> Arguments:
        input = given[input_at]
        packed, size = given[tensors : tensors + 2]
        dims, variant = packed % CAST_BEFORE, packed // CAST_BEFORE * CAST_BEFORE
        shape = tuple(input.shape[input.dim() - dims :]) if 0 < dims <= input.dim() else (size,)
        if math.prod(shape) != size:
            raise ValueError(
                f"rms_norm: expected a normalized_shape of {math.prod(shape)} elements, as the input has, got {size}"
            )
        return *given[:tensors], shape, *given[tensors + 2 :], variant

    return arguments


def check_forward(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> None:
    validate("rms_norm", input, normalized_shape, weight, eps)
    _check_cast("rms_norm", input, weight, variant)


def check_add_forward(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> None:
    validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
    _check_cast("add_rms_norm", input, weight, variant)


def _check_cast(op: str, input: Tensor, weight: Tensor | None, variant: int) -> None:
    """Operators have results of the dtype of `input`; op.py multiplies apart from them where torch has another."""
    if weight is not None and variant & CAST_BEFORE and not keeps_dtype(input, weight):
        raise ValueError(
            f"{op}: expected weight whose product with input has the dtype of input, got {weight.dtype} and"
            f" {input.dtype}"
        )


# Results without data.


def fake_forward(input: Tensor, *arguments: Any) -> Tensor:
    check_forward(input, *arguments)
    return reference.empty_output(input)


def fake_add_forward(input: Tensor, residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    check_add_forward(input, residual, *arguments)
    return reference.empty_output(input), reference.empty_output(input)


def fake_backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    grad_sum: Tensor | None,
    need_input: bool,
    need_weight: bool,
    variant: int = 0,
) -> tuple[Tensor, Tensor]:
    grad_input = reference.empty_output(input) if need_input else input.new_empty(0)
    like_weight = input if weight is None else weight
    return grad_input, like_weight.new_empty(tuple(normalized_shape) if need_weight else (0,))


# The operators. torch's autocast runs rms_norm in float32 on CUDA, and leaves it alone on CPU.

_SHAPE = "int dims_and_variant, SymInt normalized_size"

forward = RMS_NORM.kernel(
    "forward",
    f"_rms_norm(Tensor input, {_SHAPE}, Tensor? weight, float? eps) -> Tensor",
    fake_forward,
    check=check_forward,
    from_schema=_from_schema(1),
    compiled=_forward,
    autocast={"cuda": torch.float32},
)
add_forward = RMS_NORM.kernel(
    "add_forward",
    f"_add_rms_norm(Tensor input, Tensor residual, {_SHAPE}, Tensor? weight, float? eps) -> (Tensor, Tensor)",
    fake_add_forward,
    check=check_add_forward,
    from_schema=_from_schema(2),
    compiled=_add_forward,
)
backward = RMS_NORM.kernel(
    "backward",
    f"_rms_norm_backward(Tensor grad_output, Tensor input, {_SHAPE}, Tensor? weight, float? eps, Tensor? grad_sum,"
    " bool need_input, bool need_weight) -> (Tensor, Tensor)",
    fake_backward,
    from_schema=_from_schema(2, input_at=1),
    compiled=_backward,
    input=1,
)


def register_add_autocast(schema: str, norm: Callable[..., Tensor]) -> None:
    """Under autocast the sum is as `+` gives it, and `norm` of it is in float32."""

    def rule(input: Tensor, residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        total = input + residual
        return norm(total, *arguments), total

    register_autocast(schema, "cuda", rule)


register_add_autocast("_add_rms_norm", forward)
