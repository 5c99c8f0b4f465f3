# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a module still is what a graph was traced from."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...nn.replacement import Replacement
from ..graph.attach import own_class
from ..modules import GRAPH
from .entries import Entry, Equal, Same
from .state import CONVERSION, KEPT_BY_TORCH, held_by
from .surroundings import Beside

_NOT_LOOKED_AT = frozenset({"forward", GRAPH, CONVERSION})

_HOOKS_IN_FRONT = ("_forward_hooks", "_forward_pre_hooks")
_HOOKS = operator.attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_PADDING = "_reversed_padding_repeated_twice"
"""A list of convolutions, which follows from their padding where that is zeros."""
_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Identity,
    nn.Dropout,
)
"""Classes of torch whose attributes are plain values."""
_GO_OVER = {"parameters", "named_parameters", "_parameters", "buffers", "named_buffers", "_buffers", "state_dict"}
_GO_OVER |= {"children", "named_children", "modules", "named_modules", "_modules"}
"""Names in code that may count what modules have."""
_ASK_FOR = {"hasattr", "getattr", "vars", "__dict__", "dir"}
"""Names in code that may find an attribute which was not there."""
_FOLLOWED = frozenset({"pattern", "outputs", "inputs", "_guard", "_kept", "_flipped", "path", "origin"})
"""Attributes of replacements that are looked at elsewhere, or change nothing."""


class Watch:
    """What a graph rests on, beside the tensors that it follows. Asked in each call, so that lists are compared.

    - modules, attributes that the code may have looked at, and tensors that it reads, at their places
    - which children, parameters and buffers there are
    - what the code may have looked into, at any depth: lists, dicts, objects, tensors
    - the classes of modules, since a parametrization changes a class, and their `forward`
    - values of globals and classes, and states of torch and the process, that the code asked for
    - modes and hooks of modules that are not called any more, or never were but gone through; and how many attributes
      these have, and torch's and our layers
    """

    def __init__(
        self,
        root: nn.Module,
        passed: Sequence[nn.Module],
        registered: Iterable[nn.Module],
        modes: Sequence[nn.Module],
        read: Sequence[Entry],
        followed: Iterable[nn.Module],
        free: Iterable[tuple[nn.Module, Sequence[str]]],
        beside: Beside,
    ) -> None:
        """Over `passed`, the modules whose code a trace of `root` went through.

        registered: all modules of the model; what they hold is looked at where they are. modes: those whose mode and
        hooks count. read: tensors that the graph reads. followed: those whose parameters and statistics may be others,
        as long as they are there. free: attributes of modules that are looked at in each call. beside: what is no part
        of the model. Raises `TooMuch`.
        """
        registered = list(registered)
        read_by_others = [module for module in registered if type(module).__module__.startswith("torch.nn.")]
        looked_at = {id(module): module for module in (*passed, *read_by_others)}
        attributes = [attribute for module in looked_at.values() for attribute in _attributes_of(module)]
        # of layers that are called as they are, and of others' modules, what the code names
        called = [module for module in registered if id(module) not in looked_at]
        attributes += [one for module in called for one in _attributes_of(module) if one[1] in beside.names]
        fixed = [
            (place, name, value) for module in passed for place in places_of(module) for name, value in place.items()
        ]
        owned = {id(place) for module in followed for place in places_of(module)}
        excused = {(id(vars(module)), name) for module, names in free for name in names if name not in beside.names}
        fixed = [
            entry
            for entry in (*fixed, *attributes)
            if (entry[2] is None or id(entry[0]) not in owned) and (id(entry[0]), entry[1]) not in excused
        ]
        of_mode = (*modes, *(registered if "training" in beside.names else ()))
        fixed += [*read, *((vars(module), "training", module.training) for module in of_mode)]
        fixed += (entry for module in registered for entry in _dicts_of(module))
        plain = {id(vars(module)) for module in registered if _is_plain_layer(module)}
        registers = {id(place) for module in registered for place in places_of(module)}
        equal: list[Entry] = []
        same: list[Entry] = []
        for entry in {(id(entry[0]), entry[1]): entry for entry in fixed}.values():
            key = id(entry[0])
            alike = _is_as_good(entry) or (key in registers if entry[2] is None else key in plain)
            (equal if alike else same).append(entry)
        self._equal, self._same = Equal(equal), Same(same)
        counts_places, counts_attributes = (not names.isdisjoint(beside.names) for names in (_GO_OVER, _ASK_FOR))
        of_places = registered if counts_places else [module for module in passed if not _is_layer(module)]
        self._counted = [place for module in of_places for place in places_of(module)]
        # one that got a `forward` of its own has one attribute more, or one for which code may ask
        asked = [one for one in registered if one is not root and (counts_attributes or _is_torchs(type(one)))]
        self._counted += map(vars, {id(module): module for module in (*modes, *asked)}.values())
        self._counts = list(map(len, self._counted))
        self._root = vars(root)
        self._count_of_root = self._attributes_of_root()
        self._ordered = [module._modules for module in passed if len(module._modules) > 1]
        self._orders = list(map(tuple, self._ordered))
        self._held = held_by((value for _, _, value in attributes), {id(module) for module in registered})
        # the root has a class of ours where the graph hangs on it, and nothing here keeps it alive
        self._typed = [module for module in passed if module is not root]
        self._types = list(map(type, self._typed))
        kinds = {own_class(root), *self._types}
        self._classes = [kind for kind in kinds if not _is_torchs(kind)]
        self._forwards = [kind.forward for kind in self._classes]  # type: ignore[attr-defined]
        self._modes, self._beside = modes, None if beside.is_empty else beside
        self._look_at_hooks()

    def unchanged(self) -> bool:
        """Whether the modules are still those that were traced, in the same modes and without hooks."""
        return (
            self._equal.holds()
            and self._same.holds()
            and list(map(len, self._counted)) == self._counts
            and self._attributes_of_root() == self._count_of_root
            and list(map(tuple, self._ordered)) == self._orders
            and not any(held.changed() for held in self._held)
            and list(map(type, self._typed)) == self._types
            and [kind.forward for kind in self._classes] == self._forwards  # type: ignore[attr-defined]
            and (self._beside is None or self._beside.holds())
            and self._no_hooks()
        )

    def _attributes_of_root(self) -> int:
        """Without what a conversion leaves there, and without a wrapper of its `forward`, which calls that."""
        return len(self._root) - sum(name in self._root for name in _NOT_LOOKED_AT)

    def _no_hooks(self) -> bool:
        if self._handles != RemovableHandle.next_id:  # one was registered somewhere, perhaps in another dict
            self._look_at_hooks()
        return not any(self._hooks)

    def _look_at_hooks(self) -> None:
        self._handles = RemovableHandle.next_id
        self._hooks = [hooks for module in self._modes for hooks in _HOOKS(module)]


def _is_layer(module: nn.Module) -> bool:
    """Whether its `forward` reads no parameters, buffers and children but those that are followed."""
    return type(module) in _LAYERS or isinstance(module, Replacement)


def _is_plain_layer(module: nn.Module) -> bool:
    """Whether its attributes are plain values, given to kernels."""
    return type(module) in _LAYERS or type(module).__module__.startswith("sparsekernels.nn.")


def _dicts_of(module: nn.Module) -> Iterator[Entry]:
    """The dicts that `module` has, which may be exchanged as a whole."""
    attributes = vars(module)
    for name in ("_parameters", "_buffers", "_modules"):
        if attributes[name] or not _is_layer(module):
            yield attributes, name, attributes[name]
    for name in _HOOKS_IN_FRONT:
        yield attributes, name, attributes[name]


def _is_as_good(entry: Entry) -> bool:
    """Whether what is equal to a value does the same: a mode; a dict of hooks, since order counts only where there are
    some; a module that equals no other. So do the settings of a layer, which kernels are given, and None where else
    parameters and modules are."""
    _, name, value = entry
    if isinstance(value, nn.Module):
        return type(value).__eq__ is object.__eq__
    return name == "training" or name in _HOOKS_IN_FRONT


def places_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps its children, parameters and buffers."""
    return module._modules, module._parameters, module._buffers


def _attributes_of(module: nn.Module) -> Iterator[Entry]:
    """The attributes of `module` that its code, that of its parent, or a kernel in its place, may have looked at."""
    attributes = vars(module)
    unread = _FOLLOWED if isinstance(module, Replacement) else frozenset()
    if attributes.get("padding_mode") == "zeros":
        unread |= {_PADDING}
    for name, value in attributes.items():
        if name not in KEPT_BY_TORCH and name not in _NOT_LOOKED_AT and name not in unread:
            yield attributes, name, value


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith(("torch.nn.", "sparsekernels."))
