# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that chance calls or does not (LayerDrop, mixtures of experts): what their like was given counts for them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..nn.replacement import LINEAR_KINDS, options_of
from .facts import LayerObstacle
from .survey import Given, Layer, Recorded, record_inputs
from .watch.snapshot import unchanged

MOST_PASSES = 8
"""Passes, at most, in which chance may call the layers that it has not called yet."""


def record_by_chance(
    model: torch.nn.Module, layers: list[Layer], recorded: list[Recorded], calls: Sequence[Callable[[], object]]
) -> None:
    """Run what draws random numbers until it called each layer, or one like it; adds to what was `recorded` of it.

    Layers that were never called get that as their obstacle. Everything is put back afterwards.
    """

    def missing() -> list[Layer]:
        given = [with_likes(layers, one.given) for one in recorded]
        return [one for one in layers if _may_be_exchanged(one) and not any(some[one.name] for some in given)]

    pairs = [pair for pair in zip(recorded, calls, strict=True) if pair[0].random]
    left = missing() if pairs else []
    with unchanged(model):
        for _ in range(MOST_PASSES - 1):
            if not left:
                break
            for first, call in pairs:
                with first.reach.unchanged():
                    first.given.update(record_inputs(model, left, call, first.reach, first.writes).given)
            left = missing()
    for layer in left:
        if layer.is_pruned:
            layer.obstacle = LayerObstacle.LEFT_OUT.of(passes=MOST_PASSES)


def with_likes(layers: list[Layer], given: Mapping[str, list[Given]]) -> dict[str, list[Given]]:
    """What each layer was given, and what its like was where chance may have passed it by.

    Chance decides which blocks are called (LayerDrop) and which experts see how many rows. So a layer that was not
    called, or with no rows, has what the most of a layer of the same shapes was; and of linear layers whose names
    differ by numbers alone, all have what the one with the most rows was.
    """
    seen = {name: [one for one in some if math.prod(one.shape)] for name, some in given.items()}
    by_kind: dict[Any, list[list[Given]]] = {}
    by_place: dict[Any, list[list[Given]]] = {}
    for layer in layers:
        if _may_be_exchanged(layer) and seen.get(layer.name):
            by_kind.setdefault(_kind(layer), []).append(seen[layer.name])
            by_place.setdefault((_kind(layer), _place(layer)), []).append(seen[layer.name])
    result = {}
    for layer in layers:
        own = seen.get(layer.name, [])
        if _may_be_exchanged(layer):
            siblings = by_place.get((_kind(layer), _place(layer)), [])
            if not own:
                own = max(siblings or by_kind.get(_kind(layer), []), key=_elements, default=own)
            elif isinstance(layer.module, LINEAR_KINDS):
                own = max([own, *siblings], key=_elements)  # the first of those with as many: its own
        result[layer.name] = own
    return result


def _may_be_exchanged(layer: Layer) -> bool:
    """As far as is known before its class is looked into."""
    return layer.obstacle is None or layer.recordable


def _kind(layer: Layer) -> tuple[Any, ...]:
    """What layers that are alike have in common."""
    module: Any = layer.module
    return type(module), *options_of(module).items(), module.weight.dtype, bool(layer.sparsity)


def _place(layer: Layer) -> str:
    """Its name with other numbers left out."""
    return re.sub(r"\d+", "#", layer.name)


def _elements(given: list[Given]) -> int:
    return sum(math.prod(one.shape) for one in given)
