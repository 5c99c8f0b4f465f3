# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The sparse layers that models in training have by now, and the patterns that they were given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ..nn.sparse import SparseLayer
from .weights import MaskedWeight


class Layers:
    """What is done to sparse layers of masked weights. They are looked for each time: `convert` exchanges them.

    Args:
        models: Which have them; read each time.
        weights: Those that are masked, by their names; read each time.
    """

    def __init__(self, models: Collection[nn.Module], weights: Mapping[str, MaskedWeight]) -> None:
        self._models, self._weights = models, weights
        self._given: dict[int, tuple[SparseLayer, Any]] = {}  # by the id of a layer: it, and the pattern it was given
        self._nonzeros: dict[str, int] = {}
        self.unmasked: frozenset[str] = frozenset()
        """Weights whose gradients are zero outside of masks by themselves, at a step without dense gradients."""

    def found(self) -> dict[str, list[SparseLayer]]:
        """The layers that there are.

        Returns:
            By the names of the weights.
        """
        names = {id(one.parameter): name for name, one in self._weights.items()}
        layers: dict[str, list[SparseLayer]] = {}
        for model in self._models:
            for module in model.modules():
                if isinstance(module, SparseLayer):
                    name = names.get(id(module._parameters.get("weight")))
                    if name is not None:
                        layers.setdefault(name, []).append(module)
        return layers

    def set_patterns(self, names: Collection[str] | None = None) -> None:
        """Give layers the patterns of the masks.

        Args:
            names: Of weights; None for all.
        """
        for name, layers in self.found().items():
            if names is None or name in names:
                for layer in layers:
                    layer.set_pattern(self._weights[name].mask)
                    self._given[id(layer)] = layer, layer.pattern
                self._nonzeros[name] = int(self._weights[name].mask.count_nonzero())

    def start_anew(self) -> None:
        """Give all layers their patterns, and forget those that are gone."""
        self._given.clear()
        self.set_patterns()

    def take_stale(self) -> set[str]:
        """Give layers their patterns again that somebody else gave another one.

        Returns:
            The names of their weights.
        """
        stale = {
            name
            for name, layers in self.found().items()
            if any(self._given.get(id(layer), (None, None))[1] is not layer.pattern for layer in layers)
        }
        if stale:
            self.set_patterns(stale)
        return stale

    def prepare(self, dense_grad: bool) -> None:
        """Let layers compute the gradients that the next step needs.

        Args:
            dense_grad: Whether those of missing weights are among them.
        """
        unmasked = set()
        for name, layers in self.found().items():
            for layer in layers:
                if layer.dense_grad is not dense_grad:
                    layer.dense_grad = dense_grad
            if all(layer.pattern.nnz == self._nonzeros.get(name) for layer in layers):
                unmasked.add(name)
        self.unmasked = frozenset(unmasked)
