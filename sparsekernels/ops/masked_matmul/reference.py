# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""Masked products in plain torch.

    y = (A @ B) where the mask of the result is, else 0;   A = a where its mask is, else 0;   B = b likewise

A mask is given as bits: int64 [..., rows, ceil(columns / 64)], element j of a row in bit j % 64 of word j // 64, zeros
behind the last one. None: everything is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import wide

WORD = 64


def words_of(columns: int) -> int:
    """How many words hold the bits of a row."""
    return (columns + WORD - 1) // WORD


def pack(mask: Tensor) -> Tensor:
    """The bits of a bool mask [..., rows, columns]."""
    words = words_of(mask.size(-1))
    padded = torch.nn.functional.pad(mask, (0, words * WORD - mask.size(-1)))
    places = torch.arange(WORD, device=mask.device)
    return (padded.unflatten(-1, (words, WORD)).long() << places).sum(-1)


def unpack(bits: Tensor, columns: int) -> Tensor:
    """The bool mask [..., rows, columns] of bits."""
    places = torch.arange(WORD, device=bits.device)
    return ((bits.unsqueeze(-1) >> places) & 1).bool().flatten(-2)[..., :columns]


def pack_blocks(blocks: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """The bits of a mask [..., rows, columns] that is True in whole blocks [height, width], those where `blocks` is."""
    wide_blocks = blocks.repeat_interleave(width, -1)[..., :columns]
    return pack(wide_blocks).repeat_interleave(height, -2)[..., :rows, :]


def transpose_bits(bits: Tensor, columns: int) -> Tensor:
    """The bits of the transposed mask [..., columns, rows]."""
    return pack(unpack(bits, columns).mT)


def kept(matrix: Tensor, bits: Tensor | None) -> Tensor:
    """The elements where the mask is, zeros elsewhere, whatever is there."""
    return matrix if bits is None else torch.where(unpack(bits, matrix.size(-1)), matrix, 0)


def product(a: Tensor, b: Tensor, a_bits: Tensor | None, b_bits: Tensor | None, bits: Tensor | None) -> Tensor:
    """y; half types are multiplied in float32 and rounded once."""
    y = wide(kept(a, a_bits)) @ wide(kept(b, b_bits))
    return kept(y.to(a.dtype), bits)
