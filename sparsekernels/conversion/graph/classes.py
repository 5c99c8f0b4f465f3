# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which classes of modules code tells from their subclasses (`type(self) is Net`), of which a conversion makes one.

By the source of `forward`, and of the methods and functions that it names, at any depth. Where a graph hangs on a
module, `==`, sets and dicts are no concern: its class equals the one that it is made of.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from ..watch.reach import is_library
from .attach import own_class

_MOST = 100_000
"""Functions that are looked at."""
_OF_CLASSES = {"__base__", "__bases__", "__mro__", "__subclasses__", "__dict__", "mro"}
"""Attributes in which a subclass differs from its base."""


class ComparedClasses:
    """The classes that the code of some modules tells from their subclasses, and where."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._where: dict[type, str] = {}
        self._by_value: dict[type, str] = {}
        self._anything = ""
        functions = _Functions()
        for kind in dict.fromkeys(map(own_class, modules)):
            for function, is_method in functions.of_class(kind):
                for found, by_identity in _compared_in(function):
                    if found is None:
                        if is_method:  # other functions compare values of all kinds
                            self._anything = self._anything or function.__qualname__
                    else:
                        (self._where if by_identity else self._by_value).setdefault(found, function.__qualname__)

    def by_identity(self, kind: type) -> str:
        """The name of a function that may compare `kind` by identity; empty where none does."""
        return self._where.get(kind, self._anything)

    def at_all(self, kind: type) -> str:
        """The name of a function that names `kind` and compares it in whatever way; empty where none does."""
        return self._where.get(kind, "") or self._by_value.get(kind, "")


_Reached = tuple[types.FunctionType, bool]
"""A function, and whether it is a method, or one that a decorator of a method calls."""


class _Functions:
    """Functions that can be reached from the `forward` of classes, each once."""

    def __init__(self) -> None:
        self._seen: set[_Reached] = set()

    def of_class(self, kind: type) -> Iterator[_Reached]:
        left: list[_Reached] = [(one, True) for one in _methods(kind, ("forward",))]
        while left and len(self._seen) < _MOST:
            reached = function, is_method = left.pop()
            if reached in self._seen or is_library(function.__globals__.get("__name__")):
                continue
            self._seen.add(reached)
            yield reached
            names = [name for code in _codes_of(function.__code__) for name in code.co_names]
            left += [(one, True) for one in _methods(kind, names)]
            spaces = [function.__globals__]
            modules = [value for name in names if isinstance(value := spaces[0].get(name), types.ModuleType)]
            spaces += [vars(module) for module in modules if not is_library(module.__name__)]
            values = [space[name] for space in spaces for name in names if name in space]
            left += [(one, False) for value in values for one in _functions_of(value)]
            left += [(one, is_method) for value in _nonlocals_of(function).values() for one in _functions_of(value)]


def _methods(kind: type, names: Iterable[str]) -> Iterator[types.FunctionType]:
    for name in dict.fromkeys(names):
        for base in kind.__mro__:
            yield from _functions_of(vars(base).get(name))


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The functions behind a property, a class method, decorators; and those of the decorators."""
    for name in ("fget", "func", "__func__"):
        value = getattr(value, name, value) if not isinstance(value, types.FunctionType | type) else value
    passed: list[Any] = []
    while not isinstance(value, type | None) and all(value is not one for one in passed):
        passed.append(value)
        value = vars(value).get("__wrapped__") if hasattr(value, "__dict__") else None
    return [one for one in passed if isinstance(one, types.FunctionType)]


def _nonlocals_of(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is empty yet
            found[name] = cell.cell_contents
    return found


def _codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_of(constant)


_Compared = tuple[type | None, bool]
"""A class, None where it may be any; and whether it is compared by identity."""


def _compared_in(function: types.FunctionType) -> Iterator[_Compared]:
    """What a function compares with the class of an object."""
    if not any("type" in code.co_names for code in _codes_of(function.__code__)):
        return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError):  # made without a file
        yield None, True
        return
    kinds = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_type(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def is_kind(node: ast.AST) -> bool:
        return _is_type(node) or (isinstance(node, ast.Name) and node.id in kinds)

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for operator, one, other in zip(node.ops, operands, operands[1:], strict=False):
                by_identity = isinstance(operator, ast.Is | ast.IsNot)
                if is_kind(one) or is_kind(other):
                    classes = _classes_of(other if is_kind(one) else one, function)
                    yield from ((kind, by_identity) for kind in classes if kind is not None or by_identity)
        elif isinstance(node, ast.Attribute) and is_kind(node.value) and node.attr in _OF_CLASSES:
            yield None, True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            name, args = node.func.id, node.args
            if (name in ("super", "vars", "id") and is_kind(args[0])) or (name == "issubclass" and is_kind(args[-1])):
                yield None, True


def _is_type(node: ast.AST) -> bool:
    """Whether it is `type(something)`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"


def _classes_of(node: ast.AST, function: types.FunctionType) -> Iterator[type | None]:
    """The classes of modules that are written there; None for what cannot be told."""
    if isinstance(node, ast.Constant):
        return
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        for one in node.elts:
            yield from _classes_of(one, function)
        return
    value = _value_of(node, function)
    if not isinstance(value, type):
        yield None
    elif issubclass(value, nn.Module):
        yield value


def _value_of(node: ast.AST, function: types.FunctionType) -> Any:
    """What a name, with or without dots, means in a function."""
    if isinstance(node, ast.Attribute):
        return getattr(_value_of(node.value, function), node.attr, None)
    if not isinstance(node, ast.Name):
        return None
    return _nonlocals_of(function).get(node.id, function.__globals__.get(node.id, getattr(builtins, node.id, None)))
