# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of masked attention in Triton: delta, then dQ by rows of queries. dK and dV: `triton_keys_kernels`.

Each computes weights and scores anew, from the statistics of the forward pass, for the tiles that the mask keeps. Names
are those of `triton_kernels`. Statistics are contiguous in their last dimension.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_numbers import narrow, widen
from ..masked_matmul.triton_tables_kernels import batch_offset
from .triton_kernels import (
    COUNTS,
    add_infinite,
    add_weighted,
    all_finite,
    dots,
    is_finite,
    kept_by_keys,
    rows_of,
)


@triton.jit(do_not_specialize=COUNTS)
def row_deltas(
    gradient,
    y,
    rest,
    deltas,
    rows,
    columns,
    gradient_steps,
    y_steps,
    rest_steps,
    sizes,
    gradient_batch,
    y_batch,
    rest_batch,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The sums over columns of dY * (Y + rest), in float32, of ROWS rows; contiguous."""
    tiles = (rows + ROWS - 1) // ROWS
    batch = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    gradient += batch_offset(batch, sizes, gradient_batch)
    of_row = widen(
        rows_of(y + batch_offset(batch, sizes, y_batch), row, rows, 0, columns, y_steps, COLUMNS, INDEX), tl.float32
    )
    if rest is not None:
        rest += batch_offset(batch, sizes, rest_batch)
        of_row += widen(rows_of(rest, row, rows, 0, columns, rest_steps, COLUMNS, INDEX), tl.float32)
    dy = widen(rows_of(gradient, row, rows, 0, columns, gradient_steps, COLUMNS, INDEX), tl.float32)
    tl.store(deltas + batch.to(tl.int64) * rows + row, tl.sum(dy * of_row, 1), mask=row < rows)


@triton.jit
def statistics_of(statistics, deltas, row, rows):
    """Of some rows: what is taken from their scores, what their exponentials are multiplied by, and deltas.

    NaN is multiplied by where all exponentials are zero: where no key is kept, which is masked, or where all of those
    that are kept are infinitely far away.
    """
    there = row < rows
    most = tl.load(statistics + 2 * row.to(tl.int64), mask=there, other=0.0)
    total = tl.load(statistics + 2 * row.to(tl.int64) + 1, mask=there, other=1.0)
    factor = tl.where(total == 0, float("nan"), 1 / tl.where(total == 0, 1.0, total))
    return tl.where(most == float("-inf"), 0.0, most), factor, tl.load(deltas + row, mask=there, other=0.0)


@triton.jit
def gradient_of_scores(weights, of_weights, factor, delta):
    """dS = P * (dP - delta).

    Where one key has all the weight of a row, the difference is zero but for rounding: 0 and not that is the gradient.
    """
    return tl.where((factor == 1.0) & (weights > 0.5), 0.0, weights) * (of_weights - delta)


@triton.jit
def _add_to_queries(
    sums,
    spoilt,
    begin,
    end,
    listed,
    query,
    dy,
    q,
    k,
    v,
    gradient,
    bits,
    most,
    factor,
    delta,
    row,
    rows,
    keys,
    q_columns,
    v_columns,
    q_steps,
    k_steps,
    v_steps,
    gradient_steps,
    bits_steps,
    scale,
    PARTIAL: tl.constexpr,
    KEYS: tl.constexpr,
    Q_COLUMNS: tl.constexpr,
    Q_STEP: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    V_STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """sums + dS K over listed tiles of keys."""
    PARTS: tl.constexpr = 64 // KEYS
    for i in range(begin * PARTS, end * PARTS):
        tile = tl.load(listed + i // PARTS)
        key = tile * 64 + i % PARTS * KEYS + tl.arange(0, KEYS)
        of_keys = rows_of(k, key, keys, 0, q_columns, k_steps, Q_COLUMNS, INDEX)
        right = of_keys if Q_STEP == Q_COLUMNS else key[:, None]
        scores = dots(query, q, row, rows, q_steps, right, k, key, keys, k_steps, q_columns, Q_STEP, PRECISION, INDEX)
        right = rows_of(v, key, keys, 0, v_columns, v_steps, V_COLUMNS, INDEX) if V_STEP == V_COLUMNS else key[:, None]
        of_weights = dots(
            dy, gradient, row, rows, gradient_steps, right, v, key, keys, v_steps, v_columns, V_STEP, PRECISION, INDEX
        )
        weights = tl.exp(scores * scale - most[:, None]) * factor[:, None]
        of_scores = gradient_of_scores(weights, of_weights, factor[:, None], delta[:, None])
        if PARTIAL:
            kept = kept_by_keys(bits, row, rows, key, keys, bits_steps, INDEX)
            finite = is_finite(of_keys)
            spoilt = tl.maximum(spoilt, tl.max(tl.max((~finite).to(tl.int32), 1), 0))
            of_keys = tl.where(finite, of_keys, tl.zeros_like(of_keys))
        else:
            kept = (key < keys)[None, :] & (row < rows)[:, None]
        of_scores = tl.where(kept, of_scores, 0.0)
        sums = add_weighted(sums, of_scores, of_keys, PRECISION, True)
    return sums, spoilt


@triton.jit(do_not_specialize=COUNTS)
def to_queries(
    q,
    k,
    v,
    gradient,
    bits,
    statistics,
    deltas,
    order,
    lists,
    counts,
    dq,
    scale,
    batches,
    rows,
    keys,
    q_columns,
    v_columns,
    q_steps,
    k_steps,
    v_steps,
    gradient_steps,
    bits_steps,
    sizes,
    q_batch,
    k_batch,
    v_batch,
    gradient_batch,
    bits_batch,
    statistics_batch,
    deltas_batch,
    order_batch,
    lists_batch,
    counts_batch,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    Q_COLUMNS: tl.constexpr,
    Q_STEP: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    V_STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """dQ of ROWS queries, contiguous."""
    batch = tl.program_id(0) % batches
    tile = tl.load(order + batch_offset(batch, sizes, order_batch) + tl.program_id(0) // batches)
    listed = lists + batch_offset(batch, sizes, lists_batch) + tile.to(tl.int64) * ((keys + 63) // 64)
    counts += batch_offset(batch, sizes, counts_batch) + 2 * tile
    whole, some = tl.load(counts), tl.load(counts + 1)
    q += batch_offset(batch, sizes, q_batch)
    k += batch_offset(batch, sizes, k_batch)
    v += batch_offset(batch, sizes, v_batch)
    gradient += batch_offset(batch, sizes, gradient_batch)
    bits += batch_offset(batch, sizes, bits_batch)
    statistics += batch_offset(batch, sizes, statistics_batch)
    deltas += batch_offset(batch, sizes, deltas_batch)

    row = tile * ROWS + tl.arange(0, ROWS)
    most, factor, delta = statistics_of(statistics, deltas, row, rows)
    query = rows_of(q, row, rows, 0, q_columns, q_steps, Q_COLUMNS, INDEX) if Q_STEP == Q_COLUMNS else row[:, None]
    dy = (
        rows_of(gradient, row, rows, 0, v_columns, gradient_steps, V_COLUMNS, INDEX)
        if V_STEP == V_COLUMNS
        else row[:, None]
    )
    sums = tl.zeros((ROWS, Q_COLUMNS), tl.float32)
    spoilt = tl.full((), 0, tl.int32)
    begin = tl.full((), 0, tl.int32)
    for partial in tl.static_range(2):
        sums, spoilt = _add_to_queries(
            sums,
            spoilt,
            begin,
            some if partial else whole,
            listed,
            query,
            dy,
            q,
            k,
            v,
            gradient,
            bits,
            most,
            factor,
            delta,
            row,
            rows,
            keys,
            q_columns,
            v_columns,
            q_steps,
            k_steps,
            v_steps,
            gradient_steps,
            bits_steps,
            scale,
            partial,
            KEYS,
            Q_COLUMNS,
            Q_STEP,
            V_COLUMNS,
            V_STEP,
            PRECISION,
            INDEX,
        )
        if not partial:
            good = all_finite(sums)
            sums = tl.where(good, sums, 0.0)
            begin = tl.where(good, whole, 0)
    column = tl.arange(0, Q_COLUMNS)
    at = (batch.to(tl.int64) * rows + row)[:, None] * q_columns + column[None, :]
    there = (row < rows)[:, None] & (column < q_columns)[None, :]
    tl.store(dq + at, narrow(sums * scale, dq.dtype.element_ty), mask=there)
    if spoilt != 0:
        add_infinite(
            dq,
            batch.to(tl.int64) * rows + row,
            q_columns,
            begin,
            some,
            listed,
            k,
            k_steps,
            keys,
            bits,
            bits_steps,
            row,
            rows,
            keys,
            scale,
            False,
            64,
            1,
            INDEX,
        )
