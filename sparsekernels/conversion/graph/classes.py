# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which classes of modules code tells from their subclasses (`type(self) is Net`), of which a conversion makes one.

By the source of `forward`, and of the methods and functions that it names, at any depth. Where a graph hangs on a
module, `==`, sets and dicts are no concern: its class equals the one that it is made of. Where code does something else
with a class than to compare it with one that is written there (a helper gets both, a dict has functions by classes),
all classes count that the code names as values.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..watch.reach import is_library
from ..watch.state import items_of
from .attach import own_class
from .class_uses import Uses, classes_among, codes_of, imported_by, nonlocals_of

_MOST = 100_000
"""Functions that are looked at, and objects."""

_PLAIN = (Tensor, str, bytes, int, float, complex, types.NoneType)
"""Have no functions of a user's."""


class ComparedClasses:
    """The classes that the code of some modules tells from their subclasses, and where."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        self._where: dict[type, str] = {}
        self._by_value: dict[type, str] = {}
        self._by_name: dict[str, str] = {}
        self._anything = ""
        functions = _Functions(modules)
        asks, asks_identity, found = "", "", []
        for kind in dict.fromkeys(map(own_class, modules)):
            for function, is_method in functions.of_class(kind):
                uses, name = Uses(function), function.__qualname__
                found.append((kind, uses))
                for one, by_identity in uses.compared:
                    (self._where if by_identity else self._by_value).setdefault(one, name)
                for text in uses.names:
                    self._by_name.setdefault(text, name)
                if uses.takes_apart or (uses.compares_unknown and is_method):  # others compare values of all kinds
                    self._anything = self._anything or name
                asks = asks or (name if uses.asks else "")
                asks_identity = asks_identity or (name if uses.asks_identity else "")
        if asks:
            named = [one for kind, uses in found for one in uses.named(kind)]
            held = [one for module in modules for value in vars(module).values() for one in classes_among(value)]
            for one in (*named, *held):
                (self._where if asks_identity else self._by_value).setdefault(one, asks_identity or asks)

    def by_identity(self, kind: type) -> str:
        """The name of a function that may compare `kind` by identity; empty where none does."""
        return self._where.get(kind, self._anything)

    def at_all(self, kind: type) -> str:
        """The name of a function that names `kind` and compares it in whatever way; empty where none does."""
        return self._where.get(kind, "") or self._by_value.get(kind, "") or self._by_name.get(kind.__name__, "")


_Reached = tuple[types.FunctionType, bool]
"""A function, and whether it is a method, or one that a decorator of a method calls."""


class _Functions:
    """Functions that can be reached from the `forward` of classes, each once."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._seen: set[_Reached] = set()
        self._looked = 0
        self._attributes: dict[type, list[dict[str, Any]]] = {}
        for module in modules:
            self._attributes.setdefault(own_class(module), []).append(vars(module))

    def of_class(self, kind: type) -> Iterator[_Reached]:
        left: list[_Reached] = [(one, True) for one in _methods(kind, ("forward",))]
        while left and len(self._seen) < _MOST:
            reached = function, is_method = left.pop()
            if reached in self._seen or is_library(function.__globals__.get("__name__")):
                continue
            self._seen.add(reached)
            yield reached
            names = [name for code in codes_of(function.__code__) for name in code.co_names]
            left += [(one, True) for one in _methods(kind, names)]
            spaces: list[dict[str, Any]] = [function.__globals__]
            modules = [value for name in names if isinstance(value := spaces[0].get(name), types.ModuleType)]
            modules += imported_by(function)
            spaces += [vars(module) for module in modules if not is_library(module.__name__)]
            spaces += self._attributes.get(kind, [])
            values = [space[name] for space in spaces for name in names if name in space]
            left += [(one, False) for value in values for one in _functions_of(value)]
            around = list(nonlocals_of(function).values())
            left += [(one, is_method) for value in around for one in _functions_of(value)]
            on_class = [vars(base)[name] for base in kind.__mro__ for name in names if name in vars(base)]
            for value in (*values, *around, *on_class):
                left += [(one, False) for one in self._within(value, names)]

    def _within(self, value: Any, names: list[str], depth: int = 2) -> Iterator[types.FunctionType]:
        """The functions that a container has, and those that an object or a class has under some names."""
        if self._looked > _MOST or isinstance(value, (*_PLAIN, types.FunctionType, types.ModuleType, nn.Module)):
            return
        self._looked += 1
        elements = value if type(value) in (tuple, frozenset) else items_of(value)
        if not isinstance(elements, list | tuple | set | frozenset | dict):
            elements = ()
        for one in elements.values() if isinstance(elements, dict) else elements:
            yield from _functions_of(one) if not isinstance(one, _PLAIN) else ()
            if depth:
                yield from self._within(one, names, depth - 1)
        kind = value if isinstance(value, type) else type(value)
        spaces = [vars(base) for base in kind.__mro__]
        with contextlib.suppress(Exception):  # of an object that answers for itself
            spaces += [] if kind is value else [vars(value)]
        for space in spaces:
            for name in ("__call__", *names):
                yield from _functions_of(space.get(name))


def _methods(kind: type, names: Iterable[str]) -> Iterator[types.FunctionType]:
    for name in dict.fromkeys(names):
        for base in kind.__mro__:
            yield from _functions_of(vars(base).get(name))


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The functions behind a property, a class method, decorators; and those of the decorators."""
    passed: list[Any] = []
    with contextlib.suppress(Exception):  # of an object that answers for itself
        for name in ("fget", "func", "__func__"):
            value = getattr(value, name, value) if not isinstance(value, types.FunctionType | type) else value
        while not isinstance(value, type | None) and all(value is not one for one in passed):
            passed.append(value)
            value = vars(value).get("__wrapped__") if hasattr(value, "__dict__") else None
    return [one for one in passed if isinstance(one, types.FunctionType)]
