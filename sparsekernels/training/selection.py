# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The k-th least of many values, and masks of an exact number of the least; ties are broken at random, reproducibly."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import numpy
except ImportError:  # torch's own selection is right as well, and takes about four times as long
    numpy = None  # type: ignore[assignment]

_TIES = 0x5EED
"""Seeds the order in which equals are taken. In the order of their places they would fill some rows and leave others
empty, wherever many are equal: new weights are all 0, and so is the momentum of what has had no gradient."""


def kth_least(values: Tensor, count: int) -> Tensor:
    """The `count`-th least.

    Args:
        values: 1-D, no NaN.
        count: From 1 on.

    Returns:
        A scalar tensor of the same dtype.
    """
    if numpy is not None and values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(numpy.partition(values.numpy(), count - 1)[count - 1 : count])[0]
    return values.kthvalue(count).values


def least(values: Tensor, count: int) -> Tensor:
    """Where the `count` least are, exactly as many; of equals, some, the same every time.

    Args:
        values: 1-D, no NaN.
        count: 0 to the number of values.

    Returns:
        int64 [count], not sorted.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    if count == values.numel():
        return torch.arange(count, device=values.device)
    limit = kth_least(values, count)
    found = (values <= limit).nonzero()[:, 0]
    if found.numel() == count:
        return found
    are_below = values[found] < limit
    below, equal = found[are_below], found[~are_below]
    order = torch.randperm(equal.numel(), generator=torch.Generator().manual_seed(_TIES))[: count - below.numel()]
    return torch.cat([below, equal[order.to(equal.device)]])
