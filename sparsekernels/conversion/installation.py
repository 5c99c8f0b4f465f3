# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a conversion puts into a model, layers and graphs, and how it is taken out again.

A layer is put in at its place, and taken out wherever it is found: each replacement knows what it stands for.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..nn.packed_layer import PackedLayer
from ..nn.replacement import Origin, Replacement, Siblings, share_attributes, share_options, share_parameters
from .graph.attach import Recipe, attach, attached, detach, graph_of
from .graph.base import Graph
from .modules import has_hooks
from .norm_call import RMSNormCall
from .structure import Structure


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


@dataclass(frozen=True)
class Swap:
    """A layer that is exchanged; `path` is its name in the model, `parent` holds it."""

    path: str
    parent: nn.Module
    original: nn.Module
    replacement: Replacement

    @classmethod
    def of(cls, path: str, parent: nn.Module, original: nn.Module, replacement: Replacement) -> Swap:
        replacement.path = path
        replacement.origin = Origin(original, replacement)
        return cls(path, parent, original, replacement)

    def exchange(self, before: nn.Module, after: nn.Module) -> None:
        """Put `after` into the place of `before`, where that still is there."""
        name = self.path.rpartition(".")[2]
        if self.parent._modules.get(name) is before:
            self.parent._modules[name] = after


@dataclass
class _Placed:
    """A graph that hangs on a module, or what a norm runs as, by its recipe."""

    module: _Weakly
    recipe: Recipe


@dataclass
class Installed:
    """What was put into a model, which keeps this; it keeps no part of the model alive."""

    layers: list[_Weakly]
    graphs: list[_Placed]

    def replacements(self) -> Iterator[tuple[Replacement, Origin]]:
        """The layers that are alive, with what they stand for."""
        for one in self.layers:
            layer = one()
            if isinstance(layer, Replacement) and layer.origin is not None:
                yield layer, layer.origin

    def share_parameters(self) -> None:
        """Give the layers the parameters that the original ones have."""
        for layer, origin in self.replacements():
            share_parameters(origin.layer_of(layer), layer)

    def share_attributes(self) -> None:
        """Once the original layers are what they were: calls of the model may have left something in theirs."""
        for layer, origin in self.replacements():
            share_attributes(origin.layer_of(layer), layer)

    def live_graphs(self) -> Iterator[tuple[nn.Module, Graph]]:
        """The graphs of the modules that are alive."""
        for placed in self.graphs:
            module = placed.module()
            graph = None if module is None else graph_of(module)
            if module is not None and isinstance(graph, Graph):
                yield module, graph

    def has_graph(self, module: nn.Module) -> bool:
        """Whether what hangs on `module`, a graph or what a norm runs as, is one of these."""
        recipe = attached(module)
        return recipe is not None and any(placed.recipe is recipe for placed in self.graphs)


@dataclass
class Conversion:
    """What can be done to a model: layers that are exchanged, modules that run as a graph, norms that run as
    `rms_norm`."""

    swaps: list[Swap]
    graphs: list[Graph]
    norms: list[tuple[nn.Module, RMSNormCall]] = field(default_factory=list)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the model runs so."""
        self.install()
        try:
            yield
        finally:
            self.uninstall()

    def install(self) -> Installed:
        """Do it. Returns what is in the model then."""
        siblings = Siblings()
        for swap in self.swaps:
            share_attributes(swap.original, swap.replacement)
            assert swap.replacement.origin is not None
            swap.replacement.origin.siblings = siblings
            siblings.add(swap.replacement)
            swap.exchange(swap.original, swap.replacement)
        for norm, call in self.norms:
            attach(norm, call.recipe, call)
        for graph in self.graphs:
            attach(graph.module, graph.recipe, graph)
        placed = [_Placed(_Weakly(norm), call.recipe) for norm, call in self.norms]
        placed += [_Placed(_Weakly(graph.module), graph.recipe) for graph in self.graphs]
        return Installed([_Weakly(swap.replacement) for swap in self.swaps], placed)

    def uninstall(self) -> None:
        """Undo it."""
        for graph in self.graphs:
            if attached(graph.module) is graph.recipe:
                detach(graph.module)
        for norm, call in self.norms:
            if attached(norm) is call.recipe:
                detach(norm)
        for swap in self.swaps:
            swap.exchange(swap.replacement, swap.original)


def replaced_in(model: nn.Module) -> dict[str, Replacement]:
    """The layers in `model` that stand for others, by the names that they have there."""
    named = model.named_modules()
    return {name: one for name, one in named if isinstance(one, Replacement) and one.origin is not None}


def release(model: nn.Module) -> None:
    """Let layers of `model` that keep no dense weight let go of it."""
    for layer in replaced_in(model).values():
        if isinstance(layer, PackedLayer):
            layer.release()


def check(layers: dict[str, Replacement], function: str) -> None:
    """Raise where something was done to a layer that its original would not have.

    layers: by their names.
    """
    for name, layer in layers.items():
        found = _what_was_given(layer) if name else None
        if found is not None:
            what, remedy = found
            raise RuntimeError(
                f"{function}: the converted layer {name!r} was given {what} since, which would be lost; remove that"
                f" before, with {remedy}"
            )
        if not name:
            raise RuntimeError(
                f"{function}: expected what contains the converted layer {layer.path!r}, got the layer itself, which"
                " cannot be exchanged in place; its to_dense() gives a dense one"
            )


def _what_was_given(layer: Replacement) -> tuple[str, str] | None:
    """What was done to a layer that its original would not have, and how that is undone."""
    if parametrize.is_parametrized(layer):
        parametrizations: Any = layer.parametrizations
        return "a parametrization", f"remove_parametrizations(layer, {next(iter(parametrizations), 'weight')!r})"
    for name, what in (("weight", "a mask"), ("bias", "a mask of its bias")):
        if f"{name}_orig" in layer._parameters:
            return what, f"torch.nn.utils.prune.remove(layer, {name!r})"
    for name in ("weight", "bias"):
        if name not in layer._parameters:
            return f"a {name} that is no parameter", f"layer.{name} = torch.nn.Parameter(...)"
    if has_hooks(layer):
        return "hooks", "handle.remove()"
    if "forward" in vars(layer):
        return "a forward of its own", "del layer.forward"
    assert layer.origin is not None
    kinds = ("_parameters", "_buffers", "_modules")
    if any(getattr(layer, kind).keys() - layer.origin.names(kind) for kind in kinds):
        return "parameters, buffers or modules beside its own", "del layer.name"
    return None


def take_out(model: nn.Module, layers: dict[str, Replacement], graphs: list[nn.Module]) -> None:
    """Let the modules that run as graphs be what they were, and what `layers` stand for be in their places, wherever
    that is in `model`, with what became of their parameters, sizes and modes since. All of it or, where anything
    raises, nothing."""
    structure = Structure(model)
    originals: dict[int, nn.Module] = {}
    try:
        for layer in layers.values():
            assert layer.origin is not None
            original = layer.origin.layer_of(layer)
            layer.hand_back()
            share_options(layer, original)
            share_parameters(layer, original)
            share_attributes(layer, original)
            if isinstance(layer, PackedLayer):
                layer.forget_weight()
            originals[id(layer)] = original
        for module in graphs:
            detach(module)
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if id(child) in originals:
                    parent._modules[name] = originals[id(child)]
    except BaseException:
        structure.put_back()
        raise
    _mark(layers, True)


def put_back(layers: dict[str, Replacement]) -> None:
    """Where a `Structure` is going to put back layers that were taken out."""
    _mark(layers, False)


def _mark(layers: dict[str, Replacement], are_back: bool) -> None:
    for layer in layers.values():
        if layer.origin is not None:
            layer.origin.is_back(are_back)
