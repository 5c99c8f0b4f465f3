# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d, sparse_conv1d and sparse_linear: the public functions.

The route of a call. `sparse_conv2d` calls one *kernel operator*, `sparsekernels::_planned_sparse_conv2d` with the plan
that is kept beside the pattern (plans.py), which torch's own dispatcher hands to the kernel of the input's device. A
linear layer is the 1x1 convolution of images of one pixel, conv1d that of images one pixel high. Kernel operators know
no gradients and no float64: where a gradient is wanted an autograd function wraps them (gradients.py), and float64 goes
to the reference. What is more than a plain eager call takes the general route, that of `Operator`.

Arguments are checked where that is cheapest, inside the kernel operator; when it refuses them, the checks in words of
arguments.py say why.

More than 400 lines: a quarter of them are the docstrings of three public functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._torch import is_any_autocast_enabled, is_jit_tracing
from ...dispatch import is_special
from ...formats import BlockSparse, SparseFormat, Unstructured
from .._operation import explain, is_traced
from ..convolution import LINEAR, Geometry, OneOrTwo, cached_geometry_of, geometry_of
from . import blocks, by_format, gradients, implementations
from .arguments import validate, validate_pattern, validate_together
from .gradients import values_of
from .implementations import compiled
from .outside import Guard, Outside, is_for_torch, is_recorded, recorded_values
from .plans import may_plan, plan_of, run_guarded
from .plans import run as run_plan

__all__ = ["sparse_conv1d", "sparse_conv2d", "sparse_linear"]

# Bound once: on the hot path nothing is looked up by string.
_kernel = implementations.forward
_apply = gradients.sparse_conv2d.apply
_PLAIN = (Tensor, torch.nn.Parameter)


def sparse_conv2d(
    input: Tensor,
    weight: SparseFormat,
    bias: Tensor | None = None,
    stride: OneOrTwo = 1,
    padding: OneOrTwo | str = 0,
    dilation: OneOrTwo = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolution by a weight of which only the nonzeros are stored, as `torch.nn.functional.conv2d`.

        y[n, o] = bias[o] + sum over the nonzeros (i, ky, kx) of row o of w[o, i, ky, kx] * shifted(x[n, i], ky, kx)

    Zeros cost nothing, neither here nor in the gradients to input and values. bfloat16 and float16 are computed in
    float32 and rounded once. Differentiable any number of times with respect to input, weight.values and bias. Output,
    input gradient and values' gradient have the same bits from run to run and for any number of threads. Under autocast
    the three are cast as conv2d's are.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, bfloat16, float16 or float64 (plain torch, for tests); any strides.
        weight: `Unstructured`, `BlockSparse`, or another `SparseFormat`, of [out, C/groups, kh, kw]; dtype and device
            of `input`.
        bias: [out] or None; dtype and device of `input`.
        stride: A number or two, at least 1.
        padding: A number or two, at least 0, or "valid", or "same", which adds an odd one below and to the right and
            requires stride 1.
        dilation: A number or two, at least 1.
        groups: Divides both numbers of channels.

    Returns:
        y: [N, out, H', W'] or [out, H', W'], contiguous, or channels_last where torch takes the strides of `input`
            for that.

    Raises:
        TypeError: For a dtype or a type that is not accepted.
        ValueError: For a shape, device or number that is not.
        BackendError: Where a backend was asked for that cannot run the call.

    Source: the loop over nonzeros is that of Park et al., 2017, "Faster CNNs with Direct Sparse Convolutions and Guided
    Pruning", arXiv:1608.01409; docs/sparse_kernels.md derives the kernels.
    """
    return conv2d(input, weight, None, bias, stride, padding, dilation, groups)


def sparse_conv1d(
    input: Tensor,
    weight: SparseFormat,
    bias: Tensor | None = None,
    stride: OneOrTwo = 1,
    padding: OneOrTwo | str = 0,
    dilation: OneOrTwo = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolution of sequences by a weight of which only the nonzeros are stored, as `torch.nn.functional.conv1d`.

        y[n, o, q] = bias[o] + sum over the nonzeros (i, t) of row o of
                         w[o, i, t] * x[n, g * C/groups + i, q * stride + t * dilation - padding]

    with x zero outside of its bounds and g = o / (out/groups). It is `sparse_conv2d` on images one pixel high, by the
    same kernels and with the same promises.

    Args:
        input: [N, C, L] or [C, L]; dtypes as in `sparse_conv2d`, any strides: what is not contiguous is copied.
        weight: `Unstructured`, or another `SparseFormat`, of [out, C/groups, k]; dtype and device of `input`.
        bias: [out] or None; dtype and device of `input`.
        stride: A number, or a sequence of one, at least 1.
        padding: A number, or a sequence of one, at least 0, or "valid", or "same", which adds an odd one at the end and
            requires stride 1.
        dilation: A number, or a sequence of one, at least 1.
        groups: Divides both numbers of channels.

    Returns:
        y: [N, out, L'] or [out, L'], contiguous.

    Raises:
        TypeError: For a dtype or a type that is not accepted.
        ValueError: For a shape, device or number that is not.
        BackendError: Where a backend was asked for that cannot run the call.
    """
    return conv1d(input, weight, None, bias, stride, padding, dilation, groups)


def sparse_linear(input: Tensor, weight: SparseFormat, bias: Tensor | None = None) -> Tensor:
    r"""Product with a matrix of which only the nonzeros are stored, as `torch.nn.functional.linear`.

        y[..., o] = bias[o] + sum over the nonzeros i of row o of w[o, i] * x[..., i]

    The promises are those of `sparse_conv2d`.

    Args:
        input: [*, in]; dtypes as in `sparse_conv2d`, any strides.
        weight: `Unstructured`, `BlockSparse`, or another `SparseFormat`, of [out, in]; dtype and device of `input`.
        bias: [out] or None; dtype and device of `input`.

    Returns:
        y: [*, out], contiguous.

    Raises:
        TypeError: For a dtype or a type that is not accepted.
        ValueError: For a shape or device that is not.
        BackendError: Where a backend was asked for that cannot run the call.
    """
    return linear(input, weight, None, bias)


# What the three functions and the modules share. `weight` is None for the pattern's own values, or values [nnz], or the
# dense weight, of which only the pattern's elements are read and which gets the whole dense gradient. With a guard it
# is the dense weight, too, whose gradient is zero outside of the pattern: `Outside` is raised where the weight is not.


def conv2d(
    input: Tensor,
    pattern: SparseFormat,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: OneOrTwo,
    padding: OneOrTwo | str,
    dilation: OneOrTwo,
    groups: int,
    guard: Guard | None = None,
) -> Tensor:
    try:
        if type(pattern) is not Unstructured:
            pattern, weight = by_format.resolved(pattern, weight, guard is not None, input, groups)
        plain = not is_special() and input.dim() == len(pattern.shape) == 4 and type(pattern) is Unstructured
        geometry = _geometry(plain, pattern.shape, stride, padding, dilation, groups)
        weight = _checked("sparse_conv2d", weight, pattern, guard)
        # the kernels know the channels only from the input: they cannot tell that there are too many or too few
        if plain and input.dtype is not torch.float64 and input.size(1) == pattern.shape[1] * geometry.groups:
            return _eager(input, pattern, weight, bias, geometry, guard)
        if _is_in_blocks(input, pattern, 4, geometry):
            return blocks.conv2d(input, pattern, weight, bias, geometry, guard)
        weight = weight if guard is None else guard.values(pattern, weight)
        validate("sparse_conv2d", input, pattern, bias, stride, padding, dilation, groups)
        if input.dim() == 3:
            return _general("sparse_conv2d", input.unsqueeze(0), pattern, weight, bias, geometry).squeeze(0)
        return _general("sparse_conv2d", input, pattern, weight, bias, geometry)
    except Outside:
        raise
    except Exception as error:
        if is_traced(input, bias):
            validate_pattern("sparse_conv2d", pattern)
            geometry = geometry_of(pattern.shape, stride, padding, dilation, groups)
            return _record(input, pattern, weight, bias, geometry, guard)
        _check_again(input, pattern, weight, bias, guard)
        given = input, pattern, bias, stride, padding, dilation, groups
        explain(error, _validate_all, "sparse_conv2d", weight, *given)


def conv1d(
    input: Tensor,
    pattern: SparseFormat,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: OneOrTwo,
    padding: OneOrTwo | str,
    dilation: OneOrTwo,
    groups: int,
    guard: Guard | None = None,
) -> Tensor:
    try:
        if type(pattern) is not Unstructured:
            pattern, weight = by_format.resolved(pattern, weight, guard is not None, input, groups)
        plain = not is_special() and input.dim() == len(pattern.shape) == 3 and type(pattern) is Unstructured
        geometry = _geometry(plain, pattern.shape, stride, padding, dilation, groups)
        weight = _checked("sparse_conv1d", weight, pattern, guard)
        if plain and input.dtype is not torch.float64 and input.size(1) == pattern.shape[1] * geometry.groups:
            return _eager(_one_high(input), pattern, weight, bias, geometry, guard).squeeze(2)
        if _is_in_blocks(input, pattern, 3, geometry):
            return blocks.conv2d(_one_high(input), pattern, weight, bias, geometry, guard).squeeze(2)
        weight = weight if guard is None else guard.values(pattern, weight)
        validate("sparse_conv1d", input, pattern, bias, stride, padding, dilation, groups)
        if input.dim() == 2:
            output = _general("sparse_conv1d", _one_high(input.unsqueeze(0)), pattern, weight, bias, geometry)
            return output.squeeze(2).squeeze(0)
        return _general("sparse_conv1d", _one_high(input), pattern, weight, bias, geometry).squeeze(2)
    except Outside:
        raise
    except Exception as error:
        if is_traced(input, bias):
            validate_pattern("sparse_conv1d", pattern)
            geometry = geometry_of(pattern.shape, stride, padding, dilation, groups)
            return _record(_one_high(input), pattern, weight, bias, geometry, guard).squeeze(2)
        _check_again(input, pattern, weight, bias, guard)
        given = input, pattern, bias, stride, padding, dilation, groups
        explain(error, _validate_all, "sparse_conv1d", weight, *given)


def _is_in_blocks(input: Tensor, pattern: SparseFormat, dim: int, geometry: Geometry) -> bool:
    """Whether a call is one of the kernels for blocks, whose other arguments these check."""
    fits = type(pattern) is BlockSparse and input.dim() == len(pattern.shape) == dim
    return fits and input.size(1) == pattern.shape[1] * geometry.groups


def _one_high(input: Tensor) -> Tensor:
    """Sequences [N, C, L] as images; contiguous, as torch has them: they are not to pass for channels_last."""
    return input.contiguous().unsqueeze(2)


def _geometry(
    plain: bool,
    shape: tuple[int, ...],
    stride: OneOrTwo,
    padding: OneOrTwo | str,
    dilation: OneOrTwo,
    groups: int,
) -> Geometry:
    """`geometry_of`, looked up in a plain call."""
    if plain:
        try:
            return cached_geometry_of(shape, stride, padding, dilation, groups)
        except TypeError:  # a list cannot be looked up; what is wrong otherwise is wrong again
            pass
    return geometry_of(shape, stride, padding, dilation, groups)


def linear(
    input: Tensor, pattern: SparseFormat, weight: Tensor | None, bias: Tensor | None, guard: Guard | None = None
) -> Tensor:
    try:
        if type(pattern) is not Unstructured:
            pattern, weight = by_format.resolved(pattern, weight, guard is not None, input)
        outputs, inputs = pattern.shape
        weight = _checked("sparse_linear", weight, pattern, guard)
        plain = not is_special() and type(pattern) is Unstructured
        if plain and input.dtype is not torch.float64 and input.shape[-1] == inputs:
            output = _eager(input.reshape(-1, inputs, 1, 1), pattern, weight, bias, LINEAR, guard)
        elif type(pattern) is BlockSparse and input.shape[-1] == inputs:
            output = blocks.conv2d(input.reshape(-1, inputs, 1, 1), pattern, weight, bias, LINEAR, guard)
        else:
            weight = weight if guard is None else guard.values(pattern, weight)
            validate("sparse_linear", input, pattern, bias)
            output = _general("sparse_linear", input.reshape(-1, inputs, 1, 1), pattern, weight, bias, LINEAR)
        return output.view(*input.shape[:-1], outputs)
    except Outside:
        raise
    except Exception as error:
        if is_traced(input, bias):
            output = _record(input.reshape(-1, pattern.shape[1], 1, 1), pattern, weight, bias, LINEAR, guard)
            return output.reshape(input.shape[:-1] + pattern.shape[:1])
        _check_again(input, pattern, weight, bias, guard)
        explain(error, _validate_all, "sparse_linear", weight, input, pattern, bias)


def _checked(op: str, weight: Tensor | None, pattern: SparseFormat, guard: Guard | None) -> Tensor:
    """The weight, if it is values or of the shape of its pattern; the pattern's own values where there is none."""
    if guard is not None:
        if weight is None or weight.shape != pattern.shape:
            raise Outside
    elif weight is None:
        return pattern.values
    elif weight.dim() != 1 and weight.shape != pattern.shape:
        raise ValueError(
            f"{op}: expected weight of shape {list(pattern.shape)} as its pattern has it, got {list(weight.shape)}"
        )
    return weight


def _check_again(
    input: Tensor, pattern: SparseFormat, weight: Tensor | None, bias: Tensor | None, guard: Guard | None
) -> None:
    """Raise `Outside` where a call may have failed for that."""
    if guard is not None:
        guard.failed()
    if guard is not None and is_for_torch(input):
        raise Outside
    if guard is None or weight is None or is_recorded(weight):
        return
    if isinstance(bias, Tensor) and bias.shape != pattern.shape[:1]:  # torch may broadcast it
        raise Outside
    if weight.dim() != 1:  # else these are values, which were found inside
        guard.check(pattern, weight)


def _eager(
    input: Tensor, pattern: Any, weight: Tensor, bias: Tensor | None, geometry: Geometry, guard: Guard | None
) -> Tensor:
    """The hot path: a plain call on the compiled kernels, whose own checks are enough. pattern: `Unstructured`."""
    result: Tensor
    if torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        if guard is not None:
            weight = _values(input, pattern, weight, geometry, guard)
        else:
            weight = _of_images(weight)
        if is_jit_tracing():  # which records no autograd functions
            result = gradients.sparse_conv2d.as_operator(input, weight, bias, pattern, geometry)
        else:
            result = _apply(input, weight, bias, pattern, geometry, compiled)
    elif may_plan(pattern):
        plan = plan_of(pattern, geometry)
        if guard is None:
            result = run_plan(input, weight, bias, plan)
        else:
            words, version = guard.ready(pattern, weight)
            result = run_guarded(input, weight, bias, plan, words, version)
    else:
        weight = weight if guard is None else guard.values(pattern, weight)
        if is_jit_tracing():  # as with gradients: torch compares
            return gradients.sparse_conv2d.as_operator(input, _of_images(weight), bias, pattern, geometry)  # type: ignore[no-any-return]
        result = _kernel(input, values_of(weight, pattern), bias, pattern.crow_indices, pattern.col_indices, geometry)
    return result


def _values(input: Tensor, pattern: Any, weight: Tensor, geometry: Geometry, guard: Guard) -> Tensor:
    """The values of a dense weight, for a call with gradients."""
    if not may_plan(pattern):
        return guard.values(pattern, weight)  # type: ignore[no-any-return]
    positions = input.numel() // max(input.size(1), 1) // (geometry.stride_h * geometry.stride_w)
    return guard.values_inside(pattern, weight, float(positions * pattern.nnz))


def _general(
    op: str, input: Tensor, pattern: SparseFormat, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Every call that is not plain, its arguments validated one by one. input [N, C, H, W]."""
    input, weight, bias = gradients.sparse_conv2d.cast(input, weight, bias)
    validate_together(op, input, weight, bias)
    if type(pattern) is not Unstructured:
        return by_format.conv2d(input, pattern, weight, bias, geometry)
    result: Tensor = gradients.sparse_conv2d(input, _of_images(weight), bias, pattern, geometry)
    return result


def _of_images(weight: Tensor) -> Tensor:
    """A dense weight in the four dimensions that its gradient has; values as they are."""
    if weight.dim() == 2:
        return weight[:, :, None, None]
    return weight[:, :, None] if weight.dim() == 3 else weight


def _record(
    input: Tensor,
    pattern: SparseFormat,
    weight: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
    guard: Guard | None = None,
) -> Tensor:
    """The call as one operator on plain tensors, as a graph can hold it. input is taken to have four dimensions."""
    weight = weight if guard is None else recorded_values(pattern, weight)
    if type(pattern) is not Unstructured:
        return by_format.conv2d(input, pattern, pattern.values if weight is None else weight, bias, geometry)
    weight = pattern.values if weight is None else weight
    transposed = list(pattern.transposed(geometry.groups))
    indices = pattern.crow_indices, pattern.col_indices, pattern.flat_indices
    recorded: Tensor = gradients.sparse_conv2d.overload(input, weight, bias, *indices, transposed, geometry)
    return recorded


def _validate_all(
    op: str,
    weight: Tensor | None,
    input: Tensor,
    pattern: SparseFormat,
    bias: Tensor | None,
    stride: OneOrTwo = 1,
    padding: OneOrTwo | str = 0,
    dilation: OneOrTwo = 1,
    groups: int = 1,
) -> None:
    validate(op, input, pattern, bias, stride, padding, dilation, groups)
    if not is_any_autocast_enabled():
        validate_together(op, input, pattern.values if weight is None else weight, bias)
