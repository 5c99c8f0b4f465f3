# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The grid of blocks over a weight: which element lies in which, and what is asked of a block size.

A weight [out, in] or [out, in/groups, kh, kw] is cut into ceil(out / r) block rows and, at each of its taps, into
ceil(in / c) block columns. Blocks at the ends are smaller where r and c do not divide.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST = 128
"""Of the two sizes of a block."""


def check_block(where: str, block: object) -> tuple[int, int]:
    """The block as two int; raise TypeError for what is no pair of them, ValueError for sizes not in 1 .. `LARGEST`."""
    pair = tuple(block) if isinstance(block, Sequence) and not isinstance(block, str) else ()
    if len(pair) != 2 or not all(isinstance(size, numbers.Integral) and not isinstance(size, bool) for size in pair):
        raise TypeError(f"{where}: expected block to be two int, (rows, columns), got {block!r}")
    rows, columns = (int(size) for size in pair)
    if not (1 <= rows <= LARGEST and 1 <= columns <= LARGEST):
        raise ValueError(f"{where}: expected block of sizes from 1 to {LARGEST}, got {rows}x{columns}")
    return rows, columns


def grid_of(shape: Sequence[int], block: tuple[int, int]) -> tuple[int, int, int]:
    """Block rows, block columns, taps."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1]), math.prod(shape[2:])


def by_block(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """The elements of each block: [block rows, r, block columns, c, taps], those beyond the weight's ends zero."""
    (rows, columns, taps), (r, c) = grid_of(weight.shape, block), block
    flat = weight.reshape(weight.size(0), weight.size(1), taps)
    if (rows * r, columns * c) != tuple(flat.shape[:2]):
        padded = flat.new_zeros(rows * r, columns * c, taps)
        padded[: flat.size(0), : flat.size(1)] = flat
        flat = padded
    return flat.view(rows, r, columns, c, taps)


def touched(mask: Tensor, block: tuple[int, int]) -> Tensor:
    """bool [block rows, block columns, taps]: the blocks in which a mask is True somewhere."""
    return by_block(mask, block).any(3).any(1)


def sizes_of(shape: Sequence[int], block: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """int64: how many rows each block row has, and how many columns each block column."""
    found = []
    for size, step in zip(shape, block, strict=False):
        count = -(-size // step)
        sizes = torch.full((count,), step, dtype=torch.int64, device=device)
        sizes[count - 1] = size - (count - 1) * step
        found.append(sizes)
    return found[0], found[1]


def stored(blocks: Tensor, shape: Sequence[int], block: tuple[int, int]) -> int:
    """How many elements the blocks have that are True in `blocks` [block rows, block columns, taps]."""
    heights, widths = sizes_of(shape, block, blocks.device)
    return int((blocks.sum(2) * (heights[:, None] * widths)).sum())


def spread(blocks: Tensor, shape: Sequence[int], block: tuple[int, int]) -> Tensor:
    """What is given for each block [block rows, block columns, taps], for each element of a weight of `shape`."""
    whole = blocks.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]
    return whole.reshape(tuple(shape))


def squared_norms(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """float64 [block rows, block columns, taps]: the sum of the squares in each block."""
    return by_block(weight.detach(), block).to(torch.float64).square().sum((1, 3))
