# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks and shapes that masked attention is tested with, and what it is held to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def in_blocks(shape: tuple[int, ...], density: float, block: tuple[int, int]) -> Tensor:
    (r, c), (m, n) = block, shape[-2:]
    blocks = torch.rand(*shape[:-2], -(-m // r), -(-n // c)) < density
    return blocks.repeat_interleave(r, -2)[..., :m, :].repeat_interleave(c, -1)[..., :n]


def band(shape: tuple[int, ...]) -> Tensor:
    """Each row sees the keys next to it, also where there are more of one than of the other."""
    rows, columns = (torch.arange(size) / max(1, size) for size in shape[-2:])
    return ((rows[:, None] - columns).abs() < 0.1).expand(shape)


def clusters(shape: tuple[int, ...]) -> Tensor:
    """Blocks, and a few elements beside them."""
    return in_blocks(shape, 0.1, (16, 32)) | (torch.rand(shape) < 0.02)


KINDS = {
    "full": lambda shape: torch.ones(shape, dtype=torch.bool),
    "empty": lambda shape: torch.zeros(shape, dtype=torch.bool),
    "few": lambda shape: torch.rand(shape) < 0.03,
    "half": lambda shape: torch.rand(shape) < 0.5,
    "blocks": lambda shape: in_blocks(shape, 0.1, (32, 32)),
    "uneven blocks": lambda shape: in_blocks(shape, 0.2, (24, 40)),
    "causal": lambda shape: torch.ones(shape, dtype=torch.bool).tril(),
    "band": band,
    "clusters": clusters,
}


class Case(NamedTuple):
    q: tuple[int, ...]
    k: tuple[int, ...]
    columns: int
    """Of the values."""


CASES = [
    Case((64, 64), (64, 64), 64),
    Case((1, 1), (1, 1), 1),
    Case((1, 40), (300, 40), 7),
    Case((300, 1), (1, 1), 5),
    Case((33, 17), (130, 17), 33),
    Case((2, 3, 40, 31), (2, 3, 70, 31), 50),
    Case((3, 1, 9, 20), (2, 33, 20), 20),
    Case((2, 3, 20, 9), (2, 1, 40, 9), 12),
    Case((100, 270), (90, 270), 260),
]
EMPTY = [
    Case((0, 3), (4, 3), 5),
    Case((3, 4), (0, 4), 5),
    Case((3, 0), (4, 0), 5),
    Case((3, 4), (5, 4), 0),
    Case((0, 3, 4), (5, 4), 2),
]


def shape_of(case: Case) -> tuple[int, ...]:
    return (*torch.broadcast_shapes(case.q[:-2], case.k[:-2]), case.q[-2], case.k[-2])


def operands(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    sizes = case.q, case.k, (*case.k[:-1], case.columns)
    q, k, v = (torch.randn(size).to(dtype).requires_grad_() for size in sizes)
    return q, k, v


def expected(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """The definition, in dense torch; half types are computed in float32."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = q.to(wide) @ k.to(wide).mT * (max(1, q.size(-1)) ** -0.5 if scale is None else scale)
    weights = torch.where(mask, scores, float("-inf")).softmax(-1)
    return (torch.where(mask, weights, 0) @ v.to(wide)).to(q.dtype)
