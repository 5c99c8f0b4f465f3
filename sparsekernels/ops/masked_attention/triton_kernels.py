# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masked attention in Triton: what all its kernels share, and the forward pass.

`triton.py` launches them, `triton_config.py` gives their tiles. One program has ROWS queries, and takes the tiles of
keys of which their mask keeps any: those that it keeps whole first, which need no bits; KEYS of the 64 in a tile at a
time. Where these give an infinity or NaN, they are computed once more as the others are, which set apart values that
are not finite: times a weight of zero, or what rounding took from it, they would be NaN. Columns are padded to
Q_COLUMNS and V_COLUMNS, powers of two. Scores are sums over Q_STEP columns at a time: all of them on tensor cores, for
which Q_STEP is Q_COLUMNS; else few, which registers hold.

Steps are pairs: from row to row, and from column, or word, to column; offsets within a matrix are INDEX arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_numbers import multiply_add, narrow, widen
from ..masked_matmul.triton_kernels import word_at
from ..masked_matmul.triton_tables_kernels import batch_offset, bit

COUNTS = ("batches", "rows", "keys")
"""What varies from call to call, and decides no width of accesses: columns and strides do."""


@triton.jit
def rows_of(x, row, rows, first, columns, steps, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """COLUMNS columns of some rows, from column `first` on; zeros where there are none."""
    column = first + tl.arange(0, COLUMNS)
    at = row.to(INDEX)[:, None] * steps[0] + column.to(INDEX)[None, :] * steps[1]
    return tl.load(x + at, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def dots(
    left,
    x,
    x_row,
    x_rows,
    x_steps,
    right,
    y,
    y_row,
    y_rows,
    y_steps,
    columns,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The products of rows of x with rows of y. `left` and `right` have these rows, unless they take several steps."""
    sums = tl.zeros((left.shape[0], right.shape[0]), tl.float32)
    if left.shape[1] == STEP:
        sums = multiply_add(left, tl.trans(right), sums, PRECISION)
    else:
        for first in range(0, columns, STEP):
            some = rows_of(x, x_row, x_rows, first, columns, x_steps, STEP, INDEX)
            others = rows_of(y, y_row, y_rows, first, columns, y_steps, STEP, INDEX)
            sums = multiply_add(some, tl.trans(others), sums, PRECISION)
    return sums


@triton.jit
def add_weighted(sums, weights, values, PRECISION: tl.constexpr, SCALED: tl.constexpr):
    """sums + weights @ values, with weights in float32 that half types would round: they are two of those.

    SCALED: weights may be as large or as small as float16 is not. Those of each row are brought to 1 by a power of two.
    """
    DTYPE: tl.constexpr = values.dtype
    if values.dtype == tl.float32:
        sums = multiply_add(weights, values, sums, PRECISION)
    elif values.dtype == tl.float16 and SCALED:
        largest = tl.max(tl.abs(weights), 1)
        is_number = (largest > 0) & (largest < float("inf"))
        exponent = tl.floor(tl.log2(tl.where(is_number, largest, 1.0)))
        exponent = tl.minimum(tl.maximum(exponent, -120.0), 120.0)[:, None]
        weights = weights * tl.exp2(-exponent)
        own = tl.zeros((sums.shape[0], sums.shape[1]), tl.float32)
        high = narrow(weights, DTYPE)
        own = multiply_add(high, values, own, PRECISION)
        own = multiply_add(_rest_of(weights, high), values, own, PRECISION)
        sums += own * tl.exp2(exponent)
    else:
        high = narrow(weights, DTYPE)
        sums = multiply_add(high, values, sums, PRECISION)
        sums = multiply_add(_rest_of(weights, high), values, sums, PRECISION)
    return sums


@triton.jit
def _rest_of(weights, high):
    """What rounding took from weights; nothing from infinity."""
    wide = widen(high, tl.float32)
    return narrow(tl.where(wide - wide == 0, weights - wide, 0.0), high.dtype)


@triton.jit
def is_finite(values):
    wide = widen(values, tl.float32)
    return wide - wide == 0


@triton.jit
def all_finite(sums):
    return tl.min(tl.min(is_finite(sums).to(tl.int32), 1), 0) != 0


@triton.jit
def add_infinite(
    to,
    to_row,
    to_columns,
    begin,
    end,
    listed,
    values,
    steps,
    value_rows,
    bits,
    bits_steps,
    place,
    rows,
    keys,
    scale,
    BY_KEYS: tl.constexpr,
    STEP: tl.constexpr,
    PARTS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Add the infinities and NaN among values, times scale, to those rows of `to` that keep them.

    For what a program has stored itself, in the rare case that there are any: the sums that it came from would need
    twice the registers. Values are those of listed tiles of keys, STEP of PARTS parts of each; by keys it is rows of
    queries that are listed, and keys, at `place`, that keep them.
    """
    tl.debug_barrier()  # a thread may add to what another one stored
    for first in range(0, to_columns, 16):
        more = tl.zeros((place.shape[0], 16), tl.float32)
        less = tl.zeros((place.shape[0], 16), tl.float32)
        none = tl.zeros((place.shape[0], 16), tl.float32)
        for i in tl.range(begin * PARTS, end * PARTS, num_stages=1):
            tile = tl.load(listed + i // PARTS)
            value_row = (tile * PARTS + i % PARTS) * STEP + tl.arange(0, STEP)
            if BY_KEYS:
                kept = kept_by_rows(bits, place, value_row, rows, keys, bits_steps, INDEX)
            else:
                kept = kept_by_keys(bits, place, rows, value_row, keys, bits_steps, INDEX)
            some = widen(rows_of(values, value_row, value_rows, first, to_columns, steps, 16, INDEX), tl.float32)
            keeping = kept.to(tl.float16)
            more = multiply_add(keeping, (some == float("inf")).to(tl.float16), more, "ieee")
            less = multiply_add(keeping, (some == float("-inf")).to(tl.float16), less, "ieee")
            none = multiply_add(keeping, (some != some).to(tl.float16), none, "ieee")
        added = tl.where(more > 0, float("inf"), 0.0) + tl.where(less > 0, float("-inf"), 0.0)
        added = tl.where(none > 0, float("nan"), added) * scale
        column = first + tl.arange(0, 16)
        at = to + to_row[:, None] * to_columns + column[None, :]
        there = (place < (keys if BY_KEYS else rows))[:, None] & (column < to_columns)[None, :]
        there &= (more + less + none) > 0
        was = widen(tl.load(at, mask=there, other=0.0), tl.float32)
        tl.store(at, narrow(was + added, to.dtype.element_ty), mask=there)


@triton.jit
def kept_by_keys(bits, row, rows, key, keys, bits_steps, INDEX: tl.constexpr):
    """What the mask keeps of keys in one tile: [rows, keys]."""
    words = word_at(bits, row, rows, tl.min(key, 0) // 64, bits_steps, INDEX)
    return bit(words[:, None], (key % 64)[None, :])


@triton.jit
def kept_by_rows(bits, key, row, rows, keys, bits_steps, INDEX: tl.constexpr):
    """The same, turned: [keys, rows]."""
    words = word_at(bits, row, rows, tl.min(key, 0) // 64, bits_steps, INDEX)
    return bit(words[None, :], (key % 64)[:, None])


@triton.jit
def _add_keys(
    sums,
    total,
    most,
    seen,
    spoilt,
    begin,
    end,
    listed,
    query,
    q,
    k,
    v,
    bits,
    row,
    rows,
    keys,
    q_columns,
    v_columns,
    q_steps,
    k_steps,
    v_steps,
    bits_steps,
    scale,
    PARTIAL: tl.constexpr,
    KEYS: tl.constexpr,
    Q_COLUMNS: tl.constexpr,
    Q_STEP: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Listed tiles of keys: what sums of values, sums of exponentials and largest scores come to with them."""
    PARTS: tl.constexpr = 64 // KEYS
    for i in range(begin * PARTS, end * PARTS):
        tile = tl.load(listed + i // PARTS)
        key = tile * 64 + i % PARTS * KEYS + tl.arange(0, KEYS)
        right = rows_of(k, key, keys, 0, q_columns, k_steps, Q_COLUMNS, INDEX) if Q_STEP == Q_COLUMNS else key[:, None]
        scores = dots(query, q, row, rows, q_steps, right, k, key, keys, k_steps, q_columns, Q_STEP, PRECISION, INDEX)
        values = rows_of(v, key, keys, 0, v_columns, v_steps, V_COLUMNS, INDEX)
        if PARTIAL:
            kept = kept_by_keys(bits, row, rows, key, keys, bits_steps, INDEX)
            seen = tl.maximum(seen, tl.max(kept.to(tl.int32), 1))
            finite = is_finite(values)
            spoilt = tl.maximum(spoilt, tl.max(tl.max((~finite).to(tl.int32), 1), 0))
            values = tl.where(finite, values, tl.zeros_like(values))
        else:
            kept = (key < keys)[None, :] & (row >= 0)[:, None]
            seen = tl.zeros_like(seen) + 1
        scores = tl.where(kept, scores * scale, float("-inf"))
        most_now = tl.maximum(most, tl.max(scores, 1))
        taken = tl.where(most_now == float("-inf"), 0.0, most_now)
        factor = tl.exp(most - taken)
        weights = tl.exp(scores - taken[:, None])
        total = total * factor + tl.sum(weights, 1)
        sums = add_weighted(sums * factor[:, None], weights, values, PRECISION, False)
        most = most_now
    return sums, total, most, seen, spoilt


@triton.jit(do_not_specialize=COUNTS)
def forward(
    q,
    k,
    v,
    bits,
    order,
    lists,
    counts,
    y,
    statistics,
    rest,
    scale,
    batches,
    rows,
    keys,
    q_columns,
    v_columns,
    q_steps,
    k_steps,
    v_steps,
    bits_steps,
    sizes,
    q_batch,
    k_batch,
    v_batch,
    bits_batch,
    order_batch,
    lists_batch,
    counts_batch,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    Q_COLUMNS: tl.constexpr,
    Q_STEP: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Results, statistics and, unless None, what rounding took, all contiguous, of ROWS queries."""
    batch = tl.program_id(0) % batches
    tile = tl.load(order + batch_offset(batch, sizes, order_batch) + tl.program_id(0) // batches)
    length = (keys + 63) // 64
    listed = lists + batch_offset(batch, sizes, lists_batch) + tile.to(tl.int64) * length
    counts += batch_offset(batch, sizes, counts_batch) + 2 * tile
    whole, some = tl.load(counts), tl.load(counts + 1)
    q += batch_offset(batch, sizes, q_batch)
    k += batch_offset(batch, sizes, k_batch)
    v += batch_offset(batch, sizes, v_batch)
    bits += batch_offset(batch, sizes, bits_batch)

    row = tile * ROWS + tl.arange(0, ROWS)
    query = rows_of(q, row, rows, 0, q_columns, q_steps, Q_COLUMNS, INDEX) if Q_STEP == Q_COLUMNS else row[:, None]
    sums = tl.zeros((ROWS, V_COLUMNS), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    seen = tl.zeros((ROWS,), tl.int32)
    spoilt = tl.full((), 0, tl.int32)
    begin = tl.full((), 0, tl.int32)
    for partial in tl.static_range(2):
        sums, total, most, seen, spoilt = _add_keys(
            sums,
            total,
            most,
            seen,
            spoilt,
            begin,
            some if partial else whole,
            listed,
            query,
            q,
            k,
            v,
            bits,
            row,
            rows,
            keys,
            q_columns,
            v_columns,
            q_steps,
            k_steps,
            v_steps,
            bits_steps,
            scale,
            partial,
            KEYS,
            Q_COLUMNS,
            Q_STEP,
            V_COLUMNS,
            PRECISION,
            INDEX,
        )
        if not partial:
            good = all_finite(sums)
            sums = tl.where(good, sums, 0.0)
            total = tl.where(good, total, 0.0)
            most = tl.where(good, most, float("-inf"))
            begin = tl.where(good, whole, 0)

    divisor = tl.where(seen != 0, total, 1.0)
    exact = sums / divisor[:, None]
    result = narrow(exact, y.dtype.element_ty)
    place = batch.to(tl.int64) * rows + row
    column = tl.arange(0, V_COLUMNS)
    at = place[:, None] * v_columns + column[None, :]
    there = (row < rows)[:, None] & (column < v_columns)[None, :]
    tl.store(y + at, result, mask=there)
    if rest is not None:
        tl.store(rest + at, narrow(exact - widen(result, tl.float32), y.dtype.element_ty), mask=there)
    tl.store(statistics + 2 * place, most, mask=row < rows)
    tl.store(statistics + 2 * place + 1, total, mask=row < rows)
    if spoilt != 0:
        add_infinite(
            y,
            place,
            v_columns,
            begin,
            some,
            listed,
            v,
            v_steps,
            keys,
            bits,
            bits_steps,
            row,
            rows,
            keys,
            1.0,
            False,
            64,
            1,
            INDEX,
        )
