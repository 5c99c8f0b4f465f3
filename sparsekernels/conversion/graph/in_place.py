# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a graph changes in place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx
from torch import nn

from ..watch.writes import memory_of
from .aliases import Aliases, Gives, gives_of, is_of_torch, name_of, nodes_in, owner_of
from .sizes import kind_of

Node = torch.fx.Node

IN_PLACE = tuple(
    getattr(operator, name)
    for name in (
        *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
        *("iand", "ior", "ixor", "ilshift", "irshift"),
    )
)
"""What Python calls for `x += y` and the like."""

_WRITES = {operator.setitem, *IN_PLACE}
_METHODS = {f"__{function.__name__}__" for function in _WRITES}
"""The same of tensors that are no nodes, by their names."""
_FIRST = ("input", "self", "tensor")
"""What torch calls the first argument."""
_STATISTICS = ("batch_norm", "instance_norm", "native_batch_norm")
"""Functions that change others of their arguments."""
_READ = ("torch", "_operator", "builtins", "math", "sparsekernels")
"""Packages whose functions tell by their names what they change."""


def written_by(node: Node, modules: Mapping[str, nn.Module]) -> list[Node]:
    """What a node may change: what is not known to leave its arguments alone may change all of them."""
    if not node.op.startswith("call") or kind_of(node) is not None:
        return []
    if _is_foreign(node, modules):
        return node.all_input_nodes
    first = list(node.args[:1]) or [node.kwargs[one] for one in _FIRST if one in node.kwargs] or node.all_input_nodes
    if node.op == "call_module":
        module = modules.get(str(node.target))  # a fused layer took over whatever writes
        parts = [] if module is None else module.modules()
        return nodes_in(first) if any(getattr(part, "inplace", False) for part in parts) else []
    name = name_of(node)
    if name in _STATISTICS:
        training = _argument(node, "use_input_stats" if name == "instance_norm" else "training")
        return [] if training is False else node.all_input_nodes
    if _argument(node, "max_norm") not in (None, False):  # an embedding's
        return node.all_input_nodes
    written = nodes_in(node.kwargs.get("out"))
    ends = name.endswith("_") and not name.endswith("__")
    if node.target in _WRITES or name in _METHODS or ends or _argument(node, "inplace") not in (None, False):
        written += nodes_in(first)
    return written


def _is_foreign(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a call runs code that nothing is known of."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return module is not None and not is_of_torch(module)
    if node.op == "call_method":
        return not hasattr(torch.Tensor, str(node.target))
    return owner_of(node) not in _READ and not isinstance(node.target, type)


def _argument(node: Node, name: str) -> Any:
    """What a function is given under a name, by position or not; None where it has no such argument."""
    if name in node.kwargs:
        return node.kwargs[name]
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return None
    signature = inspect.signature(node.target)
    if name not in signature.parameters:
        return None
    given = signature.bind_partial(*node.args, **node.kwargs).arguments
    return given.get(name, signature.parameters[name].default)


def gives_its_own(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether `node` calls a module whose result nothing else can refer to."""
    if not isinstance(node, Node) or node.op != "call_module":
        return False
    return gives_of(modules.get(str(node.target))) is Gives.OWN


def writes_to_layers(
    graph: torch.fx.Graph, modules: Mapping[str, nn.Module], place_of: Callable[[str], tuple[dict[str, Any], str]]
) -> bool:
    """Whether something may change a parameter or buffer of a module that the graph calls: what a layer was folded and
    packed from is looked at before a call, not within one.

    place_of: where the tensor is that a `get_attr` node names.
    """
    read = [node for node in graph.nodes if node.op == "get_attr"]
    if not read:
        return False
    called = [modules[str(node.target)] for node in graph.nodes if node.op == "call_module"]
    own = {memory_of(one) for module in called for one in (*module.parameters(), *module.buffers())}
    of_layers = {node for node in read if memory_of(operator.getitem(*place_of(str(node.target)))) in own}
    aliases = Aliases(graph, modules)
    for node in graph.nodes if of_layers else ():
        changed = written_by(node, modules)
        if not of_layers.isdisjoint(changed):
            return True
        if not of_layers.isdisjoint(changed or aliases.sources_of(node)):
            of_layers.add(node)
    return False


def rests_on_layout(graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> bool:
    """Whether something is changed in place that is an argument or a part of one, or that is a view or a copy of
    something by how arguments lie in memory.
    """
    nodes = list(graph.nodes)
    changes = {node: found for node in nodes if (found := written_by(node, modules))}
    if not changes:
        return False
    aliases = Aliases(graph, modules)
    groups = {node: node for node in nodes}

    def group(node: Node) -> Node:
        while groups[node] is not node:
            groups[node] = groups[groups[node]]
            node = groups[node]
        return node

    unsure = []
    for node in nodes:
        for source in changes.get(node) or aliases.sources_of(node):
            groups[group(node)] = group(source)
        is_either = aliases.gives(node) is Gives.EITHER and (node not in changes or _is_foreign(node, modules))
        if node.op == "placeholder" or is_either:
            unsure.append(node)
    written = {group(target) for targets in changes.values() for target in targets}
    return any(group(node) in written for node in unsure)
