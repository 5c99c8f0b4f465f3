# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""The gradients of sparse convolution, in eager calls and of the registered operators.

Forward y = F(x, v), input gradient I(dy, v) and weight gradient at the nonzeros W(dy, x) are linear in each argument,
and the gradient of each is made of the other two:

    F:  dx  = I(dy, v),   dv = W(dy, x),  dbias = sum of dy over images and pixels
    I:  ddy = F(u, v),    dv = W(dy, u)         for the gradient u of dx
    W:  ddy = F(x, w),    dx = I(dy, w)         for the gradient w of dv

so derivatives of every order run on the same three kernels. With a dense weight W is the gradient to all of it, which
torch's own convolution computes and torch differentiates: `dense_weight_gradient`.

The weight of the three operators is the values at the nonzeros [nnz], or the dense weight [O, C/G, kh, kw] where its
gradient is to be dense: then flat_indices are its nonzeros. transposed is empty or the three tensors of the transposed
pattern, which are worked out where they are not given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...formats.transposed import Transposed, transpose
from ...formats.unstructured import Unstructured
from .._operation import Arguments, Operator
from ..convolution import Geometry
from . import plans, reference
from .expanded_products import dense_weight_gradient as dense_weight_gradient
from .implementations import SPARSE_CONV2D, compiled, empty_input_gradient, empty_output


@dataclass(frozen=True, eq=False)
class OperatorPattern:
    """The pattern of a registered operator, of the tensors that it was called with."""

    crow_indices: Tensor
    col_indices: Tensor
    flat_indices: Tensor | None
    given: Sequence[Tensor]
    in_channels: int
    taps: int
    _order: ClassVar[None] = None

    @property
    def _unordered(self) -> OperatorPattern:
        return self

    def transposed(self, groups: int) -> Transposed:
        if self.given:
            return Transposed(*self.given)
        return transpose(self.crow_indices, self.col_indices, self.in_channels, self.taps, groups)

    def cached_transposed(self, groups: int) -> Sequence[Tensor]:
        return self.given


Pattern = Unstructured | OperatorPattern


class Image(NamedTuple):
    """What an input gradient has to look like."""

    channels: int
    height: int
    width: int
    channels_last: bool


def _image(input: Tensor) -> Image:
    return Image(input.size(1), input.size(2), input.size(3), reference.is_channels_last(input))


def values_of(weight: Tensor, pattern: Pattern) -> Tensor:
    """The values, in the order of the pattern, of what is either they or the dense weight."""
    if weight.dim() == 1:
        return weight if pattern._order is None else weight.index_select(0, pattern._order)
    return weight.flatten().index_select(0, _places(pattern))


def _as_values_are(gradient: Tensor, pattern: Pattern) -> Tensor:
    """A gradient to the values in the order of the pattern, in that of the values of the call."""
    return gradient if pattern._order is None else gradient.index_select(0, torch.argsort(pattern._order))


def _places(pattern: Pattern) -> Tensor:
    flat_indices = pattern.flat_indices
    if flat_indices is None:
        raise ValueError("sparse_conv2d: expected flat_indices, where the nonzeros are, with a dense weight, got None")
    return flat_indices


def _plan_of(pattern: Pattern, geometry: Geometry, kernels: Any) -> int | None:
    """The number of the plan of an eager call, where it may be made by one."""
    is_eager = kernels is compiled and not torch.compiler.is_compiling()
    if is_eager and isinstance(pattern, Unstructured) and plans.may_plan(pattern):
        return plans.plan_of(pattern, geometry)
    return None


class SparseConv2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry, kernels: Any
    ) -> Tensor:
        plan = _plan_of(pattern, geometry, kernels)
        if plan is not None:
            planned: Tensor = plans.run(input, weight, bias, plan)
            return planned
        if kernels is reference and weight.dim() != 1:  # torch may differentiate this: see `Operator`
            return reference.dense_forward(input, reference.used_weight(weight, _places(pattern)), bias, geometry)
        values = values_of(weight, pattern)
        return kernels.forward(input, values, bias, pattern.crow_indices, pattern.col_indices, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.call = inputs
        need_input, need_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(input if need_weight else None, weight if need_input else None)
        ctx.dense = weight.dim() != 1
        ctx.image = _image(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        need_input, need_weight, need_bias, *_ = ctx.needs_input_grad
        pattern, geometry, kernels = ctx.call
        return (
            _input_gradient(kernels, grad_output, weight, ctx.image, pattern, geometry) if need_input else None,
            _weight_gradient(kernels, grad_output, input, ctx.dense, pattern, geometry) if need_weight else None,
            bias_gradient(grad_output) if need_bias else None,
            None,
            None,
            None,
        )


class SparseConv2dInputGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_output: Tensor, weight: Tensor, image: Image, pattern: Pattern, geometry: Geometry, kernels: Any
    ) -> Tensor:
        plan = _plan_of(pattern, geometry, kernels)
        if plan is not None:
            planned: Tensor = plans.input_gradient(grad_output, weight, plan, *image[1:])
            return planned
        transposed = pattern.transposed(geometry.groups)
        return kernels.input_gradient(grad_output, values_of(weight, pattern), *transposed, geometry, *image[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight, _, *ctx.call = inputs
        need_output, need_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if need_weight else None, weight if need_output else None)
        ctx.dense = weight.dim() != 1

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, weight = ctx.saved_tensors
        need_output, need_weight, *_ = ctx.needs_input_grad
        pattern, geometry, kernels = ctx.call
        return (
            sparse_conv2d.on(kernels, u, weight, None, pattern, geometry) if need_output else None,
            _weight_gradient(kernels, grad_output, u, ctx.dense, pattern, geometry) if need_weight else None,
            None,
            None,
            None,
            None,
        )


class SparseConv2dWeightGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output: Tensor, input: Tensor, pattern: Pattern, geometry: Geometry, kernels: Any) -> Tensor:
        plan = _plan_of(pattern, geometry, kernels)
        if plan is not None:
            planned: Tensor = plans.weight_gradient(grad_output, input, plan)
            return planned
        gradient = kernels.weight_gradient(grad_output, input, pattern.crow_indices, pattern.col_indices, geometry)
        return _as_values_are(gradient, pattern)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, input, *ctx.call = inputs
        need_output, need_input, *_ = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if need_input else None, input if need_output else None)
        ctx.image = _image(input)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, input = ctx.saved_tensors
        need_output, need_input, *_ = ctx.needs_input_grad
        pattern, geometry, kernels = ctx.call
        return (
            sparse_conv2d.on(kernels, input, w, None, pattern, geometry) if need_output else None,
            _input_gradient(kernels, grad_output, w, ctx.image, pattern, geometry) if need_input else None,
            None,
            None,
            None,
        )


def _input_gradient(
    kernels: Any, grad_output: Tensor, weight: Tensor, image: Image, pattern: Pattern, geometry: Geometry
) -> Tensor:
    gradient: Tensor = sparse_conv2d_input_gradient.on(kernels, grad_output, weight, image, pattern, geometry)
    return gradient


def _weight_gradient(
    kernels: Any, grad_output: Tensor, input: Tensor, dense: bool, pattern: Pattern, geometry: Geometry
) -> Tensor:
    if dense:
        return dense_weight_gradient(grad_output, input, geometry)
    if torch.compiler.is_compiling():  # the operator of a graph knows no order
        gradient = sparse_conv2d_weight_gradient.on(kernels, grad_output, input, pattern._unordered, geometry)
        return _as_values_are(gradient, pattern)
    result: Tensor = sparse_conv2d_weight_gradient.on(kernels, grad_output, input, pattern, geometry)
    return result


def bias_gradient(grad_output: Tensor) -> Tensor:
    """The sum over images and pixels; torch adds short dtypes in float32, and rounds once.

    Asked for a result in float32 it would cast all of `grad_output` first: 19 ms instead of 2 of one thread, for 64
    channels of 128 images of 32x32 in bfloat16, and the same bits.
    """
    return grad_output.sum((0, 2, 3))


# The operators. A graph holds the tensors of a pattern.


def _tensors_of(pattern: Pattern, geometry: Geometry, dense: bool = False) -> Arguments:
    flat_indices = pattern.flat_indices if dense else None
    return pattern.crow_indices, pattern.col_indices, flat_indices, pattern.cached_transposed(geometry.groups), geometry


def _recorded(weight: Tensor, pattern: Pattern) -> Tensor:
    return values_of(weight, pattern) if weight.dim() == 1 else weight


def _pattern_of(
    in_channels: int,
    crow_indices: Tensor,
    col_indices: Tensor,
    flat_indices: Tensor | None,
    transposed: Sequence[Tensor],
    geometry: Sequence[int],
) -> tuple[OperatorPattern, Geometry]:
    g = Geometry(*geometry)
    return OperatorPattern(crow_indices, col_indices, flat_indices, transposed, in_channels, g.taps), g


def _to_schema(input: Tensor, weight: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Arguments:
    return input, _recorded(weight, pattern), bias, *_tensors_of(pattern, geometry, weight.dim() != 1)


def _from_schema(input: Tensor, weight: Tensor, bias: Tensor | None, *pattern: Any) -> Arguments:
    return input, weight, bias, *_pattern_of(input.size(1), *pattern)


def _input_gradient_to_schema(
    grad_output: Tensor, weight: Tensor, image: Image, pattern: Pattern, geometry: Geometry
) -> Arguments:
    return grad_output, _recorded(weight, pattern), *_tensors_of(pattern, geometry, weight.dim() != 1), *image


def _input_gradient_from_schema(grad_output: Tensor, weight: Tensor, *arguments: Any) -> Arguments:
    *pattern, channels, height, width, channels_last = arguments
    return grad_output, weight, Image(channels, height, width, channels_last), *_pattern_of(channels, *pattern)


def _weight_gradient_to_schema(grad_output: Tensor, input: Tensor, pattern: Pattern, geometry: Geometry) -> Arguments:
    return grad_output, input, *_tensors_of(pattern, geometry)


def _weight_gradient_from_schema(grad_output: Tensor, input: Tensor, *pattern: Any) -> Arguments:
    return grad_output, input, *_pattern_of(input.size(1), *pattern)


def _fake_forward(input: Tensor, weight: Tensor, bias: Tensor | None, crow_indices: Tensor, *rest: Any) -> Tensor:
    return empty_output(input, crow_indices.numel() - 1, rest[-1])


def _fake_input_gradient(grad_output: Tensor, *arguments: Any) -> Tensor:
    return empty_input_gradient(grad_output, *arguments[-4:])


def _fake_weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, *rest: Any
) -> Tensor:
    return input.new_empty(col_indices.shape)


_PATTERN = "Tensor crow_indices, Tensor col_indices, Tensor? flat_indices, Tensor[] transposed, int[] geometry"

sparse_conv2d = Operator(
    SPARSE_CONV2D,
    f"sparse_conv2d(Tensor input, Tensor weight, Tensor? bias, {_PATTERN}) -> Tensor",
    SparseConv2d,
    _fake_forward,
    to_schema=_to_schema,
    from_schema=_from_schema,
    autocast={"cpu": None, "cuda": None},
    weight=3,
    differentiates_reference=True,
)
sparse_conv2d_input_gradient = Operator(
    SPARSE_CONV2D,
    f"sparse_conv2d_input_gradient(Tensor grad_output, Tensor weight, {_PATTERN}, SymInt channels, SymInt height,"
    " SymInt width, bool channels_last) -> Tensor",
    SparseConv2dInputGradient,
    _fake_input_gradient,
    to_schema=_input_gradient_to_schema,
    from_schema=_input_gradient_from_schema,
    differentiates_reference=True,
)
sparse_conv2d_weight_gradient = Operator(
    SPARSE_CONV2D,
    f"sparse_conv2d_weight_gradient(Tensor grad_output, Tensor input, {_PATTERN}) -> Tensor",
    SparseConv2dWeightGradient,
    _fake_weight_gradient,
    to_schema=_weight_gradient_to_schema,
    from_schema=_weight_gradient_from_schema,
    differentiates_reference=True,
)
