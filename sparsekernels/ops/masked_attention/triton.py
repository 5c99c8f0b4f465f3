# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masked attention in Triton. Functions and semantics are those of `reference`; docs/masked_products.md derives them.

Without keys, without columns and with more than 256 columns the reference runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import device_of, float32_precision
from ..masked_matmul.triton_config import BATCH_DIMS, WORD, Batches, capability_of, collapsed, span
from ..masked_matmul.triton_tables import kept_beside, tile_flags, tile_lists, tile_order
from ..precision import wide_dtype
from . import reference, triton_backward_kernels, triton_kernels, triton_keys_kernels
from .triton_config import MOST_COLUMNS, forward_tiling, keys_tiling, padded, queries_tiling


class _Tables(NamedTuple):
    """The tiles that a mask keeps: of rows of queries or, for gradients to keys, of tiles of keys."""

    order: Tensor
    lists: Tensor
    counts: Tensor


def _tables(bits: Tensor, keys: int, block_rows: int, by_keys: bool = False) -> _Tables:
    def make() -> _Tables:
        flags = tile_flags(bits, keys, block_rows, WORD)
        lists, counts = tile_lists(flags, by_columns=by_keys)
        return _Tables(tile_order(None, counts, (lists.size(-2), 1), lists.size(-1)), lists, counts)

    return kept_beside(bits, ("attention", keys, block_rows, by_keys), make)


def _is_small(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there are kernels for these columns, and anything to compute."""
    return 0 < q.size(-1) <= MOST_COLUMNS and 0 < v.size(-1) <= MOST_COLUMNS and k.size(-2) > 0


def _steps(tensor: Tensor | None) -> tuple[int, int] | None:
    return None if tensor is None else (tensor.stride(-2), tensor.stride(-1))


def forward(q: Tensor, k: Tensor, v: Tensor, bits: Tensor, scale: float, training: bool) -> tuple[Tensor, ...]:
    """Y; of each row its largest score and the sum of exponentials; for training, what rounding took from Y."""
    if not _is_small(q, k, v):
        return reference.forward(q, k, v, bits, scale, training)
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    rows, keys = q.size(-2), k.size(-2)
    y = q.new_empty((*batch, rows, v.size(-1)))
    statistics = q.new_empty((*batch, rows, 2), dtype=torch.float32)
    rest = torch.empty_like(y) if training and wide_dtype(q) != q.dtype else None
    if y.numel() > 0:
        precision = float32_precision(convolution=False)
        tiling = forward_tiling(rows, q.size(-1), v.size(-1), q.dtype, precision, capability_of(q.device))
        with device_of(q):
            tables = _tables(bits, keys, tiling.rows)
            batches = Batches(batch, (q, k, v, bits, *tables), core=(2, 2, 2, 2, 1, 2, 2))
            walked = batches.tensors
            triton_kernels.forward[(batches.count * triton.cdiv(rows, tiling.rows),)](
                *walked,
                y,
                statistics,
                rest,
                scale,
                batches.count,
                rows,
                keys,
                q.size(-1),
                v.size(-1),
                *map(_steps, walked[:4]),
                batches.sizes,
                *(batches.strides(i) for i in range(7)),
                ROWS=tiling.rows,
                KEYS=tiling.keys,
                Q_COLUMNS=tiling.q_columns,
                Q_STEP=tiling.q_step,
                V_COLUMNS=tiling.v_columns,
                PRECISION=precision,
                INDEX=_index(walked[:4]),
                num_warps=tiling.num_warps,
                num_stages=tiling.num_stages,
                enable_fp_fusion=True,  # said, because Triton 3.10 changes the default, and with it the bits
            )
    return y, statistics, q.new_empty(0) if rest is None else rest


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bits: Tensor,
    y: Tensor,
    statistics: Tensor,
    rest: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV. Keys and values may have fewer batch dimensions than the queries: their gradients are summed.

    Where the queries have fewer than the result, or keys and values have not the same, the reference runs;
    gradients.py makes no such call.
    """
    batch = y.shape[:-2]
    if q.shape[:-2] != batch or k.shape[:-2] != v.shape[:-2] or gradient.dtype != q.dtype or not _is_small(q, k, v):
        return reference.backward(gradient, q, k, v, bits, y, statistics, rest, scale)
    dq, dk, dv = (one.new_empty(one.shape) for one in (q, k, v))
    if y.numel() == 0:
        return dq, dk.zero_(), dv.zero_()
    if dk.numel() == 0:
        return dq.zero_(), dk, dv
    statistics = statistics.contiguous()
    with device_of(q):
        deltas = _deltas(gradient, y, rest if rest.numel() > 0 else None)
        _to_queries(gradient, q, k, v, bits, statistics, deltas, dq, scale)
        _to_keys(gradient, q, k, v, bits, statistics, deltas, dk, dv, scale)
    return dq, dk, dv


def _deltas(gradient: Tensor, y: Tensor, rest: Tensor | None) -> Tensor:
    """The sums over columns of dY * (Y + rest), [..., M, 1]."""
    rows, columns = y.shape[-2:]
    deltas = y.new_empty((*y.shape[:-1], 1), dtype=torch.float32)
    batches = Batches(y.shape[:-2], (gradient, y, rest))
    block_rows = min(64, max(1, 8192 // padded(columns)), padded(rows))
    triton_backward_kernels.row_deltas[(batches.count * triton.cdiv(rows, block_rows),)](
        *batches.tensors,
        deltas,
        rows,
        columns,
        *map(_steps, batches.tensors),
        batches.sizes,
        *(batches.strides(i) for i in range(3)),
        ROWS=block_rows,
        COLUMNS=padded(columns),
        INDEX=_index(batches.tensors),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return deltas


def _index(tensors: Sequence[Tensor | None]) -> tl.dtype:
    """The type of offsets within their matrices."""
    return tl.int32 if max(map(span, tensors)) < 2**30 else tl.int64


def _to_queries(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bits: Tensor,
    statistics: Tensor,
    deltas: Tensor,
    dq: Tensor,
    scale: float,
) -> None:
    """Fill dq."""
    rows, keys = q.size(-2), k.size(-2)
    precision = float32_precision(convolution=False)
    tiling = queries_tiling(rows, q.size(-1), v.size(-1), q.dtype, precision, capability_of(q.device))
    tables = _tables(bits, keys, tiling.rows)
    tensors = (q, k, v, gradient, bits, statistics, deltas, *tables)
    batches = Batches(q.shape[:-2], tensors, core=(2, 2, 2, 2, 2, 2, 2, 1, 2, 2))
    walked = batches.tensors
    triton_backward_kernels.to_queries[(batches.count * triton.cdiv(rows, tiling.rows),)](
        *walked,
        dq,
        scale,
        batches.count,
        rows,
        keys,
        q.size(-1),
        v.size(-1),
        *map(_steps, walked[:5]),
        batches.sizes,
        *(batches.strides(i) for i in range(10)),
        ROWS=tiling.rows,
        KEYS=tiling.keys,
        Q_COLUMNS=tiling.q_columns,
        Q_STEP=tiling.q_step,
        V_COLUMNS=tiling.v_columns,
        V_STEP=tiling.v_step,
        PRECISION=precision,
        INDEX=_index(walked[:5]),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        enable_fp_fusion=True,
    )


def _to_keys(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bits: Tensor,
    statistics: Tensor,
    deltas: Tensor,
    dk: Tensor,
    dv: Tensor,
    scale: float,
) -> None:
    """Fill dk and dv. The batch is that of the keys, and for each of it the members that share them."""
    rows, keys = q.size(-2), k.size(-2)
    precision = float32_precision(convolution=False)
    tiling = keys_tiling(rows, q.size(-1), v.size(-1), q.dtype, precision, capability_of(q.device))
    tables = _tables(bits, keys, tiling.tile_rows, by_keys=True)
    # all in the batch of the result; keys, values and the order, if it is one for all members, do not vary with these
    batch = q.shape[:-2]
    core = (2, 2, 2, 2, 2, 2, 2, 1, 2, 2)
    given = (q, k, v, gradient, bits, statistics, deltas, *tables)
    own = [size != 1 for size in (*[1] * (len(batch) - (k.dim() - 2)), *k.shape[:-2])]
    outer, inner = [i for i, one in enumerate(own) if one], [i for i, one in enumerate(own) if not one]
    all_of = [
        one.expand(*batch, *one.shape[one.dim() - dims :]).permute(
            *outer, *inner, *range(len(batch), len(batch) + dims)
        )
        for one, dims in zip(given, core, strict=True)
    ]
    of_batch, of_members = [batch[i] for i in outer], [batch[i] for i in inner]
    with_members = [len(inner) + dims for dims in core]

    def members_of(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if one is None else one[(0,) * len(outer)] for one in tensors]

    if (
        len(collapsed(of_batch, all_of, with_members)) > BATCH_DIMS
        or len(collapsed(of_members, members_of(all_of), core)) > BATCH_DIMS
    ):
        all_of = [one.contiguous() for one in all_of]
    batches = Batches(of_batch, all_of, with_members)
    members = Batches(of_members, members_of(all_of), core)
    is_one_order = not any(members.strides(7))
    walked: list[Tensor | None] = [*all_of]
    walked[7] = walked[7] if is_one_order else None
    for need_k, need_v in ((True, True),) if tiling.together else ((True, False), (False, True)):
        triton_keys_kernels.to_keys[(batches.count * triton.cdiv(keys, WORD) * (WORD // tiling.keys),)](
            *walked,
            dk,
            dv,
            scale,
            batches.count,
            members.count,
            rows,
            keys,
            q.size(-1),
            v.size(-1),
            *map(_steps, walked[:5]),
            batches.sizes,
            *(batches.strides(i) for i in range(10)),
            members.sizes,
            *(members.strides(i) for i in (0, 3, 4, 5, 6, 8, 9)),
            TILE_ROWS=tiling.tile_rows,
            ROWS=tiling.rows,
            KEYS=tiling.keys,
            Q_COLUMNS=tiling.q_columns,
            Q_STEP=tiling.q_step,
            V_COLUMNS=tiling.v_columns,
            V_STEP=tiling.v_step,
            NEED_K=need_k,
            NEED_V=need_v,
            PRECISION=precision,
            INDEX=_index(walked[:5]),
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            enable_fp_fusion=True,
        )
