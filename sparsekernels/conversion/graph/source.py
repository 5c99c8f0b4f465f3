# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the constants of a graph are made of, and what tells that this has changed since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import nn

from ...nn.replacement import Replacement, choice_of
from ..facts import GraphObstacle
from ..modules import is_ordinary
from ..watch.entries import Entry, Same
from ..watch.tensors import Tensors
from .fused import Fused
from .untraceable import Untraceable

_BATCHES = "num_batches_tracked"


class _Pattern(NamedTuple):
    """Which weights a replacement uses."""

    layer: Replacement
    places: object


class Source:
    """What the constants of fused layers are made of, as it is when this is made: tensors and patterns.

    content: see `Tensors`.
    """

    def __init__(self, fused: Sequence[Fused], content: bool) -> None:
        entries = list(_entries_of(_parts_of(fused), content))
        if any(tensor.is_inference() for _, _, tensor in entries):
            raise Untraceable(GraphObstacle.INFERENCE_TENSORS)
        self._tensors = Tensors(entries, content)
        self._patterns = list(_patterns_of(fused))
        self._chosen = Same(entry for layer, _ in self._patterns for entry in choice_of(layer))

    def changed(self) -> bool:
        return not self._chosen.holds() or self._tensors.changed()

    def untouched(self) -> bool:
        """Whether nothing changed since, not even to and fro."""
        return self._chosen.holds() and self._tensors.untouched()

    def changed_in(self, module: nn.Module) -> list[str]:
        """The names in `module` of tensors that are others or were written to, and of patterns that are others."""
        parts = list(module.named_modules())
        owners = {id(place): name for name, part in parts for place in (part._parameters, part._buffers)}
        owners.update({id(part): name for name, part in parts})
        changed = [(owners.get(id(place), "?"), name) for place, name in self._tensors.changed_places()]
        changed += [(owners.get(id(layer), "?"), "pattern") for layer, was in self._patterns if layer.places is not was]
        return list(map(".".join, changed))


def _parts_of(fused: Sequence[Fused]) -> Iterator[nn.Module]:
    for layer in fused:
        for part in layer.parts:
            if part is not None:
                yield part


def tensors_of(modules: Iterable[nn.Module], content: bool) -> Tensors:
    """Those that constants may be made of, of modules that are not fused yet."""
    parts = (part for part in modules if isinstance(part._parameters, dict) and isinstance(part._buffers, dict))
    return Tensors([entry for entry in _entries_of(parts, content) if not entry[2].is_inference()], content)


def _entries_of(parts: Iterable[nn.Module], content: bool) -> Iterator[Entry]:
    """content: whether what they hold is compared, which shows running statistics that move. To torch's versions these
    stand still, save that of the number of batches."""
    for part in parts:
        for place in (part._parameters, part._buffers):
            for name, tensor in place.items():
                if is_ordinary(tensor) and not (content and tensor.is_cpu and name == _BATCHES):
                    yield place, name, tensor


def _patterns_of(fused: Sequence[Fused]) -> Iterator[_Pattern]:
    for part in _parts_of(fused):
        if isinstance(part, Replacement):
            yield _Pattern(part, part.places)
