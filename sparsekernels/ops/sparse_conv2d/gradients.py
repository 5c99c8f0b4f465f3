# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""The gradients of sparse convolution, in eager calls and of the registered operators.

Forward y = F(x, v), input gradient I(dy, v) and weight gradient at the nonzeros W(dy, x) are linear in each argument,
and the gradient of each is made of the other two:

    F:  dx  = I(dy, v),   dv = W(dy, x),  dbias = sum of dy over images and pixels
    I:  ddy = F(u, v),    dv = W(dy, u)         for the gradient u of dx
    W:  ddy = F(x, w),    dx = I(dy, w)         for the gradient w of dv

so derivatives of every order run on the same three kernels. With a dense weight W is torch's own dense weight gradient,
which torch differentiates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._torch import DispatchKey, DispatchKeySet, apply_of, excluded
from ...formats.transposed import Transposed, transpose
from ...formats.unstructured import Unstructured
from ..convolution import Geometry
from . import compiled, operators, reference

_operator = torch.ops.sparsekernels.sparse_conv2d.default
_input_gradient_operator = torch.ops.sparsekernels.sparse_conv2d_input_gradient.default
_weight_gradient_operator = torch.ops.sparsekernels.sparse_conv2d_weight_gradient.default


@dataclass(frozen=True, eq=False)
class OperatorPattern:
    """The pattern of a registered operator, of the tensors that it was called with."""

    crow_indices: Tensor
    col_indices: Tensor
    flat_indices: Tensor | None
    given: Sequence[Tensor]
    in_channels: int
    taps: int

    def transposed(self, groups: int) -> Transposed:
        if self.given:
            return Transposed(*self.given)
        return transpose(self.crow_indices, self.col_indices, self.in_channels, self.taps, groups)

    def cached_transposed(self, groups: int) -> Sequence[Tensor]:
        return self.given


class Call(NamedTuple):
    """What a call is besides its tensors."""

    pattern: Unstructured | OperatorPattern
    geometry: Geometry
    kernels: ModuleType


class Image(NamedTuple):
    """What an input gradient has to look like."""

    channels: int
    height: int
    width: int
    channels_last: bool


def _image(input: Tensor) -> Image:
    return Image(input.size(1), input.size(2), input.size(3), reference.is_channels_last(input))


def kernels_for(input: Tensor) -> ModuleType:
    """The compiled kernels compute in float32: float64 is the reference's."""
    return reference if input.dtype == torch.float64 else compiled


def values_of(weight: Tensor, pattern: Unstructured | OperatorPattern) -> Tensor:
    """The values of what is either they or the dense weight."""
    if weight.dim() == 1:
        return weight
    flat_indices = pattern.flat_indices
    if flat_indices is None:
        raise ValueError("sparse_conv2d: flat_indices is None, expected the places of the nonzeros with a dense weight")
    return weight.flatten().gather(0, flat_indices)


class SparseConv2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        pattern, geometry, kernels = call
        values = values_of(weight, pattern)
        return kernels.forward(input, values, bias, pattern.crow_indices, pattern.col_indices, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Call], output: Tensor) -> None:
        input, weight, _, ctx.call = inputs
        need_input, need_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(input if need_weight else None, weight if need_input else None)
        ctx.dense = weight.dim() != 1
        ctx.image = _image(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        need_input, need_weight, need_bias, _ = ctx.needs_input_grad
        return (
            _input_gradient(grad_output, weight, ctx.image, ctx.call) if need_input else None,
            _weight_gradient(grad_output, input, ctx.dense, ctx.call) if need_weight else None,
            _bias_gradient(grad_output) if need_bias else None,
            None,
        )


class SparseConv2dInputGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output: Tensor, weight: Tensor, image: Image, call: Call) -> Tensor:
        pattern, geometry, kernels = call
        transposed = pattern.transposed(geometry.groups)
        return kernels.input_gradient(grad_output, values_of(weight, pattern), *transposed, geometry, *image[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Image, Call], output: Tensor) -> None:
        grad_output, weight, _, ctx.call = inputs
        need_output, need_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if need_weight else None, weight if need_output else None)
        ctx.dense = weight.dim() != 1

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, weight = ctx.saved_tensors
        need_output, need_weight, *_ = ctx.needs_input_grad
        return (
            _forward(u, weight, ctx.call) if need_output else None,
            _weight_gradient(grad_output, u, ctx.dense, ctx.call) if need_weight else None,
            None,
            None,
        )


class SparseConv2dWeightGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output: Tensor, input: Tensor, call: Call) -> Tensor:
        pattern, geometry, kernels = call
        return kernels.weight_gradient(grad_output, input, pattern.crow_indices, pattern.col_indices, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Call], output: Tensor) -> None:
        grad_output, input, ctx.call = inputs
        need_output, need_input, _ = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if need_input else None, input if need_output else None)
        ctx.image = _image(input)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, input = ctx.saved_tensors
        need_output, need_input, _ = ctx.needs_input_grad
        return (
            _forward(input, w, ctx.call) if need_output else None,
            _input_gradient(grad_output, w, ctx.image, ctx.call) if need_input else None,
            None,
        )


eager_apply = apply_of(SparseConv2d)


# F, I and W on the call's kernels, differentiable where that is asked for (create_graph=True).


def _forward(input: Tensor, weight: Tensor, call: Call) -> Tensor:
    if not torch.is_grad_enabled():
        return SparseConv2d.forward(input, weight, None, call)
    if _by_operator(call):
        return _operator(input, weight, None, *_pattern_arguments(call))
    return SparseConv2d.apply(input, weight, None, call)


def _input_gradient(grad_output: Tensor, weight: Tensor, image: Image, call: Call) -> Tensor:
    if not torch.is_grad_enabled():
        return SparseConv2dInputGradient.forward(grad_output, weight, image, call)
    if _by_operator(call):
        return _input_gradient_operator(grad_output, weight, *_pattern_arguments(call), *image)
    return SparseConv2dInputGradient.apply(grad_output, weight, image, call)


def _weight_gradient(grad_output: Tensor, input: Tensor, dense: bool, call: Call) -> Tensor:
    if dense:
        return reference.dense_weight_gradient(grad_output, input, call.geometry)
    if not torch.is_grad_enabled():
        return SparseConv2dWeightGradient.forward(grad_output, input, call)
    if _by_operator(call):
        return _weight_gradient_operator(grad_output, input, *_pattern_arguments(call))
    return SparseConv2dWeightGradient.apply(grad_output, input, call)


def _bias_gradient(grad_output: Tensor) -> Tensor:
    wide = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    return grad_output.sum((0, 2, 3), dtype=wide).to(grad_output.dtype)


def _by_operator(call: Call) -> bool:
    return call.kernels is compiled and torch.compiler.is_compiling()


def _pattern_arguments(call: Call) -> tuple[Any, ...]:
    pattern, geometry, _ = call
    transposed = pattern.cached_transposed(geometry.groups)
    return pattern.crow_indices, pattern.col_indices, pattern.flat_indices, transposed, geometry


# Autocast, as torch's for conv2d.


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """What autocast computes convolutions of `input` in; None where it is off or leaves them alone."""
    device = input.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def cast(tensor: Any, dtype: torch.dtype) -> Any:
    """float64 is left, as autocast does."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)


# The operators' gradients are the functions above. In a graph that is traced below autograd (torch.compile) they leave
# the kernel operators, so that compiled code calls the kernels without a detour through Python.


def _operator_call(like: Tensor, pattern: tuple[Any, ...], in_channels: int) -> Call:
    crow_indices, col_indices, flat_indices, transposed, geometry = pattern
    g = Geometry(*geometry)
    held = OperatorPattern(crow_indices, col_indices, flat_indices, transposed, in_channels, g.taps)
    return Call(held, g, kernels_for(like))


def _pattern_and_image(
    crow_indices: Tensor,
    col_indices: Tensor,
    flat_indices: Tensor | None,
    transposed: Sequence[Tensor],
    geometry: Sequence[int],
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
) -> tuple[tuple[Any, ...], Image]:
    pattern = crow_indices, col_indices, flat_indices, transposed, geometry
    return pattern, Image(channels, height, width, channels_last)


def _plain(input: Tensor, weight: Tensor, bias: Tensor | None, *pattern: Any) -> Tensor:
    return SparseConv2d.forward(input, weight, bias, _operator_call(input, pattern, input.size(1)))


def _autograd(input: Tensor, weight: Tensor, bias: Tensor | None, *pattern: Any) -> Tensor:
    return SparseConv2d.apply(input, weight, bias, _operator_call(input, pattern, input.size(1)))


def _plain_input_gradient(grad_output: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    pattern, image = _pattern_and_image(*arguments)
    call = _operator_call(grad_output, pattern, image.channels)
    return SparseConv2dInputGradient.forward(grad_output, weight, image, call)


def _autograd_input_gradient(grad_output: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    pattern, image = _pattern_and_image(*arguments)
    call = _operator_call(grad_output, pattern, image.channels)
    return SparseConv2dInputGradient.apply(grad_output, weight, image, call)


def _plain_weight_gradient(grad_output: Tensor, input: Tensor, *pattern: Any) -> Tensor:
    return SparseConv2dWeightGradient.forward(grad_output, input, _operator_call(input, pattern, input.size(1)))


def _autograd_weight_gradient(grad_output: Tensor, input: Tensor, *pattern: Any) -> Tensor:
    return SparseConv2dWeightGradient.apply(grad_output, input, _operator_call(input, pattern, input.size(1)))


def _autocast(keys: DispatchKeySet, device: str) -> Any:
    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *pattern: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with excluded(keys):
            return _operator(cast(input, dtype), cast(weight, dtype), cast(bias, dtype), *pattern)

    return run


for _name, _below, _above in (
    ("sparse_conv2d", _plain, _autograd),
    ("sparse_conv2d_input_gradient", _plain_input_gradient, _autograd_input_gradient),
    ("sparse_conv2d_weight_gradient", _plain_weight_gradient, _autograd_weight_gradient),
):
    operators.library.impl(_name, _below, "CompositeExplicitAutograd")
    operators.library.impl(_name, _above, "Autograd")
for _key, _device in ((DispatchKey.AutocastCPU, "cpu"), (DispatchKey.AutocastCUDA, "cuda")):
    operators.library.impl("sparse_conv2d", _autocast(DispatchKeySet(_key), _device), _key.name)
