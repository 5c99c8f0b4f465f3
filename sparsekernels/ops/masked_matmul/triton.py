# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masked products in Triton. Functions and semantics are those of `reference`; docs/masked_products.md derives them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import device_of, float32_precision, multiprocessors
from . import triton_kernels, triton_tables_kernels
from .reference import words_of
from .triton_config import WORD, Batches, Tiling, capability_of, product_tiling, span
from .triton_tables import kept_beside, tile_flags, tile_lists, tile_order


class _Tables(NamedTuple):
    """Of a product; what its masks do not give is None."""

    flags: Tensor | None
    order: Tensor | None
    lists: Tensor | None
    counts: Tensor | None


def pack(mask: Tensor) -> Tensor:
    """The bits of a bool mask [..., rows, columns]."""
    return pack_blocks(mask, mask.size(-2), mask.size(-1), 1, 1)


def pack_blocks(blocks: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """The bits of a mask [..., rows, columns] that is True in whole blocks [height, width], those where `blocks` is."""
    bits = torch.empty((*blocks.shape[:-2], rows, words_of(columns)), dtype=torch.int64, device=blocks.device)
    if bits.numel() == 0:
        return bits
    batches = Batches(blocks.shape[:-2], (blocks,))
    (walked,) = batches.tensors
    assert walked is not None
    with device_of(blocks):
        triton_tables_kernels.pack[(batches.count * triton.cdiv(rows, 32) * bits.size(-1),)](
            walked.view(torch.uint8),
            bits,
            rows,
            columns,
            height,
            width,
            walked.stride(-2),
            walked.stride(-1),
            batches.sizes,
            batches.strides(0),
            ROWS=32,
            num_warps=4,
        )
    return bits


def transpose_bits(bits: Tensor, columns: int) -> Tensor:
    """The bits of the transposed mask [..., columns, rows]."""
    rows = bits.size(-2)
    turned = torch.empty((*bits.shape[:-2], columns, words_of(rows)), dtype=torch.int64, device=bits.device)
    if turned.numel() == 0:
        return turned
    batches = Batches(bits.shape[:-2], (bits,))
    (walked,) = batches.tensors
    assert walked is not None
    with device_of(bits):
        triton_tables_kernels.transpose[(batches.count * turned.size(-1) * bits.size(-1),)](
            walked,
            turned,
            rows,
            columns,
            walked.stride(-2),
            walked.stride(-1),
            batches.sizes,
            batches.strides(0),
            num_warps=4,
        )
    return turned


def product(a: Tensor, b: Tensor, a_bits: Tensor | None, b_bits: Tensor | None, bits: Tensor | None) -> Tensor:
    """y, summed in float32 and rounded once."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, depth, columns = a.size(-2), a.size(-1), b.size(-1)
    y = a.new_empty((*batch, rows, columns))
    if y.numel() == 0:
        return y
    if depth == 0:
        return y.zero_()
    count = y.numel() // (rows * columns)
    precision = float32_precision(convolution=False)
    device = multiprocessors(a.device), capability_of(a.device)
    tiling = product_tiling(count, rows, columns, a.dtype, precision, *device)
    with device_of(a):
        tables = _tables(a_bits, b_bits, bits, rows, columns, depth, tiling)
        tensors = (a, b, a_bits, b_bits, bits)
        batches = Batches(batch, (*tensors, *tables), core=(2, 2, 2, 2, 2, 2, 1, 2, 2))
        walked = batches.tensors
        of_a, of_b, *of_bits = (None if one is None else (one.stride(-2), one.stride(-1)) for one in walked[:5])
        grid = triton.cdiv(rows, tiling.block_rows) * triton.cdiv(columns, tiling.block_columns)
        triton_kernels.product[(grid * count,)](
            walked[0],
            walked[1],
            y,
            *walked[2:],
            count,
            rows,
            columns,
            depth,
            of_a,
            of_b,
            *of_bits,
            batches.sizes,
            *(batches.strides(i) for i in range(9)),
            INDEX=tl.int32 if max(map(span, walked[:5])) < 2**30 else tl.int64,
            PRECISION=precision,
            ROWS=tiling.block_rows,
            COLUMNS=tiling.block_columns,
            DEPTH=tiling.depth,
            num_warps=tiling.num_warps,
            # a list is read one tile ahead of what it lists
            num_stages=tiling.num_stages + (tables.lists is not None),
            enable_fp_fusion=True,  # said, because Triton 3.10 changes the default, and with it the bits
        )
    return y


def _tables(
    a_bits: Tensor | None,
    b_bits: Tensor | None,
    bits: Tensor | None,
    rows: int,
    columns: int,
    depth: int,
    tiling: Tiling,
) -> _Tables:
    """What says which tiles are computed, kept where one mask alone decides."""
    masks = [one for one in (a_bits, b_bits, bits) if one is not None]
    if not masks:
        return _Tables(None, None, None, None)
    height, width = tiling.block_rows, tiling.block_columns

    def make() -> _Tables:
        flags = order = lists = counts = None
        if bits is not None:
            flags = tile_flags(bits, columns, height, width)
        if a_bits is not None:
            lists, counts = tile_lists(tile_flags(a_bits, depth, height, WORD))
        elif b_bits is not None:
            lists, counts = tile_lists(tile_flags(b_bits, columns, WORD, width), by_columns=True)
        grid = triton.cdiv(rows, height), triton.cdiv(columns, width)
        order = tile_order(flags, counts, grid, triton.cdiv(depth, WORD), by_columns=a_bits is None)
        return _Tables(flags, order, lists, counts)

    if len(masks) > 1:
        return make()
    place = [one is not None for one in (a_bits, b_bits, bits)].index(True)
    return kept_beside(masks[0], ("product", place, rows, columns, depth, height, width), make)
