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
            raise ValueError(f"{op}: {name} is on {checked.device}, accepted is the device of input, {input.device}")
    try:
        shape = tuple(size if isinstance(size, torch.SymInt) else operator.index(size) for size in normalized_shape)
    except TypeError:
        refused = (
            f"of type {type(normalized_shape).__name__}" if isinstance(normalized_shape, Tensor) else normalized_shape
        )
        raise TypeError(f"{op}: normalized_shape is {refused}, accepted is a sequence of sizes such as (64,)") from None
    if not shape:
        raise ValueError(f"{op}: normalized_shape is empty, accepted is at least one size")
    if input.dim() < len(shape) or tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{op}: input has shape {list(input.shape)}, accepted with normalized_shape {list(shape)} is "
            f"[*, {', '.join(map(str, shape))}]"
        )
    if weight is not None and tuple(weight.shape) != shape:
        raise ValueError(f"{op}: weight has shape {list(weight.shape)}, accepted is normalized_shape, {list(shape)}")
    if residual is not None and residual.shape != input.shape:
        raise ValueError(
            f"{op}: residual has shape {list(residual.shape)}, accepted is that of input, {list(input.shape)}"
        )
    if residual is not None and residual.dtype != input.dtype:
        raise TypeError(f"{op}: residual has dtype {residual.dtype}, accepted is that of input, {input.dtype}")
    if eps is not None:
        if not isinstance(eps, numbers.Real):
            raise TypeError(f"{op}: eps is of type {type(eps).__name__}, accepted is a number or None")
        if math.isnan(eps) or eps < 0:
            raise ValueError(f"{op}: eps is {eps}, accepted is a number that is at least 0, or None")
