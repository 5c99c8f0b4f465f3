# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a conversion puts into a model, layers and graphs, and how it is taken out again."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..nn.replacement import Replacement, share_attributes, share_options, share_parameters
from .graph.attach import Recipe, attach, attached, detach, graph_of
from .graph.base import Graph
from .modules import has_hooks


class _Weakly:
    """Refers to a module without keeping it alive; copies and pickles refer to the copy of it."""

    def __init__(self, module: nn.Module | None) -> None:
        self._module = None if module is None else weakref.ref(module)

    def __call__(self) -> nn.Module | None:
        return None if self._module is None else self._module()

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"])  # type: ignore[misc]


@dataclass
class Swap:
    """A layer that was exchanged; `path` is its name in the model, `parent` gives what holds it, if that is alive."""

    path: str
    parent: _Weakly
    original: nn.Module
    replacement: Replacement

    @classmethod
    def of(cls, path: str, parent: nn.Module, original: nn.Module, replacement: Replacement) -> Swap:
        replacement.path = path
        return cls(path, _Weakly(parent), original, replacement)

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def is_in_place(self) -> bool:
        """Whether the replacement is where it was put."""
        parent = self.parent()
        return parent is not None and parent._modules.get(self.name) is self.replacement

    def exchange(self, before: nn.Module, after: nn.Module) -> None:
        """Put `after` into the place of `before`, where that still is there."""
        parent = self.parent()
        if parent is not None and parent._modules.get(self.name) is before:
            parent._modules[self.name] = after


@dataclass
class _Placed:
    """A graph that hangs on a module, by its recipe."""

    module: _Weakly
    recipe: Recipe


@dataclass
class Installed:
    """What was done to a model, so that it can be undone. The model keeps it; it keeps no part of the model alive but
    the layers."""

    swaps: list[Swap]
    graphs: list[_Placed]

    def install(self, made: Sequence[Graph] = ()) -> None:
        """Do it, or do it again. made: the graphs, where they are there."""
        by_recipe = {id(graph.recipe): graph for graph in made}
        for swap in self.swaps:
            share_attributes(swap.original, swap.replacement)
            swap.exchange(swap.original, swap.replacement)
        for graph in self.graphs:
            module = graph.module()
            if module is not None:
                attach(module, graph.recipe, by_recipe.get(id(graph.recipe)))

    def share_parameters(self) -> None:
        """Give the layers the parameters that the original ones have."""
        for swap in self.swaps:
            share_parameters(swap.original, swap.replacement)

    def live_graphs(self) -> Iterator[tuple[nn.Module, Graph]]:
        """The graphs of the modules that are alive."""
        for placed in self.graphs:
            module = placed.module()
            graph = None if module is None else graph_of(module)
            if module is not None and isinstance(graph, Graph):
                yield module, graph

    def share_attributes(self) -> None:
        """Once the original layers are what they were: calls of the model may have left something in theirs."""
        for swap in self.swaps:
            share_attributes(swap.original, swap.replacement)

    def uninstall(self) -> None:
        """Puts everything back that is still where it was put."""
        for graph in self.graphs:
            module = graph.module()
            if module is not None and attached(module) is graph.recipe:
                detach(module)
        for swap in self.swaps:
            swap.exchange(swap.replacement, swap.original)

    def check(self, function: str) -> None:
        """Raise where something was done to a layer that its original would not have."""
        for swap in self.swaps:
            layer = swap.replacement
            if not swap.is_in_place():
                continue
            if parametrize.is_parametrized(layer):
                what, remedy = "a parametrization", "remove_parametrizations(layer, 'weight')"
            elif "weight" not in layer._parameters:
                what, remedy = "a mask", "torch.nn.utils.prune.remove(layer, 'weight')"
            elif "bias" not in layer._parameters:
                what, remedy = "a mask of its bias", "torch.nn.utils.prune.remove(layer, 'bias')"
            elif has_hooks(layer):
                what, remedy = "hooks", "handle.remove()"
            elif _has_more(layer, swap.original):
                what, remedy = "parameters, buffers or modules beside its own", "del layer.name"
            else:
                continue
            raise RuntimeError(
                f"{function}: the converted layer {swap.path!r} was given {what} since, which would be lost; remove"
                f" that before, with {remedy}"
            )

    def hand_back(self) -> None:
        """Gives the original layers what became of their parameters, sizes and modes since."""
        for swap in self.swaps:
            if swap.is_in_place():
                swap.replacement.hand_back()
                share_options(swap.replacement, swap.original)
                share_parameters(swap.replacement, swap.original)
                share_attributes(swap.replacement, swap.original)


def _has_more(layer: nn.Module, original: nn.Module) -> bool:
    """Whether `layer` has parameters, buffers or modules of other names."""
    kinds = ("_parameters", "_buffers", "_modules")
    return any(getattr(layer, kind).keys() - getattr(original, kind).keys() for kind in kinds)


@dataclass
class Conversion:
    """What can be done to a model: layers that are exchanged, modules that run as a graph."""

    swaps: list[Swap]
    graphs: list[Graph]

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the model runs so."""
        installed = self.install()
        try:
            yield
        finally:
            installed.uninstall()

    def install(self) -> Installed:
        """Do it. Returns what undoes it."""
        installed = Installed(self.swaps, [_Placed(_Weakly(graph.module), graph.recipe) for graph in self.graphs])
        installed.install(self.graphs)
        return installed
