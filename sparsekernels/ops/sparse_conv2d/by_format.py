# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution by a weight in a format other than `Unstructured`, whose indices the kernel operators take.

A format with kernels of its own has a row in `CONVOLUTIONS`. One without that derives from `Unstructured` runs on the
kernels of that. Any other is computed as the dense convolution by its weight with the zeros, in plain torch, which is
differentiable any number of times and inside of every transform.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ... import dispatch
from ...dispatch import BackendError
from ...formats import SparseFormat, Unstructured
from ...formats.unstructured import as_unstructured
from ..convolution import Geometry
from . import reference

Convolution = Callable[[Tensor, SparseFormat, Tensor, "Tensor | None", Geometry], Tensor]

CONVOLUTIONS: dict[str, Convolution] = {}
"""By the name of a format: y of input [N, C, H, W], pattern, weight, bias, geometry. The weight is the values, or the
dense weight, of which only the pattern's elements are read and which gets the whole dense gradient. A linear layer is
the 1x1 case on [rows, in, 1, 1], conv1d the case on [N, C, 1, L]; their dense weights have two and three
dimensions."""


def resolved(pattern: SparseFormat) -> SparseFormat:
    """The pattern whose type says which kernels run it: `Unstructured` for a format that derives from it and has no
    kernels of its own, else the pattern as it is.
    """
    if isinstance(pattern, Unstructured) and pattern.format not in CONVOLUTIONS:
        return as_unstructured(pattern)
    return pattern


def conv2d(input: Tensor, pattern: SparseFormat, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """y, by the kernels of the format, or dense."""
    return CONVOLUTIONS.get(pattern.format, dense)(input, pattern, weight, bias, geometry)


def dense(input: Tensor, pattern: SparseFormat, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """y in plain torch."""
    if dispatch.forced not in (None, "reference"):
        formats = ", ".join(map(repr, (Unstructured.format, *CONVOLUTIONS)))
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
