# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the Triton kernels of RMSNorm cut their work: tiles, warps, programs, and the rows as a kernel walks them.

The number of rows is no argument of a tiling, so what one row gives does not depend on how many there are; only the
number of programs follows the rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .._triton_table import from_table
from .reference import rows_are_contiguous

GROUP = 16
"""Programs of a backward whose partial weight gradients are summed together, before the sums of all groups are."""

MAX_LEADING_DIMS = 4
"""Leading dimensions that a kernel walks; a call that does not collapse to as few is copied."""

_WARP = 32  # threads


@dataclass(frozen=True)
class Tiling:
    """What one program of a kernel works on at a time.

    block_rows  rows, a power of two; 1 where looped
    block_cols  columns, a power of two; at least as many as the row has, unless looped
    num_warps   warps, a power of two
    looped      a row is walked in blocks of columns, twice, instead of being kept in registers
    """

    block_rows: int
    block_cols: int
    num_warps: int
    looped: bool


def _covering(cols: int, itemsize: int) -> int:
    """The smallest power of two that covers a row and one 16-byte access."""
    return max(1 << (cols - 1).bit_length(), 16 // itemsize)


@from_table("rms_norm.forward", tunes=("num_warps",))
@functools.cache
def forward_tiling(cols: int, itemsize: int) -> Tiling:
    """The tile of a forward over rows of `cols` elements of `itemsize` bytes.

    4 KB to begin with, in as many rows as that takes: 32 bytes, two accesses, for each thread of four warps. Longer
    rows get more warps up to 16, then 64 bytes a thread, then 32 warps. That is a row of 64 KB, and all that the
    registers hold; a longer one is walked in blocks of 16 elements (8 of float64) a thread.
    """
    block_cols, limit = _covering(cols, itemsize), 64 * 1024 // itemsize
    looped = block_cols > limit
    if looped:
        return Tiling(1, min(limit, 16 * 32 * _WARP), 32, looped)
    block_rows = max(1, 4096 // (block_cols * itemsize))
    kilobytes = block_rows * block_cols * itemsize // 1024
    return Tiling(block_rows, block_cols, max(min(16, kilobytes), kilobytes // 2), looped)


@from_table("rms_norm.backward", tunes=("num_warps",))
@functools.cache
def backward_tiling(cols: int, itemsize: int) -> Tiling:
    """The tile of a backward over rows of `cols` elements of `itemsize` bytes.

    4 KB to begin with, as in a forward. Longer rows first get up to 16 elements a thread (4 of float64), then up to 16
    warps: a thread holds its elements of the input, the output gradient and the weight gradient, and the next row's of
    the first two, in 128 registers. That is a row of 8192; a longer one is walked in blocks of as much.
    """
    elements = _WARP * (16 if itemsize <= 4 else 4)  # of a warp
    block_cols, limit = _covering(cols, itemsize), 16 * elements
    looped = block_cols > limit
    block_cols = min(block_cols, limit)
    block_rows = max(1, 4096 // (block_cols * itemsize))
    return Tiling(block_rows, block_cols, max(4, block_rows * block_cols // elements), looped)


def backward_programs(rows: int, tiling: Tiling, multiprocessors: int) -> int:
    """How many programs share the rows of a backward: 16 warps on each multiprocessor, which fit there at once.

    This fixes which rows are summed together in the weight gradient. Nothing that varies from run to run enters.
    """
    return min(-(-rows // tiling.block_rows), multiprocessors * 16 // tiling.num_warps)


def vector_elements(cols: int, itemsize: int) -> int:
    """Elements of one access to rows that lie side by side: 16 bytes, or a smaller power of two that divides a row."""
    return min(cols & -cols, 16 // itemsize)


class RowSpace(NamedTuple):
    """The rows of a call: collapsed leading dimensions, and over them the strides of every tensor (0: no tensor)."""

    rows: int
    cols: int
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def row_space(tensors: Sequence[Tensor | None], normalized_shape: Sequence[int]) -> RowSpace | None:
    """The rows of `tensors`, which have one shape; the first is not None.

    None if a kernel cannot walk them: if the normalized dimensions of one are not contiguous, or if more than
    `MAX_LEADING_DIMS` leading dimensions remain. Rows are independent, so dimensions may change places: in the order of
    the first tensor's strides, transposed heads are where they lie in memory, and collapse.
    """
    first = tensors[0]
    assert first is not None
    leading = first.dim() - len(normalized_shape)
    shape, rows, cols = first.shape[:leading], math.prod(first.shape[:leading]), math.prod(normalized_shape)
    dense = [0 if tensor is None else cols for tensor in tensors]
    if all(tensor is None or tensor.is_contiguous() for tensor in tensors):
        return RowSpace(rows, cols, (rows,), tuple((stride,) for stride in dense))
    if not all(tensor is None or rows_are_contiguous(tensor, normalized_shape) for tensor in tensors):
        return None
    sizes: list[int] = []
    strides: list[list[int]] = []  # of each dimension, the stride of every tensor
    for dim in sorted((dim for dim in range(leading) if shape[dim] != 1), key=first.stride, reverse=True):
        inner = [0 if tensor is None else tensor.stride(dim) for tensor in tensors]
        if sizes and strides[-1] == [shape[dim] * stride for stride in inner]:
            sizes[-1] *= shape[dim]
            strides[-1] = inner
        else:
            sizes.append(shape[dim])
            strides.append(inner)
    if len(sizes) > MAX_LEADING_DIMS:
        return None
    if not sizes:
        sizes, strides = [1], [dense]
    return RowSpace(rows, cols, tuple(sizes), tuple(zip(*strides, strict=True)))
