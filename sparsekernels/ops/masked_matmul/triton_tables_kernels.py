# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels on masks alone: bits, and tables of the tiles that a mask keeps.

A mask is int64 words of 64 bits, as `reference` has them. Tiles are a number of rows by whole words. A batch is walked
over three dimensions, of which `sizes` has the two inner ones.
"""

from __future__ import annotations

import triton
import triton.language as tl

EMPTY: tl.constexpr = tl.constexpr(0)
PARTIAL: tl.constexpr = tl.constexpr(1)
FULL: tl.constexpr = tl.constexpr(2)
"""What a mask keeps of a tile, within the matrix."""

CLASSES: tl.constexpr = tl.constexpr(16)
"""Into which tiles of a result are sorted by what they cost."""

GROUP: tl.constexpr = tl.constexpr(8)
"""Rows of tiles that are computed together, so that what they read of the second operand is in L2."""


@triton.jit
def batch_offset(index, sizes, strides):
    """Where an element of the batch begins, counted in elements."""
    inner = index % sizes[1]
    rest = index // sizes[1]
    offset = inner.to(tl.int64) * strides[2] + (rest % sizes[0]).to(tl.int64) * strides[1]
    return offset + (rest // sizes[0]).to(tl.int64) * strides[0]


@triton.jit
def swizzled(place, tile_rows, tile_columns):
    """The tile, row * tile_columns + column, at a place: column by column, in groups of rows of tiles."""
    of_group = GROUP * tile_columns
    first = place // of_group * GROUP
    rows = tl.minimum(tile_rows - first, GROUP)
    within = place % of_group
    return (first + within % rows) * tile_columns + within // rows


@triton.jit
def bit(words, place):
    """Whether bit number `place`, below 64, of words is set, in arithmetic on 32 bits: half of the registers."""
    half = tl.where(place < 32, words.to(tl.int32), (words >> 32).to(tl.int32))
    return ((half >> (place % 32)) & 1) != 0


@triton.jit
def kept_of(words):
    """The bits of words [R, W] as bool [R, W * 64]."""
    kept = bit(words[:, :, None], tl.arange(0, 64)[None, None, :])
    return tl.reshape(kept, (words.shape[0], words.shape[1] * 64))


@triton.jit(do_not_specialize=["rows"])
def pack(
    mask,
    bits,
    rows,
    columns,
    height,
    width,
    mask_row,
    mask_column,
    sizes,
    mask_strides,
    ROWS: tl.constexpr,
):
    """Words of ROWS rows: bit (r, c) is where mask[r // height, c // width] is. Bits: contiguous, [batch, rows, W]."""
    words = (columns + 63) // 64
    word = tl.program_id(0) % words
    tile_rows = (rows + ROWS - 1) // ROWS
    batch = tl.program_id(0) // words // tile_rows
    row = tl.program_id(0) // words % tile_rows * ROWS + tl.arange(0, ROWS)
    column = word * 64 + tl.arange(0, 64)
    there = (row < rows)[:, None] & (column < columns)[None, :]
    at = (row // height).to(tl.int64)[:, None] * mask_row + (column // width).to(tl.int64)[None, :] * mask_column
    kept = tl.load(mask + batch_offset(batch, sizes, mask_strides) + at, mask=there, other=0) != 0
    value = tl.sum(kept.to(tl.int64) << tl.arange(0, 64).to(tl.int64)[None, :], 1)
    tl.store(bits + (batch.to(tl.int64) * rows + row) * words + word, value, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "columns"])
def transpose(
    bits,
    turned,
    rows,
    columns,
    bits_row,
    bits_word,
    sizes,
    bits_strides,
):
    """64 rows and one word of bits become 64 rows and one word of the transposed mask, [batch, columns, words]."""
    words = (columns + 63) // 64
    row_words = (rows + 63) // 64
    batch = tl.program_id(0) // words // row_words
    row_word = tl.program_id(0) // words % row_words
    word = tl.program_id(0) % words
    place = tl.arange(0, 64)
    row = row_word * 64 + place
    at = bits + batch_offset(batch, sizes, bits_strides) + row.to(tl.int64) * bits_row + word.to(tl.int64) * bits_word
    found = tl.load(at, mask=row < rows, other=0)
    kept = (found[:, None] >> place.to(tl.int64)[None, :]) & 1
    value = tl.sum(kept << place.to(tl.int64)[:, None], 0)
    column = word * 64 + place
    tl.store(turned + (batch.to(tl.int64) * columns + column) * row_words + row_word, value, mask=column < columns)


@triton.jit(do_not_specialize=["rows", "columns"])
def tile_flags(
    bits,
    flags,
    rows,
    columns,
    bits_row,
    bits_word,
    sizes,
    bits_strides,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    TILES: tl.constexpr,
):
    """What the mask keeps of tiles of ROWS rows and WORDS words. Flags: contiguous, [batch, tile rows, tile columns].

    A program has TILES tiles that lie side by side.
    """
    tile_rows = (rows + ROWS - 1) // ROWS
    tile_columns = (columns + 64 * WORDS - 1) // (64 * WORDS)
    parts = (tile_columns + TILES - 1) // TILES
    batch = tl.program_id(0) // parts // tile_rows
    tile_row = tl.program_id(0) // parts % tile_rows
    first = tl.program_id(0) % parts * TILES
    row = tile_row * ROWS + tl.arange(0, ROWS)
    word = first * WORDS + tl.arange(0, TILES * WORDS)
    there = (row < rows)[:, None] & (word * 64 < columns)[None, :]
    at = bits + batch_offset(batch, sizes, bits_strides)
    at += row.to(tl.int64)[:, None] * bits_row + word.to(tl.int64)[None, :] * bits_word
    found = tl.load(at, mask=there, other=0)
    ones = tl.minimum(tl.maximum(columns - word * 64, 0), 63).to(tl.int64)
    whole = tl.where(columns - word * 64 >= 64, -1, (tl.full((TILES * WORDS,), 1, tl.int64) << ones) - 1)
    some = tl.max((there & (found != 0)).to(tl.int32), 0)
    every = tl.min((~there | (found == whole[None, :])).to(tl.int32), 0)
    some = tl.max(tl.reshape(some, (TILES, WORDS)), 1)
    every = tl.min(tl.reshape(every, (TILES, WORDS)), 1)
    tile = first + tl.arange(0, TILES)
    flag = some * (1 + every)
    tl.store(
        flags + (batch.to(tl.int64) * tile_rows + tile_row) * tile_columns + tile,
        flag.to(tl.uint8),
        mask=tile < tile_columns,
    )


@triton.jit
def _listed(listed, flags, tile_stride, length, wanted, count, TILES: tl.constexpr):
    """Write the tiles of a line whose flag is `wanted`, in order, from place `count` on; returns where they end."""
    for first in range(0, length, TILES):
        tile = first + tl.arange(0, TILES)
        flag = tl.load(flags + tile.to(tl.int64) * tile_stride, mask=tile < length, other=0).to(tl.int32)
        chosen = (flag == wanted).to(tl.int32)
        tl.store(listed + count + tl.cumsum(chosen, 0) - 1, tile, mask=chosen != 0)
        count += tl.sum(chosen, 0)
    return count


@triton.jit(do_not_specialize=["lines", "length", "line_stride"])
def tile_lists(flags, lists, counts, lines, length, line_stride, tile_stride, TILES: tl.constexpr):
    """The tiles of a line that the mask keeps, those that it keeps whole first, each in order.

    lists: [batch, lines, length]. counts: [batch, lines, 2], of the whole ones and of all.
    """
    line = tl.program_id(0)
    of_line = flags + (line // lines).to(tl.int64) * lines * length + (line % lines).to(tl.int64) * line_stride
    listed = lists + line.to(tl.int64) * length
    whole = _listed(listed, of_line, tile_stride, length, FULL, tl.full((), 0, tl.int32), TILES)
    tl.store(counts + 2 * line, whole)
    tl.store(counts + 2 * line + 1, _listed(listed, of_line, tile_stride, length, PARTIAL, whole, TILES))


@triton.jit
def _classes(place, flags, counts, tiles, tile_rows, tile_columns, depth, count_row, count_column):
    """Tiles at places, and the class that each is in: 0 for no product at all, the others by the number of products."""
    tile = swizzled(place, tile_rows, tile_columns)
    there = place < tiles
    cost = tl.zeros_like(place) + depth
    if counts is not None:
        line = tile // tile_columns * count_row + tile % tile_columns * count_column
        cost = tl.load(counts + 2 * line + 1, mask=there, other=0)
    if flags is not None:
        cost = tl.where(tl.load(flags + tile, mask=there, other=0) == EMPTY, 0, cost)
    of_tile = tl.where(cost == 0, 0, 1 + (cost.to(tl.int64) * (CLASSES - 2) // depth).to(tl.int32))
    return tile, there, tl.where(there, of_tile, -1)


@triton.jit(do_not_specialize=["tile_rows", "tile_columns", "depth", "count_row", "count_column"])
def tile_order(
    flags,
    counts,
    order,
    tile_rows,
    tile_columns,
    depth,
    count_row,
    count_column,
    sizes,
    flag_strides,
    count_strides,
    TILES: tl.constexpr,
):
    """All tiles of a result, in classes of what they cost, the most costly first; within a class in groups of rows.

    flags: of the mask of the result. counts: of lists along the depth, at row * count_row + column * count_column.
    order: [batch, tile rows * tile columns].
    """
    batch = tl.program_id(0)
    tiles = tile_rows * tile_columns
    if flags is not None:
        flags += batch_offset(batch, sizes, flag_strides)
    if counts is not None:
        counts += batch_offset(batch, sizes, count_strides)
    order += batch.to(tl.int64) * tiles
    classes = tl.arange(0, CLASSES)
    found = tl.zeros((CLASSES,), tl.int32)
    for first in range(0, tiles, TILES):
        place = first + tl.arange(0, TILES)
        _, _, of_tile = _classes(place, flags, counts, tiles, tile_rows, tile_columns, depth, count_row, count_column)
        found += tl.sum((of_tile[:, None] == classes[None, :]).to(tl.int32), 0)
    start = tl.sum(tl.where(classes[:, None] < classes[None, :], found[None, :], 0), 1)
    for first in range(0, tiles, TILES):
        place = first + tl.arange(0, TILES)
        tile, there, of_tile = _classes(
            place, flags, counts, tiles, tile_rows, tile_columns, depth, count_row, count_column
        )
        is_in = (of_tile[:, None] == classes[None, :]).to(tl.int32)
        to = tl.sum(is_in * (start[None, :] + tl.cumsum(is_in, 0) - 1), 1)
        tl.store(order + to, tile, mask=there)
        start += tl.sum(is_in, 0)
