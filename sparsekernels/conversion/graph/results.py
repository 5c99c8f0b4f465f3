# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Where the results of a graph lie in memory: in the layout that the modules give them, and apart where those are.

A graph computes on contiguous copies of images that come in another layout, and what it fuses gives contiguous results
where an operation might follow its first argument. What the modules return may be an argument, a part of one, or two
views of the same memory, and a caller may write there. So the modules run once for each layout of arguments and
weights, and show where their results lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ..._torch import DropoutNd, tree_leaves, tree_map_only
from .aliases import is_layer, is_of_torch, name_of, owner_of
from .sizes import kind_of

Node = torch.fx.Node

Order = tuple[int, ...]
"""The dimensions of more than one element, from the largest stride to the smallest."""

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))


_BY_MEMORY = """
as_strided as_strided_ as_strided_copy as_strided_scatter stride storage_offset is_contiguous dim_order data_ptr storage
untyped_storage resize resize_ resize_as resize_as_ set_
"""
BY_MEMORY = frozenset(_BY_MEMORY.split())
"""Functions, methods and attributes that go by where elements lie, so that a contiguous copy gives something else."""


def asks_for_memory(graph: torch.fx.Graph) -> str:
    """The name of the first of these that a graph calls; empty where it calls none."""
    names = (name_of(node) for node in graph.nodes if node.op.startswith("call") and node.op != "call_module")
    return next((name for name in names if name in BY_MEMORY), "")


def layout_of(tensor: Tensor) -> tuple[object, ...]:
    """All that decides what is a view of a tensor and what a copy, but for its size."""
    shape, strides = tensor.shape, tensor.stride()
    order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
    pairs = itertools.pairwise(order)
    gaps = tuple(strides[outer] == strides[inner] * shape[inner] for outer, inner in pairs)
    return tensor.dtype, tuple(order), gaps, tuple(size == 1 for size in shape), strides[order[-1]] if order else 0


def is_default(tensor: Tensor) -> bool:
    """Whether it lies as torch lays out new tensors: also in dimensions of one element, which tell channels_last."""
    if not tensor.is_contiguous():
        return False
    shape = tensor.shape
    if 1 not in shape[1:]:  # the first dimension tells nothing
        return True
    expected = itertools.accumulate(reversed(shape[1:]), lambda stride, size: stride * max(size, 1), initial=1)
    return tensor.stride()[1:] == tuple(expected)[-2::-1]


def orders_of(result: Any, args: Sequence[Tensor]) -> list[Order | int] | None:
    """The order of each tensor of a result, or the place of the one that it is again.

    None where it shares memory with an argument or another tensor, lies there with gaps, or is held in something that
    cannot be made anew.
    """
    orders: list[Order | int] = []
    owners = {value.untyped_storage().data_ptr(): (-1, value) for value in args}
    for leaf in tree_leaves(result):
        if isinstance(leaf, _PLAIN):
            continue
        if type(leaf) is not Tensor or leaf.layout is not torch.strided:
            return None
        place, owner = owners.setdefault(leaf.untyped_storage().data_ptr(), (len(orders), leaf))
        if place < 0 or owner is not leaf or not _is_dense(leaf):
            return None
        orders.append(_order_of(leaf) if place == len(orders) else place)
    return orders


def laid_out(result: Any, orders: Sequence[Order | int], args: Sequence[Tensor]) -> Any:
    """`result`, its tensors in these orders, in memory of their own. Raises LookupError where they are not for it."""
    left, done = iter(orders), list[Tensor]()
    taken = {value.untyped_storage().data_ptr() for value in args}

    def lay(tensor: Tensor) -> Tensor:
        order = next(left, None)
        if order is None:
            raise LookupError
        laid = done[order] if isinstance(order, int) else _in_order(tensor, order)
        if not isinstance(order, int):
            if laid.untyped_storage().data_ptr() in taken:
                laid = laid.clone(memory_format=torch.preserve_format)
            taken.add(laid.untyped_storage().data_ptr())
        done.append(laid)
        return laid

    laid = tree_map_only(Tensor, lay, result, is_leaf=lambda value: type(value) is torch.Size)
    if len(done) < len(orders):
        raise LookupError
    return laid


def _order_of(tensor: Tensor) -> Order:
    strides = tensor.stride()
    dims = [dim for dim, size in enumerate(tensor.shape) if size != 1]
    return tuple(sorted(dims, key=strides.__getitem__, reverse=True))


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements follow each other, in whatever order."""
    expected = 1
    for dim in reversed(_order_of(tensor)):
        if tensor.stride(dim) != expected:
            return tensor.numel() == 0
        expected *= tensor.size(dim)
    return True


def _in_order(tensor: Tensor, order: Order) -> Tensor:
    present = _order_of(tensor)
    if present == tuple(dim for dim in order if tensor.size(dim) != 1) and _is_dense(tensor):
        return tensor
    if not set(present).issubset(order):
        raise LookupError
    if tensor.dim() == 4 and order == (0, 2, 3, 1):
        return tensor.contiguous(memory_format=torch.channels_last)
    full = [*(dim for dim in range(tensor.dim()) if dim not in order), *order]
    inverse = sorted(range(len(full)), key=full.__getitem__)
    return tensor.permute(full).contiguous().permute(inverse)


_IN_ORDER = """
add sub mul div truediv floordiv pow neg iadd isub imul itruediv add_ sub_ mul_ div_ true_divide abs exp log sqrt rsqrt
relu relu_ relu6 sigmoid tanh silu gelu elu selu celu leaky_relu hardswish hardsigmoid hardtanh softplus mish clamp
clamp_min clamp_max maximum minimum where cat concat concatenate stack mean sum amax amin max_pool2d avg_pool2d
adaptive_avg_pool1d adaptive_avg_pool2d interpolate pad dropout dropout2d flatten reshape view view_as unflatten squeeze
unsqueeze getitem chunk split narrow select softmax log_softmax layer_norm group_norm batch_norm linear conv1d conv2d
matmul clone contiguous float type_as scaled_dot_product_attention
"""
IN_ORDER = frozenset(_IN_ORDER.split())
"""Functions and methods whose results lie in the order of their dimensions where arguments do."""


def may_reorder(graph: torch.fx.Graph, modules: Mapping[str, nn.Module], fused: Collection[str]) -> bool:
    """Whether a fused layer, or pooling, may be given something that lies otherwise though no argument does."""
    reordered: set[Node] = set()
    for node in graph.nodes:
        if kind_of(node) is not None:
            continue
        is_ours = node.op == "call_module" and node.target in fused
        is_ours = is_ours or (node.op == "call_function" and owner_of(node) == "sparsekernels")
        if not reordered.isdisjoint(node.all_input_nodes):
            if is_ours:
                return True
            reordered.add(node)
        elif node.op.startswith("call") and not is_ours and not _keeps_order(node, modules):
            reordered.add(node)
    return False


def _keeps_order(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return is_of_torch(module) and (is_layer(module) or isinstance(module, _KEEPERS))
    given = [*node.args, *node.kwargs.values()]
    if name_of(node) not in IN_ORDER or any(isinstance(one, torch.memory_format) for one in given):
        return False
    return node.op == "call_method" or owner_of(node) in ("torch", "_operator")


_KEEPERS = (nn.Identity, nn.Flatten, nn.Unflatten, DropoutNd)
