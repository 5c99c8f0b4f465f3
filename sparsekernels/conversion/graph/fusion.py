# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is done to a traced graph: layers take over what stands behind them, and what does nothing is taken out."""

from __future__ import annotations

import collections
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..._torch import DropoutNd
from ...ops.batch_norm.op import Act
from ...ops.max_pool2d.op import max_pool2d
from ..candidates import fused_of
from ..modules import is_plain
from .batch_norm import FusedNorm
from .fused import Fused
from .fused_subclass import FusedOfSubclass
from .in_place import gives_its_own, written_by

Node = torch.fx.Node

_NORMS: Mapping[type, type] = {nn.Conv2d: nn.BatchNorm2d, nn.Conv1d: nn.BatchNorm1d, nn.Linear: nn.BatchNorm1d}
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")

_POOLING_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def drop_identities(graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Takes out what does nothing in evaluation mode."""
    for node in list(graph.nodes):
        if node.op == "call_module":
            module = modules[node.target]
            is_identity = type(module) is nn.Identity or isinstance(module, DropoutNd)
            is_identity = is_identity and is_plain(module) and not module.training
        elif node.op == "call_function" and node.target in (F.dropout, F.dropout2d, F.alpha_dropout):
            training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
            is_identity = training is False
        else:
            continue
        if is_identity and len(node.args) >= 1 and isinstance(node.args[0], Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def copy_where_views_may_not_be(graph: torch.fx.Graph) -> None:
    """Puts `reshape` in the place of `view` to a shape, which raises in a layout that it does not fit."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view" and not _is_of_dtype(node):
            node.target = "reshape"


def _is_of_dtype(node: Node) -> bool:
    return any(isinstance(one, torch.dtype) for one in (*node.args, *node.kwargs.values()))


def fuse(graph: torch.fx.Graph, modules: Mapping[str, nn.Module], layout: torch.memory_format) -> dict[str, Fused]:
    """Puts fused layers into the graph; returns them by the names under which it calls them."""
    result: dict[str, Fused] = {}
    for node in list(graph.nodes):
        if node.op != "call_module" or (fused := fused_of(modules[node.target])) is None:
            continue
        layer = modules[node.target]
        if not is_plain(layer) or len(node.args) != 1 or node.kwargs or fused.obstacle_of(layer) is not None:
            continue
        group = _FusionGroup(graph, modules, node)
        group.take_norm(layer, fused)
        group.take_sum()
        group.take_limits()
        name = f"sparsekernels_fused_{len(result)}"
        result[name] = fused(layer, group.norm, group.low, group.high, layout)
        result[name].taken = group.taken()
        group.replace(name)
    _let_sums_take_residuals(graph, result)
    return result


def _let_sums_take_residuals(graph: torch.fx.Graph, fused: Mapping[str, Fused]) -> None:
    """Lets a layer write to its residual, where nothing else can see that.

    That is what another fused layer has just made, no part of any argument or result; only fused layers read it, which
    keep no view of it, and this one is the last. A subclass's code may keep or return what it likes.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    ours = {name for name, layer in fused.items() if not isinstance(layer, FusedOfSubclass)}
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in fused or len(node.args) != 2:
            continue
        source, residual = node.args
        made = residual.op == "call_module" and residual.target in ours
        read = all(user.op == "call_module" and user.target in ours for user in residual.users)
        if made and read and source is not residual and all(order[user] <= order[node] for user in residual.users):
            fused[node.target].takes_residual = True


def fuse_norms(graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> dict[str, FusedNorm]:
    """Puts BatchNorms in training, with what stands behind them, into the graph; returns them by their names there.

    One that is called twice, or whose tensors are read, stays: its running statistics would change in another order.
    """
    called = collections.Counter(id(modules.get(str(node.target))) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    called.update(id(modules[owner]) for owner in read if owner in modules)
    result: dict[str, FusedNorm] = {}
    for node in list(graph.nodes):
        norm: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(norm) is not nn.BatchNorm2d or not norm.training or not is_plain(norm) or called[id(norm)] > 1:
            continue
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
            continue
        group = _FusionGroup(graph, modules, node)
        group.take_sum()
        group.take_limits()
        group.take_dropout()
        name = f"sparsekernels_norm_{len(result)}"
        result[name] = FusedNorm(norm, Act(group.low, group.high, group.p), group.residual is not None)
        result[name].taken = group.taken()
        group.replace(name)
    return result


def pool(graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> bool:
    """Max pooling by our kernel, which is made for images without gaps; whether there is any."""
    pools = False
    for node in list(graph.nodes):
        if node.op == "call_module" and type(modules.get(node.target)) is nn.MaxPool2d:
            module: Any = modules[node.target]
            if not is_plain(module) or node.kwargs or len(node.args) != 1:
                continue
            window = _window(**{name: getattr(module, name) for name in _POOLING_OPTIONS})
        elif node.op == "call_function" and node.target in (F.max_pool2d, torch.max_pool2d):
            if any(isinstance(value, Node) for value in (*node.args[1:], *node.kwargs.values())):
                continue
            window = _window(**{**dict(zip(_POOLING_OPTIONS, node.args[1:], strict=False)), **node.kwargs})
        else:
            continue
        if window is not None and node.args:
            with graph.inserting_before(node):
                replacement = graph.call_function(max_pool2d, (node.args[0], window))
            node.replace_all_uses_with(replacement)
            graph.erase_node(node)
            pools = True
    return pools


def _window(
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    input: Any = None,
) -> tuple[int, ...] | None:
    """kh, kw, sh, sw, ph, pw; None where the kernel does not do it."""
    stride = kernel_size if stride in (None, [], ()) else stride
    if kernel_size is None or ceil_mode or return_indices or input is not None:
        return None
    sizes = [value if isinstance(value, tuple | list) else (value, value) for value in (kernel_size, stride, padding)]
    dilations = dilation if isinstance(dilation, tuple | list) else (dilation,)
    if any(len(size) != 2 for size in sizes) or any(step != 1 for step in dilations):
        return None
    window = tuple(number for size in sizes for number in size)
    return window if all(type(number) is int for number in window) else None


def _named(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


class _FusionGroup:
    """A layer's node and those behind it that one fused layer computes."""

    def __init__(self, graph: torch.fx.Graph, modules: Mapping[str, nn.Module], first: Node) -> None:
        self._graph, self._modules = graph, modules
        self.nodes = [first]
        self.norm: Any = None
        self.residual: Node | None = None
        self.low: float | None = None
        self.high: float | None = None
        self.p = 0.0

    def _next(self) -> Node | None:
        """The one node that uses the group's result, where the group may go on to there."""
        last = self.nodes[-1]
        if len(last.users) != 1:
            return None
        (user,) = last.users
        return user if user.op in ("call_module", "call_function", "call_method") else None

    def _module_of(self, node: Node) -> nn.Module | None:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        module = self._modules[str(node.target)]
        return module if is_plain(module) else None

    def _reaches(self, node: Node) -> bool:
        """Whether the group can be computed at `node` instead: nothing between writes to a tensor."""
        between = self.nodes[-1].next
        while between is not node:
            if written_by(between, self._modules):
                return False
            between = between.next
        return True

    def take_norm(self, layer: nn.Module, fused: type[Fused]) -> None:
        """A BatchNorm in evaluation mode that `fused` can fold into the layer."""
        user = self._next()
        expected = next((norm for kind, norm in _NORMS.items() if isinstance(layer, kind)), None)
        norm: Any = None if user is None else self._module_of(user)
        fits = type(norm) is expected
        if user is None or not fits or norm.training or not self._reaches(user):
            return
        if fused.obstacle_of(layer, norm) is not None:
            return
        self.norm = norm
        self.nodes.append(user)

    def take_sum(self) -> None:
        """The sum with another tensor."""
        user = self._next()
        if user is None or user.target not in _SUMS or len(user.args) != 2 or user.kwargs:
            return
        left, right = user.args
        last = self.nodes[-1]
        addend = right if left is last else left
        if not isinstance(addend, Node) or addend is last or addend in self.nodes:
            return
        in_place = user.target in (operator.iadd, "add_")
        if in_place and left is not last and (len(addend.users) > 1 or not gives_its_own(addend, self._modules)):
            return  # whoever else has the addend, or what it is a view of, would see the sum
        if not self._reaches(user):
            return
        self.residual = addend
        self.nodes.append(user)

    def take_limits(self) -> None:
        """A ReLU, ReLU6 or Hardtanh."""
        user = self._next()
        if user is None or not self._reaches(user):
            return
        module: Any = self._module_of(user)
        if type(module) is nn.ReLU:
            self.low = 0.0
        elif type(module) in (nn.ReLU6, nn.Hardtanh):
            limits = module.min_val, module.max_val
            if not all(isinstance(limit, int | float) for limit in limits):
                return
            self.low, self.high = map(float, limits)
        elif user.op == "call_function" and user.target is F.hardtanh:
            arguments = _named(user, ("input", "min_val", "max_val", "inplace"))
            low, high = arguments.get("min_val", -1.0), arguments.get("max_val", 1.0)
            if arguments.get("input") is not self.nodes[-1] or isinstance(low, Node) or isinstance(high, Node):
                return
            self.low, self.high = float(low), float(high)
        elif len(user.args) != 1 or set(user.kwargs) - {"inplace"}:
            return
        elif user.op != "call_module" and user.target in _RELUS:
            self.low = 0.0
        elif user.op == "call_function" and user.target is F.relu6:
            self.low, self.high = 0.0, 6.0
        else:
            return
        self.nodes.append(user)

    def take_dropout(self) -> None:
        """Dropout in training mode, with a fixed probability."""
        user = self._next()
        if user is None or not self._reaches(user):
            return
        module: Any = self._module_of(user)
        p: Any
        training: Any
        if type(module) is nn.Dropout:
            p, training = module.p, module.training
        elif user.op == "call_function" and user.target is F.dropout:
            arguments = _named(user, ("input", "p", "training", "inplace"))
            if arguments.get("input") is not self.nodes[-1]:
                return
            p, training = arguments.get("p", 0.5), arguments.get("training", True)
        else:
            return
        if training is not True or not isinstance(p, int | float) or not 0 <= p < 1:
            return
        self.p = float(p)
        self.nodes.append(user)

    def taken(self) -> tuple[nn.Module, ...]:
        """The modules that one fused layer stands for."""
        return tuple(self._modules[str(node.target)] for node in self.nodes if node.op == "call_module")

    def replace(self, name: str) -> None:
        """Put a call of the module `name` in the place of the group's last node."""
        first, last = self.nodes[0], self.nodes[-1]
        arguments = (first.args[0],) if self.residual is None else (first.args[0], self.residual)
        with self._graph.inserting_before(last):
            node = self._graph.call_module(name, arguments)
        last.replace_all_uses_with(node)
        for node in reversed(self.nodes):
            self._graph.erase_node(node)
