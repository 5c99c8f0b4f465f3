# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which elements of a matrix are stored, as words: int64 [rows, 2 * ceil(columns / 128)], of which bit k % 64 of word
k // 64 is that of column k. A row begins at a multiple of 16 bytes."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 64
"""Columns of a word."""

_OCTET = (1, 2, 4, 8, 16, 32, 64, 128)


def words_of_row(columns: int) -> int:
    """How many a row has."""
    return -(-columns // (2 * WORD)) * 2


def words_of(mask: Tensor) -> Tensor:
    """Those of [rows, columns], bool, or uint8 of zeros and ones."""
    rows, columns = mask.shape
    width = words_of_row(columns) * WORD
    if columns != width:
        padded = torch.zeros((rows, width), dtype=torch.uint8, device=mask.device)
        padded[:, :columns] = mask
        mask = padded
    octets = (mask.view(rows, -1, 8) * _octet_on(mask)).sum(2, dtype=torch.uint8)
    return octets.view(torch.int64)


def stored(words: Tensor, columns: int) -> Tensor:
    """bool [rows, columns]: the bits."""
    if words.size(0) == 0:
        return torch.zeros((0, columns), dtype=torch.bool, device=words.device)
    octets = words.contiguous().view(torch.uint8)
    return (octets[..., None] & _octet_on(words)).ne(0).view(words.size(0), -1)[:, :columns]


def _octet_on(like: Tensor) -> Tensor:
    return torch.tensor(_OCTET, dtype=torch.uint8, device=like.device)
