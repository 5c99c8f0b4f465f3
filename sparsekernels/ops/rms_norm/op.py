# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""rms_norm and add_rms_norm: the public functions, their operators in torch, their gradients, their implementations.

The route of a call. `rms_norm` calls one *kernel operator* (`sparsekernels::_rms_norm`), which torch's own dispatcher
hands to the kernel of the input's device: the compiled one, or where that was not built the next row of the table.
Kernel operators know no gradients. Where a gradient is wanted an autograd function wraps them, `_RMSNorm` below; under
torch.compile and torch.export the registered operator `sparsekernels::rms_norm` does, whose autograd kernel is that
same function. The reference is differentiated by torch itself, forward mode included.

Arguments are checked where that is cheapest, inside the kernel operator; when it refuses them, `_explain` looks for the
reason and says it in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ... import dispatch
from ..._torch import apply_of, forward_ad
from ...checks import DTYPES
from ...dispatch import is_special, kernels_of
from . import compiled, operators, reference
from .arguments import validate
from .operators import IMPLEMENTATIONS

__all__ = ["IMPLEMENTATIONS", "add_rms_norm", "rms_norm"]

_operator = torch.ops.sparsekernels.rms_norm.default
_add_operator = torch.ops.sparsekernels.add_rms_norm.default
_backward_operator = torch.ops.sparsekernels.rms_norm_backward.default
_kernel, _add_kernel = compiled.forward_operator, compiled.add_forward_operator
_backward_kernel = compiled.backward_operator


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    r"""Root mean square layer normalisation, as `torch.nn.functional.rms_norm`.

        y = x / sqrt(mean(x^2) + eps) * weight

    The mean runs over the trailing dimensions named by `normalized_shape`. bfloat16 and float16 are computed in float32
    and rounded once.

    input: [*, *normalized_shape]; float32, bfloat16, float16 or float64; any strides. Rows that lie apart (slices,
        transposed heads) are read in place; only a tensor whose normalised dimensions are not contiguous is copied.
    normalized_shape: at least one size.
    weight: [*normalized_shape] or None; any of these dtypes, not necessarily that of the input; on the same device.
    eps: at least 0; None is the machine epsilon of the type computed in (float32's, or float64's for float64).

    Returns y: shape and dtype of `input`, contiguous. The same row gives the same bits whatever the batch and the
    number of threads. Differentiable any number of times with respect to input and weight; weight gradients have the
    same bits from run to run.

    Raises TypeError for a dtype or a type that is not accepted, ValueError for a shape, device or eps that is not.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", arXiv 1910.07467, section 3.
    """
    try:
        if torch.is_grad_enabled() and (input.requires_grad or (weight is not None and weight.requires_grad)):
            if len(normalized_shape) == 1 and not is_special():
                return _apply(input, weight, (normalized_shape, eps, compiled))
            if dispatch.forced is None and torch.compiler.is_compiling():
                return _operator(input, normalized_shape, weight, eps)
            differentiable = True
        else:
            if dispatch.forced is None and len(normalized_shape) == 1 and forward_ad._current_level < 0:
                return _kernel(input, 1, normalized_shape[0], weight, eps)
            differentiable = False
        validate("rms_norm", input, normalized_shape, weight, eps)
        input, weight = _autocast(input, weight)
        kernels = kernels_of(IMPLEMENTATIONS, input, compiled, reference)
        if differentiable and kernels is not reference:  # which torch differentiates itself
            return _RMSNorm.apply(input, weight, (normalized_shape, eps, kernels))
        return kernels.forward(input, normalized_shape, weight, eps)
    except Exception as error:
        if not isinstance(input, Tensor) and has_torch_function_variadic(input, weight):  # torch.fx's Proxy, say
            return handle_torch_function(rms_norm, (input, weight), input, normalized_shape, weight, eps)
        _explain(error, "rms_norm", input, normalized_shape, weight, eps)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""`rms_norm` of a sum, and the sum: what stands between two blocks of a pre-norm transformer, in one pass.

        s = input + residual,   y = s / sqrt(mean(s^2) + eps) * weight

    s is rounded to its dtype before it is normalised, so the result is that of the two separate operations.

    residual: shape and device of `input`, any strides; two dtypes are promoted as by `+`. The other arguments, the
    promises and the errors are those of `rms_norm`.

    Returns (y, s). Both share the backward: to change s in place (`s += ...`), clone it first.
    """
    try:
        if input.dtype is not residual.dtype and input.dtype in DTYPES and residual.dtype in DTYPES:
            common = torch.promote_types(input.dtype, residual.dtype)
            input, residual = input.to(common), residual.to(common)
        if torch.is_grad_enabled() and (
            input.requires_grad or residual.requires_grad or (weight is not None and weight.requires_grad)
        ):
            if len(normalized_shape) == 1 and not is_special():
                return _add_apply(input, residual, weight, (normalized_shape, eps, compiled))
            if dispatch.forced is None and torch.compiler.is_compiling():
                return _add_operator(input, residual, normalized_shape, weight, eps)
            differentiable = True
        else:
            if dispatch.forced is None and len(normalized_shape) == 1 and forward_ad._current_level < 0:
                return _add_kernel(input, residual, 1, normalized_shape[0], weight, eps)
            differentiable = False
        validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
        if _autocasts(input):
            total = input + residual
            return rms_norm(total, normalized_shape, weight, eps), total
        kernels = kernels_of(IMPLEMENTATIONS, input, compiled, reference)
        if differentiable and kernels is not reference:  # which torch differentiates itself
            return _AddRMSNorm.apply(input, residual, weight, (normalized_shape, eps, kernels))
        return kernels.add_forward(input, residual, normalized_shape, weight, eps)
    except Exception as error:
        tensors = (input, residual, weight)
        if not isinstance(input, Tensor) and has_torch_function_variadic(*tensors):
            return handle_torch_function(add_rms_norm, tensors, input, residual, normalized_shape, weight, eps)
        _explain(error, "add_rms_norm", input, normalized_shape, weight, eps, residual)


def _autocasts(input: Tensor) -> bool:
    """Whether torch's autocast would run rms_norm in float32 here: it does on CUDA, and leaves it alone on CPU."""
    return input.is_cuda and torch.is_autocast_enabled("cuda") and input.dtype != torch.float64


def _autocast(input: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if not _autocasts(input):
        return input, weight
    return input.float(), None if weight is None else weight.float()


# What a call is besides its tensors: normalized_shape, eps, and where its kernels are.
_Call = tuple[Sequence[int], float | None, ModuleType]


class _RMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor | None, call: _Call) -> Tensor:
        normalized_shape, eps, kernels = call
        if kernels is compiled:  # the same, without a detour through Python
            return _kernel(input, len(normalized_shape), math.prod(normalized_shape), weight, eps)
        return kernels.forward(input, normalized_shape, weight, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, _Call], output: Tensor) -> None:
        input, weight, ctx.call = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        need_input, need_weight, _ = ctx.needs_input_grad
        normalized_shape, eps, kernels = call = ctx.call
        if kernels is compiled and not torch.is_grad_enabled():
            dims, size = len(normalized_shape), math.prod(normalized_shape)
            grad_input, grad_weight = _backward_kernel(
                grad_output, input, dims, size, weight, eps, None, need_input, need_weight
            )
        else:
            grad_input, grad_weight = _gradients(grad_output, input, weight, None, call, need_input, need_weight)
        return grad_input if need_input else None, grad_weight if need_weight else None, None


class _AddRMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, residual: Tensor, weight: Tensor | None, call: _Call) -> tuple[Tensor, Tensor]:
        normalized_shape, eps, kernels = call
        return kernels.add_forward(input, residual, normalized_shape, weight, eps)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, _Call], output: tuple[Tensor, Tensor]
    ) -> None:
        _, _, weight, ctx.call = inputs
        ctx.save_for_backward(output[1], weight)
        ctx.set_materialize_grads(False)  # who uses one of the two results pays no zeros for the other

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_sum: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return grad_sum, grad_sum, None, None
        total, weight = ctx.saved_tensors
        need_input, need_residual, need_weight, _ = ctx.needs_input_grad
        grad_total, grad_weight = _gradients(
            grad_output, total, weight, grad_sum, ctx.call, need_input or need_residual, need_weight
        )
        return (
            grad_total if need_input else None,
            grad_total if need_residual else None,
            grad_weight if need_weight else None,
            None,
        )


def _gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    grad_sum: Tensor | None,
    call: _Call,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.backward` on the call's kernels, differentiable where that is asked for (create_graph=True)."""
    normalized_shape, eps, kernels = call
    if not torch.is_grad_enabled():
        return kernels.backward(grad_output, input, normalized_shape, weight, eps, grad_sum, need_input, need_weight)
    if kernels is compiled and torch.compiler.is_compiling():
        return _backward_operator(grad_output, input, normalized_shape, weight, eps, grad_sum, need_input, need_weight)
    return _RMSNormBackward.apply(grad_output, input, weight, grad_sum, call, need_input, need_weight)


class _RMSNormBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor | None,
        grad_sum: Tensor | None,
        call: _Call,
        need_input: bool,
        need_weight: bool,
    ) -> tuple[Tensor, Tensor]:
        normalized_shape, eps, kernels = call
        return kernels.backward(grad_output, input, normalized_shape, weight, eps, grad_sum, need_input, need_weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad_output, input, weight, _, ctx.call, ctx.need_input, ctx.need_weight = inputs
        ctx.save_for_backward(grad_output, input, weight)

    @staticmethod
    def backward(ctx: Any, grad_grad_input: Tensor, grad_grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, input, weight = ctx.saved_tensors
        normalized_shape, eps, _ = ctx.call
        u = grad_grad_input if ctx.need_input else None
        v = grad_grad_weight if ctx.need_weight else None
        gradients = reference.double_backward(u, v, grad_output, input, normalized_shape, weight, eps)
        needed = zip((*gradients, u), ctx.needs_input_grad[:4], strict=True)
        return (*(gradient if need else None for gradient, need in needed), None, None, None)


_apply = apply_of(_RMSNorm)
_add_apply = apply_of(_AddRMSNorm)


def _explain(
    error: Exception,
    op: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    residual: Tensor | None = None,
) -> NoReturn:
    """Raise what is wrong with the arguments; where nothing is, `error` as it came."""
    try:
        validate(op, input, normalized_shape, weight, eps, residual)
    except (TypeError, ValueError) as reason:
        raise reason from None
    raise error


# The operators' gradients are the functions above. In a graph that is traced below autograd (torch.compile) they leave
# the kernel operators, so that compiled code calls the kernels without a detour through Python.


def _autograd(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    validate("rms_norm", input, normalized_shape, weight, eps)
    return _RMSNorm.apply(input, weight, (normalized_shape, eps, compiled))


def _add_autograd(
    input: Tensor, residual: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
    return _AddRMSNorm.apply(input, residual, weight, (normalized_shape, eps, compiled))


def _backward_autograd(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    grad_sum: Tensor | None,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    call = (normalized_shape, eps, compiled)
    return _RMSNormBackward.apply(grad_output, input, weight, grad_sum, call, need_input, need_weight)


def _add_autocast(
    input: Tensor, residual: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    total = input + residual
    return _operator(total, normalized_shape, weight, eps), total


def _add_kernel_autocast(
    input: Tensor, residual: Tensor, dims: int, size: int, weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    total = input + residual
    return _kernel(total, dims, size, weight, eps), total


for _name, _autograd_kernel, _plain in (
    ("rms_norm", _autograd, compiled.forward),
    ("add_rms_norm", _add_autograd, compiled.add_forward),
    ("rms_norm_backward", _backward_autograd, compiled.backward),
):
    operators.library.impl(_name, _plain, "CompositeExplicitAutograd")
    operators.library.impl(_name, _autograd_kernel, "Autograd")

# torch's autocast runs rms_norm in float32 on CUDA, and leaves it alone on CPU.
for _name in ("rms_norm", "_rms_norm"):
    torch.library.register_autocast(f"sparsekernels::{_name}", "cuda", torch.float32, lib=operators.library)
operators.library.impl("add_rms_norm", _add_autocast, "AutocastCUDA")
operators.library.impl("_add_rms_norm", _add_kernel_autocast, "AutocastCUDA")
