# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Where the results of a graph lie in memory: in the layout that the modules give them, and apart where those are.

A graph computes on contiguous copies of images that come in another layout. What the modules return then may be an
argument, a part of one, or two views of the same memory, and a caller may write there. So the modules run once for each
layout of arguments, and show whether the copies can be told.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._torch import tree_leaves, tree_map_only

Order = tuple[int, ...]
"""The dimensions of more than one element, from the largest stride to the smallest."""

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))


def layout_of(tensor: Tensor) -> tuple[object, ...]:
    """All that decides what is a view of a tensor and what a copy, but for its size."""
    shape, strides = tensor.shape, tensor.stride()
    order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
    pairs = itertools.pairwise(order)
    gaps = tuple(strides[outer] == strides[inner] * shape[inner] for outer, inner in pairs)
    return tensor.dtype, tuple(order), gaps, tuple(size == 1 for size in shape), strides[order[-1]] if order else 0


def orders_of(result: Any, args: Sequence[Tensor]) -> list[Order] | None:
    """The order of each tensor of a result; None where it shares memory with an argument or another tensor of it, or
    is held in something that cannot be made anew.
    """
    orders = []
    given = {value.untyped_storage().data_ptr() for value in args}
    owners: dict[int, Tensor] = {}
    for leaf in tree_leaves(result):
        if isinstance(leaf, _PLAIN):
            continue
        if type(leaf) is not Tensor or leaf.layout is not torch.strided:
            return None
        memory = leaf.untyped_storage().data_ptr()
        if memory in given or owners.setdefault(memory, leaf) is not leaf:
            return None
        orders.append(_order_of(leaf))
    return orders


def laid_out(result: Any, orders: Sequence[Order]) -> Any:
    """`result`, its tensors in these orders. Raises LookupError where they are not for it."""
    left, done = iter(orders), dict[tuple[int, Order], tuple[Tensor, Tensor]]()

    def lay(tensor: Tensor) -> Tensor:
        order = next(left, None)
        if order is None:
            raise LookupError
        key = id(tensor), order
        if key not in done:
            done[key] = tensor, _in_order(tensor, order)
        return done[key][1]

    return tree_map_only(Tensor, lay, result)


def _order_of(tensor: Tensor) -> Order:
    strides = tensor.stride()
    dims = [dim for dim, size in enumerate(tensor.shape) if size != 1]
    return tuple(sorted(dims, key=strides.__getitem__, reverse=True))


def _in_order(tensor: Tensor, order: Order) -> Tensor:
    present = _order_of(tensor)
    if present == tuple(dim for dim in order if tensor.size(dim) != 1):
        return tensor
    if not set(present).issubset(order):
        raise LookupError
    if tensor.dim() == 4 and order == (0, 2, 3, 1):
        return tensor.contiguous(memory_format=torch.channels_last)
    full = [*(dim for dim in range(tensor.dim()) if dim not in order), *order]
    inverse = sorted(range(len(full)), key=full.__getitem__)
    return tensor.permute(full).contiguous().permute(inverse)
