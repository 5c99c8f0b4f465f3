# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a module does, recorded once: graphs of several kinds are made of one trace."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn

from ..survey import Call, Given
from ..watch.state import is_same
from .attach import own_class
from .sizes import Decision, Guard, kind_of, upstream
from .tracing import place_of, remove_defaults, traced


@dataclass(frozen=True)
class Arguments:
    """How a graph is called.

    positions  names of the arguments of `forward` that may be given by position, in order
    read       those that the graph reads, in its order; they have to be given
    defaults   what the others were when it was traced: each has to be that, or left out
    """

    positions: tuple[str, ...]
    read: tuple[str, ...]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module, read: tuple[str, ...], defaults: Mapping[str, Any]) -> Arguments:
        own: Any = own_class(module)
        parameters = list(inspect.signature(own.forward).parameters.values())[1:]
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positions = tuple(one.name for one in parameters if one.kind in by_position)
        return cls(positions, read, defaults)

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """What the graph reads of a call; None for a call with something else than it was traced with."""
        if not kwargs and len(args) == len(self.read) and self.positions[: len(args)] == self.read:
            return args
        if len(args) > len(self.positions):
            return None
        given = dict(zip(self.positions, args, strict=False))
        if not given.keys().isdisjoint(kwargs):
            return None
        given.update(kwargs)
        result = tuple(given.pop(name) for name in self.read if name in given)
        if len(result) < len(self.read):
            return None
        return result if all(self._is_default(name, value) for name, value in given.items()) else None

    def _is_default(self, name: str, value: Any) -> bool:
        return name in self.defaults and is_same(value, self.defaults[name])

    def serves(self, call: Call, dtype: torch.dtype, device: torch.device) -> tuple[Given, ...] | None:
        """What a graph for tensors of that kind reads of such a call; None where it cannot run."""
        given = self.bound(call.args, call.kwargs)
        if given is None or any(not isinstance(one, Given) for one in given):
            return None
        return given if all((one.dtype, one.device) == (dtype, device) for one in given) else None


@dataclass(frozen=True)
class Trace:
    """The graph of a module, by the names of the modules that it calls, and how it is called.

    Layers that are exchanged under their names leave it as it is. decisions: by sizes; they are of those of `given`.
    """

    module: nn.Module
    graph: torch.fx.Graph
    arguments: Arguments
    decisions: Sequence[Decision]
    given: Mapping[str, Given]

    @classmethod
    def of(cls, module: nn.Module, call: Call | None = None) -> Trace:
        """Raises `Untraceable`; the module is as it was. Patches functions of the whole process meanwhile.

        call: one that the graph is for: where sizes decide, they are taken from it.
        """
        given = {} if call is None else _given_in(module, call)
        graph, decisions = traced(module, given)
        return cls(module, graph, Arguments.of(module, *remove_defaults(graph)), decisions, given)

    def fresh(self) -> tuple[torch.fx.Graph, Mapping[str, nn.Module]]:
        """A copy of the graph to make something of, and the modules that its names mean now.

        What is there for decisions alone is left out.
        """
        graph = copy.deepcopy(self.graph)
        copies = dict(zip(self.graph.nodes, graph.nodes, strict=True))
        for node in reversed(upstream([decision.node for decision in self.decisions])):
            if kind_of(node) is not None and not copies[node].users:
                graph.erase_node(copies[node])
        return graph, dict(self.module.named_modules())

    def guard(self) -> Guard | None:
        """Which calls it serves, of the modules as they are; None where sizes decide nothing."""
        if not self.decisions:
            return None
        modules = dict(self.module.named_modules())
        place = functools.partial(place_of, self.module)
        return Guard(self.decisions, modules, self.given, self.arguments.read, place)


def _given_in(module: nn.Module, call: Call) -> dict[str, Given]:
    """The tensors that a module is called with, by the names of its arguments."""
    own: Any = own_class(module)
    try:
        bound = inspect.signature(own.forward).bind(module, *call.args, **call.kwargs)
    except TypeError:
        return {}
    return {name: value for name, value in bound.arguments.items() if isinstance(value, Given)}
