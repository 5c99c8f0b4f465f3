# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The pattern of a weight as the gradient to the input walks it: by input channel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Transposed(NamedTuple):
    """The same nonzeros by input channel.

    Row g * (in/groups) + i is input channel i of group g, one of all the input channels. Its entries are the nonzeros
    (o, i, tap) of that group, o counted within the group and tap = ky * kernel_w + kx as in the weight (not flipped),
    at column o * taps + tap, ascending.

    crow_indices  int32 [in + 1], where each row starts
    col_indices   int32 [nnz]
    permutation   int32 [nnz], where in `values` each entry is
    """

    crow_indices: Tensor
    col_indices: Tensor
    permutation: Tensor


def transpose(crow_indices: Tensor, col_indices: Tensor, in_channels: int, taps: int, groups: int) -> Transposed:
    """The transposed pattern of a weight of `in_channels` in all, over all groups. No size depends on the data."""
    out_channels = crow_indices.numel() - 1
    columns = out_channels // groups * taps
    counts = crow_indices.diff()
    # Where the row of an output channel begins in the transposed weight: its group's rows, its columns.
    channel = torch.arange(out_channels, device=crow_indices.device, dtype=torch.int32)
    group, within = channel // (out_channels // groups), channel % (out_channels // groups)
    start = group * (in_channels // groups * columns) + within * taps
    positions = torch.repeat_interleave(start, counts, output_size=col_indices.numel())
    if taps == 1:
        positions = positions + col_indices * columns
    else:
        input_channel = torch.div(col_indices, taps, rounding_mode="floor")
        positions = positions + input_channel * (columns - taps) + col_indices  # = i * columns + tap
    positions, permutation = torch.sort(positions)
    starts = torch.arange(in_channels, device=crow_indices.device, dtype=torch.int32) * columns
    crow = torch.searchsorted(positions, starts, out_int32=True)
    end = crow_indices[-1:]
    return Transposed(torch.cat([crow, end]), positions % columns, permutation.int())
