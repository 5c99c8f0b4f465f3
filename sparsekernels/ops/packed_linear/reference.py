# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Packed weights in plain torch.

words         int64 [out, 2 * ceil(in / 128)]: bit k % 64 of words[o, k // 64] is set where element (o, k) is stored
crow_indices  int32 [out + 1]: row o has the values from crow_indices[o] up to crow_indices[o + 1]
values        [nnz + SLACK], columns of a row ascending; what is behind the last row's is read by kernels, and not used
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORD = 64
"""Columns of a word."""

SLACK = 64
"""Values behind those of the last row."""

_OCTET = (1, 2, 4, 8, 16, 32, 64, 128)


def words_of_row(columns: int) -> int:
    """How many a row has: it begins at a multiple of 16 bytes."""
    return -(-columns // (2 * WORD)) * 2


def stored(words: Tensor, columns: int) -> Tensor:
    """bool [rows, columns]: the bits."""
    if words.size(0) == 0:
        return torch.zeros((0, columns), dtype=torch.bool, device=words.device)
    octets = words.contiguous().view(torch.uint8)
    bits = torch.tensor(_OCTET, dtype=torch.uint8, device=words.device)
    return (octets[..., None] & bits).ne(0).view(words.size(0), -1)[:, :columns]


def words_of(mask: Tensor) -> Tensor:
    """Those of bool [rows, columns]."""
    rows, columns = mask.shape
    padded = torch.zeros((rows, words_of_row(columns) * WORD), dtype=torch.uint8, device=mask.device)
    padded[:, :columns] = mask
    bits = torch.tensor(_OCTET, dtype=torch.uint8, device=mask.device)
    return (padded.view(rows, -1, 8) * bits).sum(2, dtype=torch.uint8).view(torch.int64)


def rows(words: Tensor, crow_indices: Tensor, values: Tensor, columns: int, begin: int, end: int) -> Tensor:
    """Rows [begin, end) of the weight with its zeros."""
    mask = stored(words[begin:end], columns)
    first, last = int(crow_indices[begin]), int(crow_indices[end])
    return values.new_zeros(mask.shape).masked_scatter_(mask, values[first:last])


def forward(input: Tensor, words: Tensor, crow_indices: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """As torch.nn.functional.linear, by the weight."""
    return F.linear(input, rows(words, crow_indices, values, input.size(-1), 0, words.size(0)), bias)
