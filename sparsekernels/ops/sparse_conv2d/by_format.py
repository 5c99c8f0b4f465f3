# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution by a weight in a format other than `Unstructured`, whose indices the kernel operators take.

A format with kernels of its own has a row in `CONVOLUTIONS`. One without that knows its elements as an `Unstructured`
(`SparseFormat.by_elements`: those that derive from it, and blocks) runs on the kernels of that. Any other is computed
as the dense convolution by its weight with the zeros, in plain torch, which is differentiable any number of times and
inside of every transform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ... import dispatch
from ..._torch import mark_size_as_dynamic
from ...dispatch import BackendError
from ...formats import BlockSparse, SparseFormat, Unstructured
from ...formats.compressed_rows import CompressedRows, Shared
from ..convolution import Geometry
from . import blocks, reference
from .on_gpu import kept_mask
from .plans import may_plan

Convolution = Callable[[Tensor, SparseFormat, Tensor, "Tensor | None", Geometry], Tensor]

CONVOLUTIONS: dict[str, Convolution] = {}
"""By the name of a format: y of input [N, C, H, W], pattern, weight, bias, geometry. The weight is the values, or the
dense weight, of which only the pattern's elements are read and which gets the whole dense gradient. A linear layer is
the 1x1 case on [rows, in, 1, 1], conv1d the case on [N, C, 1, L]; their dense weights have two and three
dimensions."""


def resolved(
    pattern: SparseFormat, weight: Any, is_dense: bool, input: Any, groups: Any = 1
) -> tuple[SparseFormat, Any]:
    """The pattern whose type says which kernels run it, and its weight in the order of that.

    `BlockSparse` for a call that kernels for blocks serve (blocks.py), else `Unstructured` for a format without kernels
    of its own that knows its elements as such, else the pattern as it is.
    weight: the values, the dense weight, or None for the values of the pattern; is_dense: whether it is known that it
    is not the values, nor None.
    """
    has_kernels = pattern.format in CONVOLUTIONS or blocks.serves(pattern, input, groups)
    elements = None if has_kernels else pattern.by_elements()
    if elements is None:
        return pattern, weight
    found, order = elements
    if is_dense:
        return found, weight
    weight = pattern.values if weight is None else weight
    if order is not None and isinstance(weight, Tensor) and weight.dim() == 1:
        if isinstance(pattern, BlockSparse) and isinstance(input, Tensor) and _goes_by_a_plan(input, found):
            return pattern._in_block_order(), weight
        weight = weight.index_select(0, order)
    return found, weight


def _goes_by_a_plan(input: Tensor, pattern: Unstructured) -> bool:
    """Whether a call is an eager one of the compiled kernels, which know where values are."""
    return not dispatch.is_special() and input.dtype is not torch.float64 and may_plan(pattern)


def prepare(pattern: SparseFormat, groups: int, gradients: bool) -> None:
    """Work out what calls need and keep beside the pattern, which torch.compile cannot while it traces.

    Compiled code reads these tensors anew in each call. It takes their sizes for variables from the first trace on, so
    that it is not compiled again for a pattern of more or fewer nonzeros.
    """
    _work_out(pattern, groups, gradients)
    for tensor in _tensors_in(vars(pattern)):
        if tensor.dim() == 1:
            mark_size_as_dynamic(tensor)


def _tensors_in(kept: Any) -> Iterator[Tensor]:
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, tuple | list):
        for one in kept:
            yield from _tensors_in(one)
    elif isinstance(kept, dict):
        yield from _tensors_in(list(kept.values()))
    elif isinstance(kept, SparseFormat | Shared):
        yield from _tensors_in(vars(kept))


def _work_out(pattern: SparseFormat, groups: int, gradients: bool) -> None:
    _ = pattern.flat_indices
    if gradients and pattern.device.type == "cuda" and isinstance(pattern, CompressedRows):
        kept_mask(pattern)
    if isinstance(pattern, BlockSparse) and blocks.has_block_kernel(pattern.device, pattern.dtype, pattern.block_size):
        return  # whose elements no call asks for, but in other dtypes
    if pattern.format not in CONVOLUTIONS:
        pattern.by_elements()
    if gradients:
        pattern.transposed(groups)


def conv2d(input: Tensor, pattern: SparseFormat, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """y, by the kernels of the format, or dense."""
    if type(pattern) is BlockSparse:
        return blocks.conv2d(input, pattern, weight, bias, geometry)
    return CONVOLUTIONS.get(pattern.format, dense)(input, pattern, weight, bias, geometry)


def dense(input: Tensor, pattern: SparseFormat, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """y in plain torch."""
    if dispatch.forced not in (None, "reference"):
        formats = ", ".join(map(repr, dict.fromkeys((Unstructured.format, BlockSparse.format, *CONVOLUTIONS))))
        raise BackendError(
            f"use_backend({dispatch.forced!r}): expected weight in a format with kernels, {formats}, got"
            f" {pattern.format!r}"
        )
    kernel = geometry.kernel_h, geometry.kernel_w
    whole = (
        pattern.with_values(weight).to_dense()
        if weight.dim() == 1
        else reference.used_weight(weight, pattern.flat_indices)
    )
    return reference.dense_forward(input, whole.view(*pattern.shape[:2], *kernel), bias, geometry)
