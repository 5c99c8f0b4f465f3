# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the Triton kernels of masked attention cut their work: tiles, warps and stages.

Nothing that varies from run to run enters: tiles fix which numbers are summed together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._triton_table import from_table
from ..masked_matmul.triton_config import has_little_memory

MOST_COLUMNS = 256
"""Of queries and of values; calls on more are the reference's."""

Capability = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """What one program works on at a time.

    rows        queries, a power of two from 16 on
    keys        of the 64 in a tile of the mask
    q_columns   of queries and keys, padded: a power of two from 16 on
    q_step      how many of them are multiplied at a time
    v_columns   of values, padded
    v_step      how many of them are multiplied at a time, where they are
    num_warps   warps, a power of two
    num_stages  tiles that are on their way at a time
    """

    rows: int
    keys: int
    q_columns: int
    q_step: int
    v_columns: int
    v_step: int
    num_warps: int
    num_stages: int


def padded(columns: int) -> int:
    """The power of two that a kernel computes with."""
    return max(16, 1 << (columns - 1).bit_length())


def _is_scalar(dtype: torch.dtype, precision: str) -> bool:
    """Whether products are sums of single multiply-adds: for these 16 columns and keys at a time fit the registers."""
    return dtype == torch.float32 and precision == "ieee"


def _is_large(capability: Capability) -> bool:
    """Whether a program may have the tiles that were chosen for 9.0."""
    return capability >= (9, 0) and not has_little_memory(capability)


def _is_tight(dtype: torch.dtype, capability: Capability) -> bool:
    """Whether two tiles of float32 on their way, of 128 columns, are more than the shared memory."""
    return dtype == torch.float32 and has_little_memory(capability)


@from_table("masked_attention.forward", tunes=("rows", "keys", "num_warps", "num_stages"))
def forward_tiling(
    rows: int, q_columns: int, v_columns: int, dtype: torch.dtype, precision: str, capability: Capability
) -> Tiling:
    """The tile of a forward pass: as many queries as registers hold the sums of, without spilling any."""
    q, v = padded(q_columns), padded(v_columns)
    if _is_scalar(dtype, precision):
        return Tiling(min(64 if max(q, v) <= 128 else 32, padded(rows)), 16, q, 16, v, 16, 4, 1)
    if max(q, v) > 128:
        return Tiling(min(64, padded(rows)), 32, q, min(64, q), v, min(64, v), 8, 2)
    if not _is_large(capability) or dtype == torch.float32:
        block_rows = min(64, padded(rows))
        return Tiling(block_rows, 32, q, q, v, v, 8 if max(q, v) > 64 and block_rows == 64 else 4, 2)
    block_rows = min(128, padded(rows))
    keys = 64 if max(q, v) <= 64 else 32
    return Tiling(block_rows, keys, q, q, v, v, 8 if block_rows == 128 else 4, 2)


@from_table("masked_attention.queries", tunes=("rows", "keys", "num_warps", "num_stages"))
def queries_tiling(
    rows: int, q_columns: int, v_columns: int, dtype: torch.dtype, precision: str, capability: Capability
) -> Tiling:
    """The tile of gradients to queries, which beside what a forward pass has hold dY as well."""
    q, v = padded(q_columns), padded(v_columns)
    if _is_scalar(dtype, precision):
        return Tiling(min(32, padded(rows)), 16, q, 16, v, 16, 4, 1)
    block_rows, most = min(64, padded(rows)), max(q, v)
    stages = 1 if most > 64 and _is_tight(dtype, capability) else 2
    if most > 128:
        return Tiling(block_rows, 16, q, min(64, q), v, min(64, v), 4, stages)
    keys = 64 if most <= 64 and _is_large(capability) and dtype != torch.float32 else 32
    return Tiling(block_rows, keys, q, q, v, v, 8 if not _is_large(capability) and block_rows == 64 else 4, stages)


@dataclass(frozen=True)
class KeysTiling(Tiling):
    """What one program of gradients to keys and values works on: `keys` keys, by `rows` of `tile_rows` at a time.

    together  whether it computes both gradients; else one launch has dK and another one dV
    """

    tile_rows: int
    together: bool


@from_table("masked_attention.keys", tunes=("rows", "num_warps", "num_stages"))
def keys_tiling(
    rows: int, q_columns: int, v_columns: int, dtype: torch.dtype, precision: str, capability: Capability
) -> KeysTiling:
    """The tile of gradients to keys and values. Rows are listed by up to 64, whatever is computed at a time.

    Apart, the two gradients are seven products in the place of six, in half of the registers.
    """
    q, v = padded(q_columns), padded(v_columns)
    most, tile_rows = max(q, v), min(64, padded(rows))
    if _is_scalar(dtype, precision):
        return KeysTiling(16, 16, q, 16, v, 16, 4, 1, tile_rows, most <= 128)
    if most <= 128:
        together = most <= 64 and _is_large(capability)
        stages = 1 if most > 64 and _is_tight(dtype, capability) else 2
        at_a_time = 32 if _is_large(capability) else 16
        return KeysTiling(min(at_a_time, tile_rows), 64, q, q, v, v, 4, stages, tile_rows, together)
    if has_little_memory(capability):  # a program holds neither all columns of its keys nor two tiles of float32
        keys, stages = (16, 1) if dtype == torch.float32 else (32, 2)
        return KeysTiling(16, keys, q, min(64, q), v, min(64, v), 4, stages, tile_rows, False)
    # float32 has one tile on its way: two are more than the shared memory of 8.0
    return KeysTiling(16, 64, q, q, v, v, 4, 1 if dtype == torch.float32 else 2, tile_rows, False)
