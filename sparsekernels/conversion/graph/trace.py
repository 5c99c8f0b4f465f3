# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a module does, recorded once: graphs of several kinds are made of one trace."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn

from ..survey import Call, Given
from ..watch.state import is_same
from ..watch.surroundings import Beside
from .attach import own_class
from .tracing import remove_defaults, traced


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

    def serves(self, call: Call, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a graph for tensors of that kind can run where the module is called like that."""
        given = self.bound(call.args, call.kwargs)
        return given is not None and all(
            isinstance(one, Given) and (one.dtype, one.device) == (dtype, device) for one in given
        )


@dataclass(frozen=True)
class Trace:
    """The graph of a module, by the names of the modules that it calls, how it is called, and what it read beside.

    Layers that are exchanged under their names leave it as it is.
    """

    module: nn.Module
    graph: torch.fx.Graph
    arguments: Arguments
    beside: Beside

    @classmethod
    def of(cls, module: nn.Module) -> Trace:
        """Raises `Untraceable`; the module is as it was. Patches functions of the whole process meanwhile."""
        graph, beside = traced(module)
        return cls(module, graph, Arguments.of(module, *remove_defaults(graph)), beside)

    def fresh(self) -> tuple[torch.fx.Graph, Mapping[str, nn.Module]]:
        """A copy of the graph to make something of, and the modules that its names mean now."""
        return copy.deepcopy(self.graph), dict(self.module.named_modules())
