# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What masked_attention accepts, and the words in which it refuses the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...checks import check_tensor
from ..masked_matmul.arguments import MOST, broadcasts
from ..masked_matmul.reference import words_of
from ..precision import wide_dtype


def batch_of(where: str, q: Tensor, k: Tensor, v: Tensor) -> torch.Size:
    """The batch of the result; raise ValueError where the three do not fit."""
    shapes = q.shape[:-2], k.shape[:-2], v.shape[:-2]
    numbers = not torch.compiler.is_compiling() and all(type(size) is int for shape in shapes for size in shape)
    if numbers and len({len(shape) for shape in shapes}) == 1:
        # torch's own function takes as long as a short product
        sizes = [set(own) - {1} or {1} for own in zip(*shapes, strict=True)]
        if all(len(own) == 1 for own in sizes):
            return torch.Size(own.pop() for own in sizes)
    try:
        return torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{where}: expected k and v with batches that broadcast with that of q, {list(q.shape[:-2])}, got"
            f" {list(k.shape[:-2])} and {list(v.shape[:-2])}; heads of queries share those of keys with enable_gqa=True"
        ) from None


def check_operands(where: str, q: object, k: object, v: object) -> torch.Size:
    """The shape of the scores, [..., M, N]; raise TypeError or ValueError for what does not fit."""
    q, k, v = check_tensor(where, "q", q), check_tensor(where, "k", k), check_tensor(where, "v", v)
    for name, one in (("q", q), ("k", k), ("v", v)):
        if one.dim() < 2:
            raise ValueError(f"{where}: expected {name} of at least 2 dimensions, got {list(one.shape)}")
        if one.dtype != q.dtype:
            raise TypeError(f"{where}: expected {name} of dtype {q.dtype} like q, got {one.dtype}")
        if one.device != q.device:
            raise ValueError(f"{where}: expected {name} on {q.device} like q, got {one.device}")
    check_sizes(where, q, k, v)
    batch = batch_of(where, q, k, v)
    shape = torch.Size((*batch, q.size(-2), k.size(-2)))
    result = (*batch, q.size(-2), v.size(-1))
    for name, sizes in (("q", q.shape), ("k", k.shape), ("v", v.shape), ("a result", result), ("scores", shape)):
        limited = sizes[-2:] if name == "scores" else sizes  # these are never there together
        if math.prod(limited) > MOST:
            raise ValueError(f"{where}: expected {name} of at most 2^31 elements, got {list(limited)}")
    return shape


def check_sizes(where: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless keys fit queries, and values keys."""
    if k.size(-1) != q.size(-1):
        raise ValueError(f"{where}: expected k with {q.size(-1)} columns like q, got {list(k.shape)}")
    if v.size(-2) != k.size(-2):
        raise ValueError(f"{where}: expected v with {k.size(-2)} rows like k, got {list(v.shape)}")


def check_scale(where: str, scale: Any) -> None:
    """Raise unless it is a finite number."""
    if isinstance(scale, bool) or not isinstance(scale, int | float | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{where}: expected scale to be a number or None, got {type(scale).__name__}")
    if isinstance(scale, int | float) and abs(scale) > torch.finfo(torch.float32).max:
        raise ValueError(f"{where}: expected scale to be finite in float32, got {scale}")
    number: Any = scale
    if number - number != 0:  # infinite or NaN, in a comparison that torch.compile traces
        raise ValueError(f"{where}: expected scale to be finite, got {scale}")


def check_forward(q: Tensor, k: Tensor, v: Tensor, bits: Tensor, scale: float, training: bool) -> None:
    """Raise for arguments of the operator that do not fit."""
    where = "masked_attention"
    shape = check_operands(where, q, k, v)
    wanted = (*shape[:-1], words_of(shape[-1]))
    if bits.dtype != torch.int64 or bits.shape[-2:] != wanted[-2:] or not broadcasts(bits.shape, wanted):
        expected = f"bits of torch.int64 in a shape that broadcasts to {list(wanted)}"
        raise ValueError(f"{where}: expected {expected}, got {bits.dtype} {list(bits.shape)}")
    if bits.device != q.device:
        raise ValueError(f"{where}: expected bits on {q.device} like q, got {bits.device}")


def check_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bits: Tensor, *others: Any) -> None:
    """The same for the backward operator."""
    y, statistics, rest, scale = others
    check_forward(q, k, v, bits, scale, True)
    where = "masked_attention"
    of_rows = (*batch_of(where, q, k, v), q.size(-2))
    result = (*of_rows, v.size(-1))
    wanted = [("gradient", gradient, result), ("y", y, result), ("statistics", statistics, (*of_rows, 2))]
    if rest.numel() > 0:
        wanted.append(("rest", rest, result))
    for name, one, shape in wanted:
        if tuple(one.shape) != tuple(shape):
            raise ValueError(f"{where}: expected {name} of shape {list(shape)}, got {list(one.shape)}")
        if one.device != q.device:
            raise ValueError(f"{where}: expected {name} on {q.device} like q, got {one.device}")
        dtype = wide_dtype(q) if name == "statistics" else q.dtype
        if name != "gradient" and one.dtype != dtype:  # which has its own where nobody casts it
            raise TypeError(f"{where}: expected {name} of dtype {dtype}, got {one.dtype}")
