# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a conversion puts into a model, layers and graphs, and how it is taken out again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from ..nn.replacement import Replacement, share_attributes, share_parameters
from .graph.base import Graph
from .modules import has_hooks


@dataclass
class Swap:
    """A layer that was exchanged; `path` is its name in the model."""

    path: str
    parent: nn.Module
    original: nn.Module
    replacement: Replacement

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass
class Conversion:
    """What was done to a model, so that it can be undone: layers that were exchanged, forwards that run as a graph."""

    swaps: list[Swap]
    graphs: list[Graph]

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the model runs so."""
        self.install()
        try:
            yield
        finally:
            self.uninstall()

    def install(self) -> None:
        for swap in self.swaps:
            share_attributes(swap.original, swap.replacement)
            swap.parent._modules[swap.name] = swap.replacement
        for graph in self.graphs:
            vars(graph.module)["forward"] = graph.forward

    def share_attributes(self) -> None:
        """Once the original layers are what they were: calls of the model may have left something in theirs."""
        for swap in self.swaps:
            share_attributes(swap.original, swap.replacement)

    def uninstall(self) -> None:
        """Puts everything back that is still where it was put."""
        for graph in self.graphs:
            if vars(graph.module).get("forward") == graph.forward:
                del vars(graph.module)["forward"]
        for swap in self.swaps:
            if swap.parent._modules.get(swap.name) is swap.replacement:
                swap.parent._modules[swap.name] = swap.original

    def check(self, function: str) -> None:
        """Raise where something was done to a layer that its original would not have."""
        for swap in self.swaps:
            layer = swap.replacement
            if parametrize.is_parametrized(layer):
                what, remedy = "a parametrization", "remove_parametrizations(layer, 'weight')"
            elif "weight" not in layer._parameters:
                what, remedy = "a mask", "torch.nn.utils.prune.remove(layer, 'weight')"
            elif has_hooks(layer):
                what, remedy = "hooks", "handle.remove()"
            else:
                continue
            raise RuntimeError(
                f"{function}: the converted layer {swap.path!r} was given {what} since, which would be lost; remove"
                f" that before, with {remedy}"
            )

    def hand_back(self) -> None:
        """Gives the original layers what became of their parameters and modes since."""
        for swap in self.swaps:
            swap.replacement.hand_back()
            share_parameters(swap.replacement, swap.original)
            share_attributes(swap.replacement, swap.original)
