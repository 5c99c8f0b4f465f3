# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""The linear layer whose weight is [in, out], as transformers' `Conv1D` has it, by a weight with zeros.

    y = x W + b     with W zero outside of a pattern

y is the gradient to the input of the linear layer with the weight W, whose output gradient is x: the kernel that
computes that walks the transposed pattern, and keeps it in its plan. So a plain call is one of that kernel, with its
gradients. All others are calls of `linear` by the transposed pattern, which is made once, and values that are gathered
in its order: with all its derivatives, casts and transforms. So are those with gradients in a short dtype, which would
be rounded before the bias is added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dispatch import is_special
from ...formats import SparseFormat, Unstructured
from ..convolution import LINEAR
from . import gradients
from .blocks import has_block_kernel
from .by_format import CONVOLUTIONS
from .gradients import Image
from .implementations import compiled
from .op import linear
from .outside import Guard, Outside, is_for_torch
from .plans import input_gradient, may_plan, plan_of

_apply = gradients.sparse_conv2d_input_gradient.apply


def flipped_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a format, of outputs and inputs, for a weight [in, out], or the other way about."""
    return {name: value[::-1] if name == "block" else value for name, value in options.items()}


class Flipped:
    """Which elements of a weight [in, out] are used, in the order in which the kernels take them.

    own      the weight's own pattern, of shape [in, out]
    pattern  the same of the transposed weight, [out, in]
    """

    def __init__(self, own: SparseFormat) -> None:
        (inputs, outputs), options = own.shape, flipped_options(own.options)
        self.own = own
        if own.device.type == "meta":  # whose elements are not known
            self.pattern = type(own).full((outputs, inputs), own.dtype, own.device, **options)
        else:
            self.pattern = type(own).of_mask(own.mask.t(), own.dtype, **options)
        flat = self.pattern.flat_indices
        self.flat_indices = flat % inputs * outputs + torch.div(flat, inputs, rounding_mode="floor")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own.shape

    @property
    def device(self) -> torch.device:
        return self.own.device

    @property
    def nnz(self) -> int:
        return self.own.nnz

    @property
    def mask(self) -> Tensor:
        return self.own.mask

    @property
    def col_indices(self) -> Tensor | None:
        """By which a `Guard` knows that these are the elements of `own`."""
        return getattr(self.own, "col_indices", None)

    def values_of(self, weight: Tensor) -> Tensor:
        """The elements of a weight [in, out] in the order of `pattern`. Differentiable."""
        return weight.flatten().index_select(0, self.flat_indices)


def transposed_linear(
    input: Tensor, places: Flipped, weight: Tensor, bias: Tensor | None, guard: Guard | None
) -> Tensor:
    """y [*, out] of an input [*, in] and a dense weight [in, out], by its elements at `places`.

    guard: raises `Outside` where the weight is not zero elsewhere; without one the gradient is that of all of it.
    """
    own, pattern = places.own, places.pattern
    inputs, outputs = own.shape
    if guard is None:
        if not isinstance(weight, Tensor):  # torch.fx's Proxy
            return linear(input, pattern, weight.t().reshape(outputs, inputs, 1, 1), bias)
        return linear(input, pattern, weight.t(), bias)
    try:
        elements = _elements_of(places, input)
        if isinstance(input, Tensor) and _is_plain(input, elements):
            rows, result = input.reshape(-1, inputs, 1, 1), None
            if not _wants_gradients(input, weight, bias):
                guard.check(own, weight, float(rows.size(0) * own.nnz))
                result = input_gradient(rows, weight, plan_of(elements, LINEAR), 1, 1, False, bias)  # type: ignore[arg-type]
            elif input.dtype is torch.float32 and (bias is None or bias.shape == (outputs,)):
                guard.check(own, weight, float(rows.size(0) * own.nnz))
                result = _differentiable(rows, elements.values_of(weight), bias, elements)
            if result is not None:
                return result.view(*input.shape[:-1], outputs)
        return linear(input, pattern, guard.values(places, weight), bias)
    except Outside:
        raise
    except Exception:
        if is_for_torch(input) or (isinstance(bias, Tensor) and bias.shape != (outputs,)):  # torch may broadcast it
            raise Outside from None
        if not isinstance(input, Tensor):
            raise
        # in words, if it is the arguments
        return linear(input, pattern, guard.values(places, weight), bias)


def _elements_of(places: Flipped, input: Tensor) -> Any:
    """The weight's own pattern, as an `Unstructured` where its elements run on the kernels of that."""
    own, block = places.own, places.pattern.block_size
    if type(own) is Unstructured or own.format in CONVOLUTIONS:
        return own
    if block is not None and isinstance(input, Tensor) and has_block_kernel(input.device, input.dtype, block):
        return own
    found = own.by_elements()
    return own if found is None else found[0]


def _is_plain(input: Tensor, own: SparseFormat) -> bool:
    """Whether a call may be one of the kernel: nothing follows what it does."""
    if is_special() or type(own) is not Unstructured or not may_plan(own):
        return False
    return input.dtype is not torch.float64 and input.shape[-1] == own.shape[0]


def _wants_gradients(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def _differentiable(rows: Tensor, values: Tensor, bias: Tensor | None, own: Any) -> Tensor:
    """y [rows, out, 1, 1], with the gradients that an input gradient has. own: `Unstructured`."""
    image = Image(own.shape[1], 1, 1, channels_last=False)
    result: Tensor = _apply(rows, values, image, own, LINEAR, compiled)
    return result if bias is None else result.add_(bias[:, None, None])


def dense_product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W + b by all of the weight, as transformers' `Conv1D` computes it."""
    rows = input.reshape(-1, input.size(-1))
    result = torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)
    return result.view(*input.size()[:-1], weight.size(1))
