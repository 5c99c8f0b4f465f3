# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What rms_norm and add_rms_norm accept, and the words in which they refuse."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import check_tensor

CASTS = ("after", "before")
"""Where the result is rounded to the dtype of the input: after or before the weight is multiplied by."""

CAST_BEFORE, UNIT_OFFSET = 1 << 8, 1 << 9
"""The variants of a call, of which `reference` says what they compute, and their sums. Kernel operators are given them
in one number with that of the normalized dimensions (`RmsNormVariant` in csrc/rms_norm/glue.h)."""


def validate(
    op: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    residual: Tensor | None = None,
    cast: str = "after",
    unit_offset: bool = False,
) -> None:
    """Raise TypeError or ValueError, naming the argument, what was given and what is accepted; else return."""
    for name, tensor in (("input", input), ("residual", residual), ("weight", weight)):
        if tensor is None and (name == "weight" or (name == "residual" and op == "rms_norm")):
            continue
        checked = check_tensor(op, name, tensor)
        if checked.device != input.device:
            raise ValueError(f"{op}: expected {name} on {input.device} like input, got {checked.device}")
    try:
        shape = tuple(size if isinstance(size, torch.SymInt) else operator.index(size) for size in normalized_shape)
    except TypeError:
        given = type(normalized_shape).__name__ if isinstance(normalized_shape, Tensor) else normalized_shape
        raise TypeError(f"{op}: expected normalized_shape to be sizes such as (64,), got {given}") from None
    if not shape:
        raise ValueError(f"{op}: expected normalized_shape of at least one size, got {normalized_shape}")
    if input.dim() < len(shape) or tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{op}: expected input of shape [*, {', '.join(map(str, shape))}] with normalized_shape {list(shape)}, got"
            f" {list(input.shape)}"
        )
    if weight is not None and tuple(weight.shape) != shape:
        raise ValueError(
            f"{op}: expected weight of shape {list(shape)} like normalized_shape, got {list(weight.shape)}"
        )
    if residual is not None and residual.shape != input.shape:
        raise ValueError(f"{op}: expected residual of shape {list(input.shape)} like input, got {list(residual.shape)}")
    if residual is not None and residual.dtype != input.dtype:
        raise TypeError(f"{op}: expected residual of dtype {input.dtype} like input, got {residual.dtype}")
    if eps is not None:
        if not isinstance(eps, numbers.Real):
            raise TypeError(f"{op}: expected eps to be a number or None, got {type(eps).__name__}")
        if math.isnan(eps) or eps < 0:
            raise ValueError(f"{op}: expected eps of at least 0 or None, got {eps}")
    if cast not in CASTS:
        raise ValueError(f"{op}: expected cast of {' or '.join(map(repr, CASTS))}, got {cast!r}")
    if not isinstance(unit_offset, bool):
        raise TypeError(f"{op}: expected unit_offset to be a bool, got {type(unit_offset).__name__}")


def keeps_dtype(input: Tensor, weight: Tensor | None) -> bool:
    """Whether torch gives the product of both the dtype of `input`."""
    return weight is None or torch.promote_types(input.dtype, weight.dtype) == input.dtype
