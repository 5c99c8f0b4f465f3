# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a module does, recorded once: graphs of several kinds are made of one trace."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx
from torch import nn

from ..survey import Call
from ..watch.surroundings import Beside
from .signature import Arguments
from .sizes import Decision, Guards, kind_of, upstream
from .tracing import place_of, traced


@dataclass(frozen=True)
class Trace:
    """The graph of a module, by the names of the modules that it calls, how it is called, and what it read beside.

    Layers that are exchanged under their names leave it as it is. decisions: by sizes.
    """

    module: nn.Module
    graph: torch.fx.Graph
    arguments: Arguments
    beside: Beside
    decisions: Sequence[Decision]

    @classmethod
    def of(cls, module: nn.Module, call: Call | None = None) -> Trace:
        """Raises `Untraceable`; the module is as it was. Patches functions of the whole process meanwhile.

        call: one that the graph is for: what else is given than tensors, and where sizes decide, these are taken from
        it.
        """
        arguments = Arguments.of(module, call)
        graph, beside, decisions = traced(module, arguments)
        return cls(module, graph, arguments, beside, decisions)

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

    def guard(self) -> Guards | None:
        """Which calls it serves, of the modules as they are; None where sizes decide nothing."""
        if not self.decisions:
            return None
        modules = dict(self.module.named_modules())
        place = functools.partial(place_of, self.module)
        return Guards(self.decisions, modules, self.arguments.given, self.arguments.read, place)
