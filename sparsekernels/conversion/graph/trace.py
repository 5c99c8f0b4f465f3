# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a module does, recorded once: graphs of several kinds are made of one trace."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch.fx
from torch import nn

from .tracing import remove_defaults, traced


@dataclass(frozen=True)
class Trace:
    """The graph of a module, by the names of the modules that it calls, and how many arguments it takes.

    Layers that are exchanged under their names leave it as it is.
    """

    module: nn.Module
    graph: torch.fx.Graph
    arguments: int

    @classmethod
    def of(cls, module: nn.Module) -> Trace:
        """Raises `Untraceable`; the module is as it was. Patches functions of the whole process meanwhile."""
        graph = traced(module)
        return cls(module, graph, remove_defaults(graph))

    def fresh(self) -> tuple[torch.fx.Graph, Mapping[str, nn.Module]]:
        """A copy of the graph to make something of, and the modules that its names mean now."""
        return copy.deepcopy(self.graph), dict(self.module.named_modules())
