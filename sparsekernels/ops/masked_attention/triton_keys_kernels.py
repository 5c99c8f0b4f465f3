# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradients of masked attention to keys and values in Triton, dK and dV, by tiles of keys.

As `triton_backward_kernels`, whose delta it takes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_numbers import narrow
from ..masked_matmul.triton_tables_kernels import batch_offset
from .triton_backward_kernels import gradient_of_scores, statistics_of
from .triton_kernels import (
    COUNTS,
    add_infinite,
    add_weighted,
    all_finite,
    dots,
    is_finite,
    kept_by_rows,
    rows_of,
)


@triton.jit
def _add_to_keys(
    to_k,
    to_v,
    spoilt,
    begin,
    end,
    listed,
    of_keys,
    of_values,
    q,
    k,
    v,
    gradient,
    bits,
    statistics,
    deltas,
    key,
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
    TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    Q_COLUMNS: tl.constexpr,
    Q_STEP: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    V_STEP: tl.constexpr,
    NEED_K: tl.constexpr,
    NEED_V: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The sums of dS^T Q and of P^T dY over listed tiles of rows, ROWS of TILE_ROWS at a time."""
    PARTS: tl.constexpr = TILE_ROWS // ROWS
    for i in range(begin * PARTS, end * PARTS):
        row = tl.load(listed + i // PARTS) * TILE_ROWS + i % PARTS * ROWS + tl.arange(0, ROWS)
        most, factor, delta = statistics_of(statistics, deltas, row, rows)
        query = rows_of(q, row, rows, 0, q_columns, q_steps, Q_COLUMNS, INDEX)
        dy = rows_of(gradient, row, rows, 0, v_columns, gradient_steps, V_COLUMNS, INDEX)
        right = query if Q_STEP == Q_COLUMNS else row[:, None]
        scores = dots(of_keys, k, key, keys, k_steps, right, q, row, rows, q_steps, q_columns, Q_STEP, PRECISION, INDEX)
        weights = tl.exp(scores * scale - most[None, :]) * factor[None, :]
        if PARTIAL:
            kept = kept_by_rows(bits, key, row, rows, keys, bits_steps, INDEX)
        else:
            kept = (key < keys)[:, None] & (row < rows)[None, :]
        weights = tl.where(kept, weights, 0.0)
        if NEED_K:
            right = dy if V_STEP == V_COLUMNS else row[:, None]
            of_weights = dots(
                of_values,
                v,
                key,
                keys,
                v_steps,
                right,
                gradient,
                row,
                rows,
                gradient_steps,
                v_columns,
                V_STEP,
                PRECISION,
                INDEX,
            )
            of_scores = tl.where(kept, gradient_of_scores(weights, of_weights, factor[None, :], delta[None, :]), 0.0)
            if PARTIAL:
                finite = is_finite(query)
                spoilt = tl.maximum(spoilt, tl.max(tl.max((~finite).to(tl.int32), 1), 0))
                query = tl.where(finite, query, tl.zeros_like(query))
            to_k = add_weighted(to_k, of_scores, query, PRECISION, True)
        if NEED_V:
            if PARTIAL:
                finite = is_finite(dy)
                spoilt = tl.maximum(spoilt, tl.max(tl.max((~finite).to(tl.int32), 1), 0))
                dy = tl.where(finite, dy, tl.zeros_like(dy))
            to_v = add_weighted(to_v, weights, dy, PRECISION, True)
    return to_k, to_v, spoilt


@triton.jit(do_not_specialize=COUNTS)
def to_keys(
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
    dk,
    dv,
    scale,
    batches,
    members,
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
    member_sizes,
    q_member,
    gradient_member,
    bits_member,
    statistics_member,
    deltas_member,
    lists_member,
    counts_member,
    TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    Q_COLUMNS: tl.constexpr,
    Q_STEP: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    V_STEP: tl.constexpr,
    NEED_K: tl.constexpr,
    NEED_V: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """dK and dV of KEYS keys, contiguous, summed over all members of a batch that share them, one after another."""
    PARTS: tl.constexpr = 64 // KEYS
    batch = tl.program_id(0) % batches
    place = tl.program_id(0) // batches
    if order is None:
        tile = place // PARTS
    else:
        tile = tl.load(order + batch_offset(batch, sizes, order_batch) + place // PARTS)
    key = tile * 64 + place % PARTS * KEYS + tl.arange(0, KEYS)
    k += batch_offset(batch, sizes, k_batch)
    v += batch_offset(batch, sizes, v_batch)
    of_keys = rows_of(k, key, keys, 0, q_columns, k_steps, Q_COLUMNS, INDEX) if Q_STEP == Q_COLUMNS else key[:, None]
    of_values = (
        rows_of(v, key, keys, 0, v_columns, v_steps, V_COLUMNS, INDEX)
        if NEED_K and V_STEP == V_COLUMNS
        else key[:, None]
    )
    sums_of_keys = tl.zeros((KEYS, Q_COLUMNS), tl.float32) if NEED_K else 0
    sums_of_values = tl.zeros((KEYS, V_COLUMNS), tl.float32) if NEED_V else 0
    length = (rows + TILE_ROWS - 1) // TILE_ROWS
    spoilt = tl.full((), 0, tl.int32)
    is_again = tl.full((), 0, tl.int32)  # whole tiles as the others, from the first member on
    number = tl.full((), 0, tl.int32)
    while number < members:
        member = number + tl.program_id(0) * 0
        own_q = q + batch_offset(batch, sizes, q_batch) + batch_offset(member, member_sizes, q_member)
        own_gradient = gradient + batch_offset(batch, sizes, gradient_batch)
        own_gradient += batch_offset(member, member_sizes, gradient_member)
        own_bits = bits + batch_offset(batch, sizes, bits_batch) + batch_offset(member, member_sizes, bits_member)
        own_statistics = statistics + batch_offset(batch, sizes, statistics_batch)
        own_statistics += batch_offset(member, member_sizes, statistics_member)
        own_deltas = deltas + batch_offset(batch, sizes, deltas_batch)
        own_deltas += batch_offset(member, member_sizes, deltas_member)
        listed = lists + batch_offset(batch, sizes, lists_batch) + batch_offset(member, member_sizes, lists_member)
        listed += tile.to(tl.int64) * length
        own_counts = counts + batch_offset(batch, sizes, counts_batch)
        own_counts += batch_offset(member, member_sizes, counts_member) + 2 * tile
        whole, some = tl.load(own_counts), tl.load(own_counts + 1)
        whole = tl.where(is_again != 0, 0, whole)
        for partial in tl.static_range(2):
            sums_of_keys, sums_of_values, spoilt = _add_to_keys(
                sums_of_keys,
                sums_of_values,
                spoilt,
                whole if partial else 0,
                some if partial else whole,
                listed,
                of_keys,
                of_values,
                own_q,
                k,
                v,
                own_gradient,
                own_bits,
                own_statistics,
                own_deltas,
                key,
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
                TILE_ROWS,
                ROWS,
                Q_COLUMNS,
                Q_STEP,
                V_COLUMNS,
                V_STEP,
                NEED_K,
                NEED_V,
                PRECISION,
                INDEX,
            )
        good = is_again != 0
        if NEED_K and NEED_V:
            good |= all_finite(sums_of_keys) & all_finite(sums_of_values)
        elif NEED_K:
            good |= all_finite(sums_of_keys)
        else:
            good |= all_finite(sums_of_values)
        if NEED_K:
            sums_of_keys = tl.where(good, sums_of_keys, 0.0)
        if NEED_V:
            sums_of_values = tl.where(good, sums_of_values, 0.0)
        is_again = tl.where(good, is_again, 1)
        number = tl.where(good, number + 1, 0)

    place = batch.to(tl.int64) * keys + key
    if NEED_K:
        column = tl.arange(0, Q_COLUMNS)[None, :]
        there = (key < keys)[:, None] & (column < q_columns)
        result = narrow(sums_of_keys * scale, dk.dtype.element_ty)
        tl.store(dk + place[:, None] * q_columns + column, result, mask=there)
    if NEED_V:
        column = tl.arange(0, V_COLUMNS)[None, :]
        there = (key < keys)[:, None] & (column < v_columns)
        result = narrow(sums_of_values, dv.dtype.element_ty)
        tl.store(dv + place[:, None] * v_columns + column, result, mask=there)
    if spoilt != 0:
        for number in range(0, members):
            member = number + tl.program_id(0) * 0
            own_bits = bits + batch_offset(batch, sizes, bits_batch) + batch_offset(member, member_sizes, bits_member)
            listed = lists + batch_offset(batch, sizes, lists_batch) + batch_offset(member, member_sizes, lists_member)
            listed += tile.to(tl.int64) * length
            own_counts = counts + batch_offset(batch, sizes, counts_batch)
            own_counts += batch_offset(member, member_sizes, counts_member) + 2 * tile
            whole, some = tl.load(own_counts), tl.load(own_counts + 1)
            whole = tl.where(is_again != 0, 0, whole)
            if NEED_K:
                own_q = q + batch_offset(batch, sizes, q_batch) + batch_offset(member, member_sizes, q_member)
                add_infinite(
                    dk,
                    place,
                    q_columns,
                    whole,
                    some,
                    listed,
                    own_q,
                    q_steps,
                    rows,
                    own_bits,
                    bits_steps,
                    key,
                    rows,
                    keys,
                    scale,
                    True,
                    ROWS,
                    TILE_ROWS // ROWS,
                    INDEX,
                )
            if NEED_V:
                own_gradient = gradient + batch_offset(batch, sizes, gradient_batch)
                own_gradient += batch_offset(member, member_sizes, gradient_member)
                add_infinite(
                    dv,
                    place,
                    v_columns,
                    whole,
                    some,
                    listed,
                    own_gradient,
                    gradient_steps,
                    rows,
                    own_bits,
                    bits_steps,
                    key,
                    rows,
                    keys,
                    1.0,
                    True,
                    ROWS,
                    TILE_ROWS // ROWS,
                    INDEX,
                )
