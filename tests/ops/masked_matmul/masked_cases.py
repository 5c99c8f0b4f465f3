# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks and shapes that masked products are tested with, and what they are held to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def in_blocks(shape: tuple[int, ...], density: float, block: tuple[int, int]) -> Tensor:
    (r, c), (m, n) = block, shape[-2:]
    blocks = torch.rand(*shape[:-2], -(-m // r), -(-n // c)) < density
    return blocks.repeat_interleave(r, -2)[..., :m, :].repeat_interleave(c, -1)[..., :n]


def ragged(shape: tuple[int, ...]) -> Tensor:
    """Rows that keep from nothing to everything."""
    lengths = torch.randint(0, shape[-1] + 1, (*shape[:-1], 1))
    return torch.arange(shape[-1]) < lengths


KINDS = {
    "full": lambda shape: torch.ones(shape, dtype=torch.bool),
    "empty": lambda shape: torch.zeros(shape, dtype=torch.bool),
    "ragged": ragged,
    "few": lambda shape: torch.rand(shape) < 0.03,
    "half": lambda shape: torch.rand(shape) < 0.5,
    "blocks": lambda shape: in_blocks(shape, 0.1, (32, 32)),
    "uneven blocks": lambda shape: in_blocks(shape, 0.2, (24, 40)),
    "causal": lambda shape: torch.ones(shape, dtype=torch.bool).tril(),
}


class Case(NamedTuple):
    a: tuple[int, ...]
    b: tuple[int, ...]


CASES = [
    Case((64, 64), (64, 64)),
    Case((1, 1), (1, 1)),
    Case((1, 300), (300, 7)),
    Case((33, 17), (17, 130)),
    Case((7, 1), (1, 65)),
    Case((130, 200), (200, 97)),
    Case((2, 40, 31), (31, 70)),
    Case((3, 1, 9, 20), (2, 20, 33)),
    Case((300, 270), (270, 260)),
]
EMPTY = [
    Case((0, 3), (3, 4)),
    Case((600, 0), (0, 700)),
    Case((3, 0), (0, 4)),
    Case((3, 4), (4, 0)),
    Case((0, 3, 4), (4, 5)),
]


def operands(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(case.a).to(dtype).requires_grad_(), torch.randn(case.b).to(dtype).requires_grad_()


def shape_of(case: Case) -> tuple[int, ...]:
    return (*torch.broadcast_shapes(case.a[:-2], case.b[:-2]), case.a[-2], case.b[-1])


def expected(a: Tensor, b: Tensor, mask: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
    """The definition, in dense torch; half types are multiplied in float32."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    left = a if a_mask is None else torch.where(a_mask, a, 0)
    right = b if b_mask is None else torch.where(b_mask, b, 0)
    return torch.where(mask, (left.to(wide) @ right.to(wide)).to(a.dtype), 0)
