# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A pattern as bits, which is how kernels on a GPU read it: made once of its indices and kept as long as these are.

One bit for each element of the weight, stored or not, is an eighth of a byte where an index of a nonzero is four. The
values stay where they are: row by row with ascending columns is the order of the bits, so nothing is packed anew when
they change. Kernel operators are given indices alone, so a bitmap is found by the tensor `col_indices`, as the object
that it is, and by its version.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import _library
from ..._torch import is_captured
from .._bits import WORD, words_of, words_of_row
from .._kept import Kept
from .arguments import check_indices

_MOST_AT_ONCE = 1 << 24
"""Elements of the weight whose bits are worked out at a time: each takes a few bytes meanwhile."""


class Bitmap(NamedTuple):
    """Which elements of a matrix are stored, and where in the values those of each word begin.

    words   int64 [rows, 2 * ceil(columns / 128)]: bit k % 64 of words[o, k // 64] is set where element (o, k) is stored
    starts  int32 of that shape: how many are stored before the word's first column, rows above included
    """

    words: Tensor
    starts: Tensor


_kept: Kept[Bitmap] = Kept("its bits", lambda bitmap: bitmap)


def has_compiled_linear(tensor: Tensor) -> bool:
    """Whether `bitmap_linear` has a kernel for the device of a tensor."""
    return tensor.is_cuda and _library.cuda is not None


def bitmap_of(
    crow_indices: Tensor, col_indices: Tensor, columns: int, permutation: Tensor | None = None
) -> Bitmap | None:
    """The bitmap of a pattern of so many columns, made where it is asked for first; reads the indices then, and waits.

    None while a CUDA graph is captured, which nothing may wait in, and the pattern has none yet.
    Raises ValueError for indices that are not compressed rows, and a permutation that is not one of its values.
    """
    of = (col_indices, crow_indices) if permutation is None else (col_indices, crow_indices, permutation)
    key = columns, permutation is None
    if is_captured(col_indices):
        return _kept.find(of, key)

    def make() -> Bitmap:
        check_indices(crow_indices, col_indices, columns, permutation)
        return _made(crow_indices, col_indices, columns)

    return _kept.get(of, key, make)


def _made(crow_indices: Tensor, col_indices: Tensor, columns: int) -> Bitmap:
    """Some rows at a time, so that little memory is used meanwhile."""
    rows, width = crow_indices.numel() - 1, words_of_row(columns) * WORD
    device = col_indices.device
    words = torch.empty((rows, width // WORD), dtype=torch.int64, device=device)
    starts = torch.empty((rows, width // WORD), dtype=torch.int32, device=device)
    step = max(1, _MOST_AT_ONCE // width)
    bounds = [*crow_indices[:-1:step].tolist(), col_indices.numel()]
    for place, first in enumerate(range(0, rows, step)):
        few = crow_indices[first : first + step + 1]
        low, high = bounds[place : place + 2]
        row = torch.arange(few.numel() - 1, device=device) * width
        stored = torch.zeros((few.numel() - 1) * width, dtype=torch.uint8, device=device)
        positions = torch.repeat_interleave(row, few.diff(), output_size=high - low) + col_indices[low:high]
        stored[positions] = 1
        words[first : first + step] = words_of(stored.view(-1, width))
        counts = stored.view(-1, width // WORD, WORD).sum(2, dtype=torch.int32)
        before = counts.cumsum(1, dtype=torch.int32) - counts
        starts[first : first + step] = before + few[:-1, None]
    return Bitmap(words, starts)
