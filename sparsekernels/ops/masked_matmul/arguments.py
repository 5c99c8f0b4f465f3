# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What masked_matmul accepts, and the words in which it refuses the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import check_tensor
from .reference import words_of

MOST = 2**31
"""Elements of an operand or a result."""


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def broadcast_batch(where: str, a: Tensor, b: Tensor) -> torch.Size:
    """The batch of a result; raise ValueError where the two do not fit."""
    if a.dim() == b.dim() == 2:
        return torch.Size()  # the rule takes as long as a small product
    try:
        return torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{where}: expected b with a batch that broadcasts with that of a, {list(a.shape[:-2])}, got"
            f" {list(b.shape[:-2])}"
        ) from None


def check_operands(where: str, a: object, b: object) -> torch.Size:
    """The shape of a @ b; raise TypeError or ValueError for what does not fit."""
    a, b = check_tensor(where, "a", a), check_tensor(where, "b", b)
    for name, one in (("a", a), ("b", b)):
        if one.dim() < 2:
            raise ValueError(f"{where}: expected {name} of at least 2 dimensions, got {list(one.shape)}")
    if a.dtype != b.dtype:
        raise TypeError(f"{where}: expected b of dtype {a.dtype} like a, got {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"{where}: expected b on {a.device} like a, got {b.device}")
    if a.size(-1) != b.size(-2):
        raise ValueError(f"{where}: expected b with {a.size(-1)} rows, as a has columns, got {list(b.shape)}")
    shape = torch.Size((*broadcast_batch(where, a, b), a.size(-2), b.size(-1)))
    for name, sizes in (("a", a.shape), ("b", b.shape), ("a result", shape)):
        if _elements(sizes) > MOST:
            raise ValueError(f"{where}: expected {name} of at most 2^31 elements, got {list(sizes)}")
    return shape


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of `shape` expands to one of the shape `to`."""
    pairs = zip(reversed(shape), reversed(to), strict=False)
    # torch.compile takes `one in (1, wanted)` for False where `wanted` is a size that it does not know
    return len(shape) <= len(to) and all(one == 1 or one == wanted for one, wanted in pairs)


def check_pack(mask: Tensor) -> None:
    """Raise unless it is a mask that can be packed."""
    _check_bools("mask", mask)


def check_pack_blocks(blocks: Tensor, rows: int, columns: int, height: int, width: int) -> None:
    """Raise unless the blocks cover the matrix, and no more."""
    where = "masked_product"
    _check_bools("blocks", blocks)
    if height < 1 or width < 1:
        raise ValueError(f"{where}: expected blocks of at least 1 row and column, got {height} and {width}")
    if rows < 0 or columns < 0:
        raise ValueError(f"{where}: expected rows and columns of at least 0, got {rows} and {columns}")
    wanted = -(-rows // height), -(-columns // width)
    if blocks.size(-2) != wanted[0] or blocks.size(-1) != wanted[1]:
        expected = (
            f"blocks of shape [..., {wanted[0]}, {wanted[1]}] for {[rows, columns]} in blocks of {height}x{width}"
        )
        raise ValueError(f"{where}: expected {expected}, got {list(blocks.shape)}")


def check_transpose_bits(bits: Tensor, columns: int) -> None:
    """Raise unless the bits are those of so many columns."""
    where = "masked_product"
    if columns < 0:
        raise ValueError(f"{where}: expected columns of at least 0, got {columns}")
    if bits.dtype != torch.int64 or bits.dim() < 2 or bits.size(-1) != words_of(columns):
        expected = f"bits of torch.int64 [..., rows, {words_of(columns)}] for {columns} columns"
        raise ValueError(f"{where}: expected {expected}, got {bits.dtype} {list(bits.shape)}")


def _check_bools(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.dim() < 2:
        expected = f"{name} of torch.bool [..., rows, columns]"
        raise ValueError(f"masked_product: expected {expected}, got {mask.dtype} {list(mask.shape)}")


def check_product(a: Tensor, b: Tensor, a_bits: Tensor | None, b_bits: Tensor | None, bits: Tensor | None) -> None:
    """Raise for arguments of the operator that do not fit."""
    where = "masked_product"
    shape = check_operands(where, a, b)
    masks = (("a_bits", a_bits, a.shape), ("b_bits", b_bits, b.shape), ("bits", bits, shape))
    for name, one, of in masks:
        if one is None:
            continue
        wanted = (*of[:-1], words_of(of[-1]))
        if one.dtype != torch.int64 or one.shape[-2:] != wanted[-2:] or not broadcasts(one.shape, wanted):
            expected = f"{name} of torch.int64 in a shape that broadcasts to {list(wanted)}"
            raise ValueError(f"{where}: expected {expected}, got {one.dtype} {list(one.shape)}")
        if one.device != a.device:
            raise ValueError(f"{where}: expected {name} on {a.device} like a, got {one.device}")
