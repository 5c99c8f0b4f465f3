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


def validate(
    op: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    residual: Tensor | None = None,
) -> None:
    """Raise TypeError or ValueError, naming the argument, what was given and what is accepted; else return."""
    for name, tensor in (("input", input), ("residual", residual), ("weight", weight)):
        if tensor is None and (name == "weight" or (name == "residual" and op == "rms_norm")):
            continue
        checked = check_tensor(op, name, tensor)
        if checked.device != input.device:
            raise ValueError(f"{op}: {name} is on {checked.device}, expected the device of input, {input.device}")
    try:
        shape = tuple(size if isinstance(size, torch.SymInt) else operator.index(size) for size in normalized_shape)
    except TypeError:
        refused = (
            f"of type {type(normalized_shape).__name__}" if isinstance(normalized_shape, Tensor) else normalized_shape
        )
        raise TypeError(f"{op}: normalized_shape is {refused}, expected a sequence of sizes such as (64,)") from None
    if not shape:
        raise ValueError(f"{op}: normalized_shape is empty, expected at least one size")
    if input.dim() < len(shape) or tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{op}: input has shape {list(input.shape)}, expected [*, {', '.join(map(str, shape))}] with"
            f" normalized_shape {list(shape)}"
        )
    if weight is not None and tuple(weight.shape) != shape:
        raise ValueError(f"{op}: weight has shape {list(weight.shape)}, expected normalized_shape, {list(shape)}")
    if residual is not None and residual.shape != input.shape:
        raise ValueError(
            f"{op}: residual has shape {list(residual.shape)}, expected that of input, {list(input.shape)}"
        )
    if residual is not None and residual.dtype != input.dtype:
        raise TypeError(f"{op}: residual has dtype {residual.dtype}, expected that of input, {input.dtype}")
    if eps is not None:
        if not isinstance(eps, numbers.Real):
            raise TypeError(f"{op}: eps is of type {type(eps).__name__}, expected a number or None")
        if math.isnan(eps) or eps < 0:
            raise ValueError(f"{op}: eps is {eps}, expected a number that is at least 0, or None")
