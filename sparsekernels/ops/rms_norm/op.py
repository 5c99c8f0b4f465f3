# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""rms_norm and add_rms_norm: the public functions.

The route of a call. `rms_norm` calls one *kernel operator* (`sparsekernels::_rms_norm`), which torch's own dispatcher
hands to the kernel of the input's device: the compiled one, or where that was not built the next row of the table.
Kernel operators know no gradients. Where a gradient is wanted an autograd function wraps them (gradients.py). What is
more than a plain eager call takes the general route, that of `Operator`. The reference is differentiated by torch
itself, forward mode included.

Arguments are checked where that is cheapest, inside the kernel operator; when it refuses them, the checks in words of
arguments.py say why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from ... import dispatch
from ..._torch import are_functorch_transforms_active, forward_ad, is_exported_to_onnx
from ...checks import DTYPES
from ...dispatch import is_special
from .._operation import explain, is_traced, is_unsupported_gpu
from . import gradients, implementations, reference
from .arguments import CAST_BEFORE, CASTS, UNIT_OFFSET, keeps_dtype, validate
from .implementations import compiled

__all__ = ["add_rms_norm", "rms_norm"]

# Bound once: on the hot path nothing is looked up by string, and `is_transformed` is written out: a call takes 60 ns.
_kernel, _add_kernel = implementations.forward, implementations.add_forward
_apply, _add_apply = gradients.rms_norm.apply, gradients.add_rms_norm.apply


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    cast: str = "after",
    unit_offset: bool = False,
) -> Tensor:
    r"""Root mean square layer normalization, as `torch.nn.functional.rms_norm`.

        y = x / sqrt(mean(x^2) + eps) * weight      (1 + weight with unit_offset)

    The mean runs over the trailing dimensions named by `normalized_shape`. bfloat16 and float16 are computed in float32
    and rounded once. Differentiable any number of times with respect to input and weight. The same row gives the same
    bits whatever the batch and the number of threads; weight gradients have the same bits from run to run.

    Args:
        input: [*, *normalized_shape]; float32, bfloat16, float16 or float64; any strides. Rows that lie apart (slices,
            transposed heads) are read in place; only a tensor whose normalized dimensions are not contiguous is copied.
        normalized_shape: At least one size.
        weight: [*normalized_shape] or None; any of these dtypes, not necessarily that of `input`; on the same device.
        eps: At least 0; None is the machine epsilon of the type computed in (float32's, or float64's for float64).
        cast: Where bfloat16 and float16 are rounded. "after": once, the product, as torch and Gemma do. "before":
            x / sqrt(...) is rounded to the dtype of `input`, then multiplied by `weight`, as Llama's norm does.
        unit_offset: Whether to multiply by 1 + weight, computed in the type computed in, as Gemma does.

    Returns:
        y: shape of `input`, contiguous. Its dtype is that of `input`; with cast="before" what torch gives the product
        of a tensor of that dtype and `weight`: float32 for bfloat16 and a float32 weight.

    Raises:
        TypeError: For a dtype or a type that is not accepted.
        ValueError: For a shape, device or eps that is not.
        BackendError: Where a backend was asked for that cannot run the call.

    Source: Zhang & Sennrich, 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467, section 3.
    """
    try:
        if is_exported_to_onnx(input):
            return reference.forward(input, normalized_shape, weight, eps, _number_of(cast, unit_offset))
        if cast != "after" or unit_offset:
            return _variant(input, normalized_shape, weight, eps, cast, unit_offset)
        if torch.is_grad_enabled() and (input.requires_grad or (weight is not None and weight.requires_grad)):
            if len(normalized_shape) == 1 and not is_special():
                return _apply(input, normalized_shape, weight, eps, 0, compiled)
        elif (
            dispatch.forced is None
            and len(normalized_shape) == 1
            and forward_ad._current_level < 0
            and not are_functorch_transforms_active()
        ):
            return _kernel(input, 1, normalized_shape[0], weight, eps)
        return gradients.rms_norm(input, normalized_shape, weight, eps, 0)
    except Exception as error:
        if is_traced(input, weight):
            arguments = input, normalized_shape, weight, eps
            return handle_torch_function(rms_norm, (input, weight), *arguments, cast=cast, unit_offset=unit_offset)
        if _is_on_unsupported_gpu(input):
            return gradients.rms_norm(input, normalized_shape, weight, eps, _number_of(cast, unit_offset))
        explain(error, validate, "rms_norm", input, normalized_shape, weight, eps, None, cast, unit_offset)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    cast: str = "after",
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""`rms_norm` of a sum, and the sum: what stands between two blocks of a pre-norm transformer, in one pass.

        s = input + residual,   y = s / sqrt(mean(s^2) + eps) * weight      (1 + weight with unit_offset)

    s is rounded to its dtype before it is normalized, so the result is that of the two separate operations. The
    promises are those of `rms_norm`.

    Args:
        input: As in `rms_norm`.
        residual: Shape and device of `input`, any strides; two dtypes are promoted as by `+`.
        normalized_shape: As in `rms_norm`.
        weight: As in `rms_norm`.
        eps: As in `rms_norm`.
        cast: As in `rms_norm`.
        unit_offset: As in `rms_norm`.

    Returns:
        (y, s). Both share the backward pass: to change s in place (`s += ...`), clone it first.

    Raises:
        TypeError: For a dtype or a type that is not accepted.
        ValueError: For a shape, device or eps that is not.
        BackendError: Where a backend was asked for that cannot run the call.
    """
    try:
        if input.dtype is not residual.dtype and input.dtype in DTYPES and residual.dtype in DTYPES:
            common = torch.promote_types(input.dtype, residual.dtype)
            input, residual = input.to(common), residual.to(common)
        if is_exported_to_onnx(input):
            variant = _number_of(cast, unit_offset)
            return reference.add_forward(input, residual, normalized_shape, weight, eps, variant)
        if cast != "after" or unit_offset:
            return _add_variant(input, residual, normalized_shape, weight, eps, cast, unit_offset)
        if torch.is_grad_enabled() and (
            input.requires_grad or residual.requires_grad or (weight is not None and weight.requires_grad)
        ):
            if len(normalized_shape) == 1 and not is_special():
                return _add_apply(input, residual, normalized_shape, weight, eps, 0, compiled)
        elif (
            dispatch.forced is None
            and len(normalized_shape) == 1
            and forward_ad._current_level < 0
            and not are_functorch_transforms_active()
        ):
            return _add_kernel(input, residual, 1, normalized_shape[0], weight, eps)
        if gradients.rms_norm.cast(input)[0] is not input:  # autocast runs rms_norm in float32, and `+` as it is
            validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
            total = input + residual
            return rms_norm(total, normalized_shape, weight, eps), total
        return gradients.add_rms_norm(input, residual, normalized_shape, weight, eps, 0)
    except Exception as error:
        if is_traced(input, residual, weight):
            arguments = input, residual, normalized_shape, weight, eps
            relevant = input, residual, weight
            return handle_torch_function(add_rms_norm, relevant, *arguments, cast=cast, unit_offset=unit_offset)
        if _is_on_unsupported_gpu(input):
            return gradients.add_rms_norm(input, residual, normalized_shape, weight, eps, _number_of(cast, unit_offset))
        explain(error, validate, "add_rms_norm", input, normalized_shape, weight, eps, residual, cast, unit_offset)


def _is_on_unsupported_gpu(input: Any) -> bool:
    """Whether the kernel operator, which knows devices alone, raised because its CUDA kernel does not run there."""
    return dispatch.forced is None and isinstance(input, Tensor) and input.is_cuda and is_unsupported_gpu(input.device)


# What is not torch's rms_norm. Apart from that, whose calls are the shortest there are.


def _variant(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, *options: Any
) -> Tensor:
    variant = _number_of(*options)
    if variant & CAST_BEFORE and not keeps_dtype(input, weight):
        validate("rms_norm", input, normalized_shape, weight, eps)
        return _multiplied(rms_norm(input, normalized_shape, None, eps), weight, variant)
    if is_special() or len(normalized_shape) != 1:
        return gradients.rms_norm(input, normalized_shape, weight, eps, variant)
    if torch.is_grad_enabled() and (input.requires_grad or (weight is not None and weight.requires_grad)):
        return _apply(input, normalized_shape, weight, eps, variant, compiled)
    return _kernel(input, 1 + variant, normalized_shape[0], weight, eps)


def _add_variant(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    variant = _number_of(*options)
    if variant & CAST_BEFORE and not keeps_dtype(input, weight):
        validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
        normalized, total = add_rms_norm(input, residual, normalized_shape, None, eps)
        return _multiplied(normalized, weight, variant), total
    if gradients.rms_norm.cast(input)[0] is not input:
        validate("add_rms_norm", input, normalized_shape, weight, eps, residual)
        total = input + residual
        return _variant(total, normalized_shape, weight, eps, *options), total
    if is_special() or len(normalized_shape) != 1:
        return gradients.add_rms_norm(input, residual, normalized_shape, weight, eps, variant)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (input, residual, weight)):
        return _add_apply(input, residual, normalized_shape, weight, eps, variant, compiled)
    return _add_kernel(input, residual, 1 + variant, normalized_shape[0], weight, eps)


def _number_of(cast: str, unit_offset: bool) -> int:
    if cast not in CASTS or not isinstance(unit_offset, bool):
        raise ValueError("rms_norm: expected another cast or unit_offset")  # `explain` says which
    return CAST_BEFORE * (cast == "before") + UNIT_OFFSET * unit_offset


def _multiplied(normalized: Tensor, weight: Any, variant: int) -> Tensor:
    """The product where its dtype is not that of the input: torch's own multiplication, behind the norm."""
    scale = reference.scale_of(weight, normalized, variant)
    return (normalized * scale).to(torch.promote_types(normalized.dtype, weight.dtype))
