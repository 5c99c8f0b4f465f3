# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the tiles that a mask keeps, made by kernels on the device and kept beside the bits.

No table has a size that depends on what the mask keeps, so that nothing waits for the device. They are kept for bits
that come back, those of a prepared mask, as long as these live and are not written to; for each stream apart, since
two streams do not wait for each other. What a CUDA graph captures makes tables of its own, which are part of the graph:
a replay follows the bits that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
import triton
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import triton_tables_kernels as kernels
from .triton_config import WORD, Batches

_Table = TypeVar("_Table")
_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def kept_beside(bits: Tensor, key: Hashable, make: Callable[[], _Table]) -> _Table:
    """What `make` gives for these bits, or gave in an earlier call on this stream; `key` says what it is."""
    stream = 0
    if bits.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return make()
        stream = torch.cuda.current_stream(bits.device).cuda_stream
    if bits.is_inference():  # it has no version
        return make()
    tables = _kept.get(bits)
    if tables is None or tables[0] != bits._version:
        tables = _kept[bits] = (bits._version, {})
    found: dict[Hashable, _Table] = tables[1]
    if (stream, key) not in found:
        found[stream, key] = make()
    return found[stream, key]


def tile_flags(bits: Tensor, columns: int, tile_rows: int, tile_columns: int) -> Tensor:
    """uint8 [..., tiles, tiles]: 0 where a tile has no bit, 2 where it has all, 1 elsewhere."""
    rows, words = bits.size(-2), tile_columns // WORD
    batches = Batches(bits.shape[:-2], (bits,))
    (walked,) = batches.tensors
    assert walked is not None
    grid = triton.cdiv(rows, tile_rows), triton.cdiv(columns, tile_columns)
    flags = torch.empty((*bits.shape[:-2], *grid), dtype=torch.uint8, device=bits.device)
    tiles = 16 // words
    kernels.tile_flags[(batches.count * grid[0] * triton.cdiv(grid[1], tiles),)](
        walked,
        flags,
        rows,
        columns,
        walked.stride(-2),
        walked.stride(-1),
        batches.sizes,
        batches.strides(0),
        ROWS=tile_rows,
        WORDS=words,
        TILES=tiles,
        num_warps=4,
    )
    return flags


def tile_lists(flags: Tensor, by_columns: bool = False) -> tuple[Tensor, Tensor]:
    """For each row of tiles, or each column, those that the mask keeps, the whole ones first; and how many.

    Returns:
        int32 [..., lines, length], of which as many are filled as the counts say; int32 [..., lines, 2], the whole ones
        and all.
    """
    rows, columns = flags.shape[-2:]
    lines, length = (columns, rows) if by_columns else (rows, columns)
    lists = torch.empty((*flags.shape[:-2], lines, length), dtype=torch.int32, device=flags.device)
    counts = torch.empty((*flags.shape[:-2], lines, 2), dtype=torch.int32, device=flags.device)
    kernels.tile_lists[(counts.numel() // 2,)](
        flags,
        lists,
        counts,
        lines,
        length,
        1 if by_columns else columns,
        columns if by_columns else 1,
        TILES=128,
        num_warps=1,
    )
    return lists, counts


def tile_order(
    flags: Tensor | None, counts: Tensor | None, grid: tuple[int, int], depth: int, by_columns: bool = False
) -> Tensor:
    """int32 [..., tiles]: the tiles of a result, row * columns + column, the most costly first.

    Args:
        flags: Of the mask of the result; those that it leaves out cost nothing.
        counts: Of the lists along the depth, of rows of tiles or, with `by_columns`, of columns.
        grid: Rows and columns of tiles.
        depth: The number of tiles along it.
    """
    given = [one for one in (flags, counts) if one is not None]
    batch = torch.broadcast_shapes(*(one.shape[:-2] for one in given))
    batches = Batches(batch, (flags, counts))
    order = torch.empty((*batch, grid[0] * grid[1]), dtype=torch.int32, device=given[0].device)
    kernels.tile_order[(batches.count,)](
        *batches.tensors,
        order,
        *grid,
        depth,
        0 if by_columns else 1,
        1 if by_columns else 0,
        batches.sizes,
        batches.strides(0),
        batches.strides(1),
        TILES=256,
        num_warps=4,
    )
    return order
