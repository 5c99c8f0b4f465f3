# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a module still is what a graph was traced from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...nn.replacement import Replacement
from .state import CONVERSION, KEPT_BY_TORCH, Held, held_by, is_same

Fixed = tuple[dict[str, Any], str, Any]
"""Where something is kept, under which name, and what it is."""


@dataclass(frozen=True)
class Watch:
    """What a graph rests on, beside the tensors that it follows.

    fixed     modules, attributes that the code may have looked at, and tensors that it reads, at their places
    shapes    which children, parameters and buffers there are
    held      what the code may have looked into, at any depth: lists, dicts, objects, tensors
    types     of the modules: a parametrization changes a class
    modes     of modules that are not called any more, or never were but gone through
    """

    fixed: Sequence[Fixed]
    shapes: Sequence[tuple[dict[str, Any], tuple[str, ...]]]
    held: Sequence[Held]
    types: Sequence[tuple[nn.Module, type]]
    modes: Sequence[tuple[nn.Module, bool]]

    @classmethod
    def of(
        cls,
        passed: Sequence[nn.Module],
        registered: Iterable[nn.Module],
        modes: Iterable[nn.Module],
        read: Sequence[Fixed],
        followed: Iterable[nn.Module],
        free: Iterable[tuple[nn.Module, Sequence[str]]],
    ) -> Watch:
        """The watch over `passed`, the modules whose code a trace went through.

        registered: all modules of the model; what they hold is looked at where they are. modes: those whose mode and
        hooks count. read: tensors that the graph reads. followed: those whose parameters and statistics may be others,
        as long as they are there. free: attributes of modules that are looked at in each call. Raises `TooMuch`.
        """
        attributes = [attribute for module in passed for attribute in _attributes_of(module)]
        fixed = [
            (place, name, value) for module in passed for place in places_of(module) for name, value in place.items()
        ]
        owned = {id(place) for module in followed for place in places_of(module)}
        excused = {(id(vars(module)), name) for module, names in free for name in names}
        fixed = [
            entry
            for entry in (*fixed, *attributes)
            if (entry[2] is None or id(entry[0]) not in owned) and (id(entry[0]), entry[1]) not in excused
        ]
        return cls(
            fixed=[*fixed, *read],
            shapes=[(place, tuple(place)) for module in passed for place in places_of(module)],
            held=held_by((value for _, _, value in attributes), {id(module) for module in registered}),
            types=[(module, type(module)) for module in passed],
            modes=[(module, module.training) for module in modes],
        )

    def unchanged(self) -> bool:
        """Whether the modules are still those that were traced, in the same modes and without hooks."""
        for place, name, value in self.fixed:
            if not is_same(place.get(name, self), value):
                return False
        for place, names in self.shapes:
            if tuple(place) != names:
                return False
        if any(held.changed() for held in self.held):
            return False
        for module, kind in self.types:
            if type(module) is not kind:
                return False
        for module, training in self.modes:
            if (
                module.training is not training
                or module._forward_hooks
                or module._forward_pre_hooks
                or module._backward_hooks
                or module._backward_pre_hooks
                or "forward" in module.__dict__
            ):
                return False
        return True


def places_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps its children, parameters and buffers."""
    return module._modules, module._parameters, module._buffers


def _attributes_of(module: nn.Module) -> Iterator[Fixed]:
    """The attributes of `module` that its code, or a kernel in its place, may have looked at."""
    attributes, replaces = vars(module), isinstance(module, Replacement)  # its pattern is followed
    for name, value in attributes.items():
        if name not in KEPT_BY_TORCH and name not in _NOT_LOOKED_AT and not (replaces and name == "pattern"):
            yield attributes, name, value


_NOT_LOOKED_AT = frozenset({"forward", CONVERSION})
