# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Packed weights in plain torch.

words         int64 [out, 2 * ceil(in / 128)]: which elements are stored, as _bits.py has it
crow_indices  int32 [out + 1]: row o has the values from crow_indices[o] up to crow_indices[o + 1]
values        [nnz + SLACK], columns of a row ascending; what is behind the last row's is read by kernels, and not used
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .._bits import stored

SLACK = 64
"""Values behind those of the last row."""


def rows(words: Tensor, crow_indices: Tensor, values: Tensor, columns: int, begin: int, end: int) -> Tensor:
    """Rows [begin, end) of the weight with its zeros."""
    mask = stored(words[begin:end], columns)
    first, last = int(crow_indices[begin]), int(crow_indices[end])
    return values.new_zeros(mask.shape).masked_scatter_(mask, values[first:last])


def forward(input: Tensor, words: Tensor, crow_indices: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """As torch.nn.functional.linear, by the weight."""
    return F.linear(input, rows(words, crow_indices, values, input.size(-1), 0, words.size(0)), bias)
