# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Plans: what a convolution's calls have in common is worked out once, and kept beside the pattern.

A plan is the compiled library's: it holds a copy of the pattern's indices and, for each shape of input that it met,
how that is cut up and which machine code computes it. It is known by a number, which an operator takes in the place of
indices and geometry. Numbers mean nothing in another process, so nothing that is traced may hold one.
"""

from __future__ import annotations

from torch import Tensor

from ... import _library
from ..._torch import dispatch_modes, is_jit_tracing
from ...formats.unstructured import Unstructured
from .._operation import register_fake
from .._release import release_with
from ..convolution import Geometry
from .flops import teach_counters
from .implementations import SPARSE_CONV2D, empty_input_gradient, empty_output

_plan = SPARSE_CONV2D.define(
    "_plan_sparse_conv2d(Tensor crow_indices, Tensor col_indices, int[] geometry, int columns, Tensor? order=None)"
    " -> int"
)
_free = SPARSE_CONV2D.define("_free_sparse_conv2d_plan(int plan) -> ()")

_RUN = (
    "_planned_sparse_conv2d(Tensor input, Tensor weight, Tensor? bias, int plan, Tensor? residual=None,"
    " float? low=None, float? high=None) -> Tensor"
)
run = SPARSE_CONV2D.define(_RUN)
"""Forward by a plan's number. The weight is the values at the nonzeros [nnz], or the dense weight."""

_GUARDED = (
    "_guarded_sparse_conv2d(Tensor input, Tensor weight, Tensor? bias, int plan, Tensor guard, int version) -> Tensor"
)
run_guarded = SPARSE_CONV2D.define(_GUARDED)
"""Forward by a plan's number, the words of a `Guard` and the version of a dense weight, which it is an error for not to
be zero outside of the pattern."""

_INPUT_GRADIENT = (
    "_planned_sparse_conv2d_input_gradient(Tensor grad_output, Tensor weight, int plan, SymInt height, SymInt width,"
    " bool channels_last, Tensor? bias=None, Tensor? residual=None, float? low=None, float? high=None) -> Tensor"
)
input_gradient = SPARSE_CONV2D.define(_INPUT_GRADIENT)
"""Input gradient by a plan's number, the weight as that of `run`. With a bias of the input's channels, a residual and
limits, which it takes with stride 1, it is the forward of a layer that multiplies by the transposed weight."""

_WEIGHT_GRADIENT = "_planned_sparse_conv2d_weight_gradient(Tensor grad_output, Tensor input, int plan) -> Tensor"
weight_gradient = SPARSE_CONV2D.define(_WEIGHT_GRADIENT)
"""Gradient at the nonzeros by a plan's number."""

AVAILABLE = _library.cpu is not None

_of_number: dict[int, tuple[tuple[int, ...], int, Geometry]] = {}  # shape, nonzeros and geometry of each plan


def plan_of(pattern: Unstructured, geometry: Geometry) -> int:
    """The number of the plan of a pattern on the CPU, made when it is asked for first."""
    plans = pattern.plans
    number = plans.get(geometry)
    if number is None:
        columns = pattern.shape[1] * geometry.taps
        number = _plan(pattern.crow_indices, pattern.col_indices, geometry, columns, pattern._order)
        _of_number[number] = pattern.shape, pattern.nnz, geometry
        release_with(plans, _forget, number)
        plans[geometry] = number
    return number


def _forget(number: int) -> None:
    del _of_number[number]
    _free(number)


def may_plan(pattern: Unstructured) -> bool:
    """Whether a call may be made by a plan's number: nothing is traced that would keep it."""
    if dispatch_modes() > 0:
        teach_counters()
        return False
    return AVAILABLE and pattern.col_indices.is_cpu and not is_jit_tracing()


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: int,
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    shape, _, geometry = _of_number[plan]
    _check_alike(input, weight, bias, residual)
    return empty_output(input, shape[0], geometry)


def _check_alike(input: Tensor, *others: Tensor | None) -> None:
    for tensor in others:
        if tensor is not None and (tensor.device, tensor.dtype) != (input.device, input.dtype):
            raise ValueError(
                f"sparse_conv2d: expected tensors of {input.dtype} on {input.device}, as input, got {tensor.dtype} on"
                f" {tensor.device}"
            )


def _fake_input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    plan: int,
    height: int,
    width: int,
    channels_last: bool,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    shape, _, geometry = _of_number[plan]
    _check_alike(grad_output, weight, bias, residual)
    return empty_input_gradient(grad_output, shape[1] * geometry.groups, height, width, channels_last)


def _fake_weight_gradient(grad_output: Tensor, input: Tensor, plan: int) -> Tensor:
    return input.new_empty(_of_number[plan][1])


register_fake(_RUN, _fake)
register_fake(_GUARDED, lambda input, weight, bias, plan, guard, version: _fake(input, weight, bias, plan))
register_fake(_INPUT_GRADIENT, _fake_input_gradient)
register_fake(_WEIGHT_GRADIENT, _fake_weight_gradient)
