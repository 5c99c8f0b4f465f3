# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a graph changes in place, and which of its nodes may be the same memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch.fx
from torch import nn

from ..._torch import DropoutNd
from ..modules import is_plain

Node = torch.fx.Node

IN_PLACE = tuple(
    getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
)
"""What Python calls for `x += y` and the like."""

_WRITES = {operator.setitem, *IN_PLACE}

_BY_LAYOUT = {"reshape", "reshape_as", "flatten", "ravel", "unflatten", "contiguous", "to", "pixel_shuffle"}
_BY_LAYOUT |= {"pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "Flatten", "Unflatten"}
"""Functions, methods and classes that give a view or a copy, by how their argument lies in memory."""

_VIEWS = {"view", "view_as", "transpose", "permute", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "squeeze"}
_VIEWS |= {"unsqueeze", "expand", "expand_as", "broadcast_to", "narrow", "select", "split", "chunk", "tensor_split"}
_VIEWS |= {
    "hsplit",
    "vsplit",
    "dsplit",
    "unbind",
    "diagonal",
    "detach",
    "getattr",
    "getitem",
    "float",
    "half",
    "double",
}
_VIEWS |= {"bfloat16", "type", "type_as", "cpu", "real", "imag", "view_as_real", "view_as_complex", "as_strided"}
_VIEWS |= {"unfold", "alias", "positive", "conj", "resolve_conj", "resolve_neg", "atleast_1d", "atleast_2d"}
_VIEWS |= {"atleast_3d", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
_VIEWS |= {"Identity", "as_tensor"}
"""Those that may give their argument, or a view of it."""


def writes_in_place(node: Node) -> bool:
    """Whether a function or method changes a tensor."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name_of(node)
    in_place = name.endswith("_") and not name.endswith("__")
    return node.target in _WRITES or in_place or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None


def gives_its_own(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether `node` calls a module whose result nothing else can refer to."""
    if not isinstance(node, Node) or node.op != "call_module":
        return False
    module = modules.get(str(node.target))
    if module is None:  # a fused layer
        return True
    if not type(module).__module__.startswith(("torch.nn.", "sparsekernels.")) or not is_plain(module):
        return False
    names = _VIEWS | _BY_LAYOUT
    return not (getattr(module, "inplace", False) or isinstance(module, DropoutNd) or type(module).__name__ in names)


def rests_on_layout(graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> bool:
    """Whether something is changed in place that is an argument or a part of one, or that is a view or a copy of
    something by how arguments lie in memory.
    """
    nodes = list(graph.nodes)
    written = [target for node in nodes for target in _targets(node, modules)]
    if not written:
        return False
    if any(_root(target, modules).op == "placeholder" for target in written):
        return True
    groups = {node: node for node in nodes}

    def group(node: Node) -> Node:
        while groups[node] is not node:
            node = groups[node]
        return node

    for node in nodes:
        if node.args and isinstance(node.args[0], Node) and not _makes_a_tensor(node, modules):
            groups[group(node)] = group(node.args[0])
    by_layout = {group(node) for node in nodes if _kind_of(node, modules) in _BY_LAYOUT}
    return any(group(target) in by_layout for target in written)


def _targets(node: Node, modules: Mapping[str, nn.Module]) -> Iterator[Node]:
    """What a node changes in place."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if writes_in_place(node) or getattr(module, "inplace", False):
        for target in (*node.args[:1], node.kwargs.get("out"), node.kwargs.get("input")):
            if isinstance(target, Node):
                yield target


def _root(node: Node, modules: Mapping[str, nn.Module]) -> Node:
    """What a tensor may be a view of, whatever functions it came from."""
    while node.op.startswith("call") and not gives_its_own(node, modules):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            break
        node = source
    return node


def _makes_a_tensor(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return gives_its_own(node, modules)
    if not node.op.startswith("call"):
        return True
    if writes_in_place(node) or _name_of(node) in _VIEWS | _BY_LAYOUT:
        return False
    return node.op == "call_method" or str(getattr(node.target, "__module__", None)).startswith(("torch", "_operator"))


def _kind_of(node: Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules.get(str(node.target))).__name__
    return _name_of(node) if node.op.startswith("call") else ""


def _name_of(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
