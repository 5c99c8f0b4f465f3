# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the Triton kernels of masked products cut their work: tiles, warps, stages, and batches as a kernel walks them.

Nothing that varies from run to run enters: tiles fix which numbers are summed together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import dispatch
from .._triton_table import from_table

WORD = 64
"""Bits of a word, and the depth of a tile of an operand: the columns of a masked one are whole words."""

BATCH_DIMS = 3
"""Batch dimensions that a kernel walks; a call that does not collapse to as few is copied."""


@dataclass(frozen=True)
class Tiling:
    """What one program of the product works on.

    block_rows     of the result, a power of two from 16 on
    block_columns  of the result, 64 or 128: whole words of a mask
    depth          of what is multiplied at a time, a part of a word
    num_warps      warps, a power of two
    num_stages     tiles of the operands that are on their way at a time
    """

    block_rows: int
    block_columns: int
    depth: int
    num_warps: int
    num_stages: int

    def shared_bytes(self, itemsize: int) -> int:
        """Of the tiles that are on their way."""
        return self.num_stages * self.depth * (self.block_rows + self.block_columns) * itemsize


@from_table("masked_matmul.product", tunes=("block_rows", "block_columns", "num_warps", "num_stages"))
def product_tiling(
    batches: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    precision: str,
    multiprocessors: int,
    capability: tuple[int, int],
) -> Tiling:
    """The tile of a product of `batches` results of rows x columns.

    128 x 128 reads 64 bytes for each cycle of multiply-adds in half types, 64 x 64 twice as many, and L2 gives about
    40: so tiles are as large as the result, up to that, unless some multiprocessors would have none. float32 has half
    of the columns: its sums are as long, and its operands twice as large.
    """
    half = dtype.itemsize == 2
    block_rows = min(128, max(16, 1 << (rows - 1).bit_length()))
    block_columns = 128 if columns > 64 and half else 64

    def tiles() -> int:
        return batches * -(-rows // block_rows) * -(-columns // block_columns)

    if block_columns == 128 and tiles() < multiprocessors:
        block_columns = 64
    if block_rows == 128 and tiles() < multiprocessors:
        block_rows = 64
    num_warps = 8 if block_rows * block_columns > 64 * 64 else 4
    is_large = capability >= (9, 0) and not has_little_memory(capability)
    depth = WORD if half else 16 if precision == "ieee" else 32
    return Tiling(block_rows, block_columns, depth, num_warps, 4 if is_large and half else 3)


def capability_of(device: torch.device) -> tuple[int, int]:
    """Of a GPU; in the interpreter that of the oldest that has kernels."""
    return dispatch.capability_of(device) if device.type == "cuda" else dispatch.OLDEST_GPU


def has_little_memory(capability: tuple[int, int]) -> bool:
    """Whether a program has 99 KB of shared memory, as on 8.6, 8.9 and 12; 8.0 and 8.7 have 163, 9 to 11 227."""
    return capability not in ((8, 0), (8, 7)) and not (9, 0) <= capability < (12, 0)


def span(tensor: Tensor | None) -> int:
    """How many elements apart the first and the last element of a matrix are."""
    if tensor is None or tensor.numel() == 0:
        return 0
    return sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape[-2:], tensor.stride()[-2:], strict=True))


class Batches:
    """The batch of a call, collapsed as far as the strides of its tensors allow, as a kernel walks it."""

    def __init__(
        self, batch: Sequence[int], tensors: Sequence[Tensor | None], core: Sequence[int] | None = None
    ) -> None:
        """Find sizes and strides of `tensors`, each of which broadcasts to `batch`.

        Args:
            batch: The sizes.
            tensors: Those that a kernel reads; None where there is none.
            core: How many dimensions each has behind those of the batch; two by default.

        Attributes:
            count: How many there are.
            sizes: Of the two inner dimensions that a kernel walks; the outer one has what remains.
            tensors: As they were given, or, where they do not collapse, copied.
        """
        self.count = math.prod(batch)
        self.tensors = list(tensors)
        own = [2] * len(self.tensors) if core is None else core
        found = collapsed(batch, self.tensors, own)
        if len(found) > BATCH_DIMS:
            self.tensors = [
                None if one is None else one.expand(*batch, *one.shape[one.dim() - dims :]).contiguous()
                for one, dims in zip(tensors, own, strict=True)
            ]
            found = collapsed(batch, self.tensors, own)
        found = [(1, [0] * len(self.tensors))] * (BATCH_DIMS - len(found)) + found
        self.sizes = tuple(size for size, _ in found[1:])
        self._strides = [tuple(strides[i] for _, strides in found) for i in range(len(self.tensors))]

    def strides(self, index: int) -> tuple[int, ...]:
        """Of tensor number `index`, over the three dimensions; zeros where there is none."""
        return self._strides[index]


def collapsed(
    batch: Sequence[int], tensors: Sequence[Tensor | None], core: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """Sizes of the batch dimensions, those together whose strides allow it, and of each the stride of every tensor."""
    found: list[tuple[int, list[int]]] = []
    for dim, size in enumerate(batch):
        if size == 1:
            continue
        strides = []
        for one, own in zip(tensors, core, strict=True):
            place = -1 if one is None else dim - (len(batch) - (one.dim() - own))
            strides.append(0 if one is None or place < 0 or one.size(place) == 1 else one.stride(place))
        if found and found[-1][1] == [size * stride for stride in strides]:
            found[-1] = (found[-1][0] * size, strides)
        else:
            found.append((size, strides))
    return found
