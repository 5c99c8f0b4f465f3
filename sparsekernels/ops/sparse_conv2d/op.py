# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""sparse_conv2d and sparse_linear: the public functions, their operators in torch, their gradients.

The route of a call. `sparse_conv2d` calls one *kernel operator* (`sparsekernels::_sparse_conv2d`), which torch's own
dispatcher hands to the kernel of the input's device, or where there is none to the next row of the table. A linear
layer is the 1x1 convolution of images of one pixel. Kernel operators know no gradients and no float64: where a gradient
is wanted the autograd functions of gradients.py wrap them, under torch.compile and torch.export the registered operator
`sparsekernels::sparse_conv2d` does, and float64 goes to the reference.

Arguments are checked where that is cheapest, inside the kernel operator; when it refuses them, `_explain` looks for the
reason and says it in words.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ..._torch import forward_ad, is_any_autocast_enabled
from ...dispatch import is_special, kernels_of
from ...formats.unstructured import Unstructured
from ..convolution import LINEAR, Geometry, OneOrTwo, cached_geometry_of, geometry_of
from . import compiled, gradients, reference
from .arguments import validate, validate_together
from .operators import IMPLEMENTATIONS
from .plans import may_plan, plan_of
from .plans import run as run_plan

__all__ = ["IMPLEMENTATIONS", "sparse_conv2d", "sparse_linear"]

_operator = torch.ops.sparsekernels.sparse_conv2d.default
_kernel = compiled.forward


def sparse_conv2d(
    input: Tensor,
    weight: Unstructured,
    bias: Tensor | None = None,
    stride: OneOrTwo = 1,
    padding: OneOrTwo | str = 0,
    dilation: OneOrTwo = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolution by a weight of which only the nonzeros are stored, as `torch.nn.functional.conv2d`.

        y[n, o] = bias[o] + sum over the nonzeros (i, ky, kx) of row o of w[o, i, ky, kx] * shifted(x[n, i], ky, kx)

    Zeros cost nothing, neither here nor in the gradients to input and values. bfloat16 and float16 are computed in
    float32 and rounded once.

    input: [N, C, H, W] or [C, H, W]; float32, bfloat16, float16 or float64 (plain torch, for tests); any strides.
    weight: `Unstructured` of [out, C/groups, kh, kw]; dtype and device of `input`.
    bias: [out] or None; dtype and device of `input`.
    stride, dilation: a number or two, at least 1. padding: a number or two, at least 0, or "valid", or "same", which
        adds an odd one below and to the right and wants stride 1.
    groups: divides both numbers of channels.

    Returns y: [N, out, H', W'] or [out, H', W'], contiguous, or channels_last where `input` is that and not contiguous.
    Differentiable any number of times with respect to input, weight.values and bias. Output, input gradient and values'
    gradient have the same bits from run to run and for any number of threads. Under autocast the three are cast as
    conv2d's are.

    Raises TypeError for a dtype or a type that is not accepted, ValueError for a shape, device or number that is not.
    """
    return conv2d(input, weight, None, bias, stride, padding, dilation, groups)


def sparse_linear(input: Tensor, weight: Unstructured, bias: Tensor | None = None) -> Tensor:
    r"""Product with a matrix of which only the nonzeros are stored, as `torch.nn.functional.linear`.

        y[..., o] = bias[o] + sum over the nonzeros i of row o of w[o, i] * x[..., i]

    input: [*, in]. weight: `Unstructured` of [out, in]. bias: [out] or None. dtypes, promises and errors are those of
    `sparse_conv2d`.

    Returns y: [*, out], contiguous.
    """
    return linear(input, weight, None, bias)


# What the two functions and the modules share. `weight` is None for the pattern's own values, or values [nnz], or the
# dense weight, of which only the pattern's elements are read and which gets the whole dense gradient.


def conv2d(
    input: Tensor,
    pattern: Unstructured,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: OneOrTwo,
    padding: OneOrTwo | str,
    dilation: OneOrTwo,
    groups: int,
) -> Tensor:
    try:
        plain = not is_special() and input.dim() == 4
        try:
            geometry = (cached_geometry_of if plain else geometry_of)(pattern.shape, stride, padding, dilation, groups)
        except TypeError:  # a list cannot be looked up; what is wrong otherwise is wrong again
            geometry = geometry_of(pattern.shape, stride, padding, dilation, groups)
        if weight is None:
            weight = pattern.values
        # the kernels know the channels only from the input: they cannot tell that there are too many or too few
        fits = plain and input.size(1) == pattern.shape[1] * geometry.groups
        if fits and input.dtype is not torch.float64:
            if not torch.is_grad_enabled() or not (
                input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
            ):
                if may_plan(pattern):
                    return run_plan(input, weight, bias, plan_of(pattern, geometry))
                if weight.dim() == 1:
                    return _kernel(input, weight, bias, pattern.crow_indices, pattern.col_indices, geometry)
            else:
                return gradients.eager_apply(input, weight, bias, gradients.Call(pattern, geometry, compiled))
        validate("sparse_conv2d", input, pattern, bias, stride, padding, dilation, groups)
        if input.dim() == 3:
            return _run("sparse_conv2d", input.unsqueeze(0), pattern, weight, bias, geometry).squeeze(0)
        return _run("sparse_conv2d", input, pattern, weight, bias, geometry)
    except Exception as error:
        if _is_traced(input, bias):
            return _record(input, pattern, weight, bias, geometry_of(pattern.shape, stride, padding, dilation, groups))
        _explain(error, "sparse_conv2d", input, pattern, weight, bias, stride, padding, dilation, groups)


def linear(input: Tensor, pattern: Unstructured, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    try:
        outputs, inputs = pattern.shape
        if weight is None:
            weight = pattern.values
        if not is_special() and input.dtype is not torch.float64 and input.shape[-1] == inputs:
            pixels = input.reshape(-1, inputs, 1, 1)
            if not torch.is_grad_enabled() or not (
                input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
            ):
                if may_plan(pattern):
                    return run_plan(pixels, weight, bias, plan_of(pattern, LINEAR)).view(*input.shape[:-1], outputs)
                if weight.dim() == 1:
                    output = _kernel(pixels, weight, bias, pattern.crow_indices, pattern.col_indices, LINEAR)
                    return output.view(*input.shape[:-1], outputs)
            else:
                weight = weight if weight.dim() == 1 else weight[:, :, None, None]
                output = gradients.eager_apply(pixels, weight, bias, gradients.Call(pattern, LINEAR, compiled))
                return output.view(*input.shape[:-1], outputs)
        validate("sparse_linear", input, pattern, bias)
        weight = weight if weight.dim() == 1 else weight[:, :, None, None]
        output = _run("sparse_linear", input.reshape(-1, inputs, 1, 1), pattern, weight, bias, LINEAR)
        return output.view(*input.shape[:-1], outputs)
    except Exception as error:
        if _is_traced(input, bias):
            output = _record(input.reshape(-1, pattern.shape[1], 1, 1), pattern, weight, bias, LINEAR)
            return output.reshape(input.shape[:-1] + pattern.shape[:1])
        _explain(error, "sparse_linear", input, pattern, weight, bias)


def _run(
    op: str, input: Tensor, pattern: Unstructured, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Every call that is not plain, its arguments validated one by one. input [N, C, H, W]; a dense weight has four."""
    dtype = gradients.autocast_dtype(input)
    if dtype is not None:
        input, weight, bias = (gradients.cast(tensor, dtype) for tensor in (input, weight, bias))
    validate_together(op, input, weight, bias)
    kernels = kernels_of(IMPLEMENTATIONS, input, gradients.kernels_for(input), reference)
    crow, col = pattern.crow_indices, pattern.col_indices
    differentiable = torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if differentiable and kernels is compiled and torch.compiler.is_compiling():
        flat = None if weight.dim() == 1 else pattern.flat_indices
        return _operator(input, weight, bias, crow, col, flat, pattern.cached_transposed(geometry.groups), geometry)
    if differentiable and forward_ad._current_level < 0:
        if torch.compiler.is_compiling():  # the reference, which torch differentiates itself
            return reference.forward(input, gradients.values_of(weight, pattern), bias, crow, col, geometry)
        return gradients.SparseConv2d.apply(input, weight, bias, gradients.Call(pattern, geometry, kernels))
    return kernels.forward(input, gradients.values_of(weight, pattern), bias, crow, col, geometry)


def _is_traced(input: object, bias: object) -> bool:
    """Whether the input stands for a tensor: torch.fx's Proxy, say."""
    return not isinstance(input, Tensor) and has_torch_function_variadic(input, bias)


def _record(
    input: Tensor, pattern: Unstructured, weight: Tensor | None, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """The call as one operator on plain tensors, as a graph can hold it. input is taken to have four dimensions."""
    weight = pattern.values if weight is None else weight
    transposed = list(pattern.transposed(geometry.groups))
    return _operator(
        input, weight, bias, pattern.crow_indices, pattern.col_indices, pattern.flat_indices, transposed, geometry
    )


def _explain(
    error: Exception,
    op: str,
    input: Tensor,
    pattern: Unstructured,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: OneOrTwo = 1,
    padding: OneOrTwo | str = 0,
    dilation: OneOrTwo = 1,
    groups: int = 1,
) -> NoReturn:
    """Raise what is wrong with the arguments; where nothing is, `error` as it came."""
    try:
        validate(op, input, pattern, bias, stride, padding, dilation, groups)
        if not is_any_autocast_enabled():
            validate_together(op, input, pattern.values if weight is None else weight, bias)
    except (TypeError, ValueError) as reason:
        raise reason from None
    raise error
