# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel of masked products; `triton.py` launches it, `triton_tables.py` makes its tables.

One program computes one tile of the result. Along the depth it takes the tiles that the mask of an operand keeps, first
those that it keeps whole, which need no bits. Matrices are read where they lie, whatever their strides: within one in
INDEX arithmetic, from one to the next in 64 bits. Steps are pairs: from row to row, and from column (word) to column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_numbers import multiply_add, narrow
from .triton_tables_kernels import EMPTY, PARTIAL, batch_offset, bit, kept_of, swizzled


@triton.jit
def word_at(bits, row, rows, word, steps, INDEX: tl.constexpr):
    """One word of some rows."""
    at = row.to(INDEX) * steps[0] + (tl.zeros_like(row) + word).to(INDEX) * steps[1]
    return tl.load(bits + at, mask=row < rows, other=0)


@triton.jit
def words_at(bits, row, rows, first, columns, steps, WORDS: tl.constexpr, INDEX: tl.constexpr):
    """WORDS words of some rows, from word `first` on."""
    word = first + tl.arange(0, WORDS)
    at = row.to(INDEX)[:, None] * steps[0] + word.to(INDEX)[None, :] * steps[1]
    return tl.load(bits + at, mask=(row < rows)[:, None] & (word * 64 < columns)[None, :], other=0)


@triton.jit
def _add_products(
    sums,
    begin,
    end,
    listed,
    a,
    a_bits,
    b,
    b_bits,
    tile_row,
    tile_column,
    rows,
    columns,
    depth,
    a_steps,
    b_steps,
    a_bits_steps,
    b_bits_steps,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """sums + the products of tiles of the depth, DEPTH of each at a time; None for bits takes all of what it finds."""
    ROWS: tl.constexpr = sums.shape[0]
    COLUMNS: tl.constexpr = sums.shape[1]
    row = tile_row * ROWS + tl.arange(0, ROWS)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    PARTS: tl.constexpr = 64 // DEPTH
    for i in range(begin * PARTS, end * PARTS):
        tile = i // PARTS
        if listed is not None:
            tile = tl.load(listed + tile)
        first = i % PARTS * DEPTH
        k = tile * 64 + first + tl.arange(0, DEPTH)
        a_at = row.to(INDEX)[:, None] * a_steps[0] + k.to(INDEX)[None, :] * a_steps[1]
        b_at = k.to(INDEX)[:, None] * b_steps[0] + column.to(INDEX)[None, :] * b_steps[1]
        left = tl.load(a + a_at, mask=(row < rows)[:, None] & (k < depth)[None, :], other=0.0)
        right = tl.load(b + b_at, mask=(k < depth)[:, None] & (column < columns)[None, :], other=0.0)
        if a_bits is not None:
            words = word_at(a_bits, row, rows, tile, a_bits_steps, INDEX)
            kept = bit(words[:, None], first + tl.arange(0, DEPTH)[None, :])
            left = tl.where(kept, left, tl.zeros_like(left))
        if b_bits is not None:
            words = words_at(
                b_bits, k, depth, tile_column * (COLUMNS // 64), columns, b_bits_steps, COLUMNS // 64, INDEX
            )
            right = tl.where(kept_of(words), right, tl.zeros_like(right))
        sums = multiply_add(left, right, sums, PRECISION)
    return sums


@triton.jit(do_not_specialize=["batches"])
def product(
    a,
    b,
    y,
    a_bits,
    b_bits,
    bits,
    flags,
    order,
    lists,
    counts,
    batches,
    rows,
    columns,
    depth,
    a_steps,
    b_steps,
    a_bits_steps,
    b_bits_steps,
    bits_steps,
    sizes,
    a_batch,
    b_batch,
    a_bits_batch,
    b_bits_batch,
    bits_batch,
    flags_batch,
    order_batch,
    lists_batch,
    counts_batch,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of the result, which is contiguous. Places in the order of tiles are numbered first, then the batch.

    bits, flags: of the mask of the result, or None. lists, counts: the tiles of the depth that the mask of an operand
    keeps, for each row of tiles where a has a mask, else for each column.
    """
    tile_columns = (columns + COLUMNS - 1) // COLUMNS
    place = tl.program_id(0) // batches
    batch = tl.program_id(0) % batches
    if order is not None:
        tile = tl.load(order + batch_offset(batch, sizes, order_batch) + place)
    else:
        tile = swizzled(place, (rows + ROWS - 1) // ROWS, tile_columns)
    tile_row = tile // tile_columns
    tile_column = tile % tile_columns
    whole, some = 0, (depth + 63) // 64
    listed = None
    if lists is not None:
        line = tile_column if a_bits is None else tile_row
        listed = lists + batch_offset(batch, sizes, lists_batch) + line.to(tl.int64) * some
        counts += batch_offset(batch, sizes, counts_batch) + 2 * line
        whole = tl.load(counts)
        some = tl.load(counts + 1)
    flag = PARTIAL
    if flags is not None:
        flag = tl.load(flags + batch_offset(batch, sizes, flags_batch) + tile).to(tl.int32)
        some = tl.where(flag == EMPTY, 0, some)
        whole = tl.where(flag == EMPTY, 0, whole)

    a += batch_offset(batch, sizes, a_batch)
    b += batch_offset(batch, sizes, b_batch)
    if a_bits is not None:
        a_bits += batch_offset(batch, sizes, a_bits_batch)
    if b_bits is not None:
        b_bits += batch_offset(batch, sizes, b_bits_batch)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    if lists is not None:  # what is whole in the mask of the lists needs the bits of the other operand alone
        sums = _add_products(
            sums,
            0,
            whole,
            listed,
            a,
            None,
            b,
            None if a_bits is None else b_bits,
            tile_row,
            tile_column,
            rows,
            columns,
            depth,
            a_steps,
            b_steps,
            a_bits_steps,
            b_bits_steps,
            INDEX,
            PRECISION,
            DEPTH,
        )
    sums = _add_products(
        sums,
        whole,
        some,
        listed,
        a,
        a_bits,
        b,
        b_bits,
        tile_row,
        tile_column,
        rows,
        columns,
        depth,
        a_steps,
        b_steps,
        a_bits_steps,
        b_bits_steps,
        INDEX,
        PRECISION,
        DEPTH,
    )

    result = narrow(sums, y.dtype.element_ty)
    row = tile_row * ROWS + tl.arange(0, ROWS)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    if bits is not None:  # noqa: SIM102 (the compiler's)
        if flag == PARTIAL:
            words = words_at(
                bits + batch_offset(batch, sizes, bits_batch),
                row,
                rows,
                tile_column * (COLUMNS // 64),
                columns,
                bits_steps,
                COLUMNS // 64,
                INDEX,
            )
            result = tl.where(kept_of(words), result, tl.zeros_like(result))
    at = (batch.to(tl.int64) * rows + row)[:, None] * columns + column[None, :]
    tl.store(y + at, result, mask=(row < rows)[:, None] & (column < columns)[None, :])
