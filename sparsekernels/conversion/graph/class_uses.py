# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the source of a function does with the class of an object: `type(x)` or `x.__class__`."""

from __future__ import annotations

import ast
import builtins
import contextlib
import enum
import functools
import inspect
import operator
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from .stores import names_stored, parts_of, stores_of

_OF_CLASSES = {"__base__", "__bases__", "__mro__", "__subclasses__", "__dict__", "mro"}
"""Attributes in which a subclass differs from its base."""
_NAMES = {"__name__", "__qualname__"}
_HARMLESS = {"isinstance", "issubclass", "str", "repr", "print", "getattr", "hasattr", "type"}
"""Functions that may be given the class of an object."""
_MESSAGES = {"format", "debug", "info", "warning", "warning_once", "warn", "error", "exception", "critical", "log"}
"""Methods that make a text of what they are given."""
_BY_VALUE = {"get", "pop", "setdefault", "index", "count", "__contains__", "__getitem__"}
"""Methods of containers that look for what equals a class."""
_DISPLAYS = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_IGNORED = (ast.Compare, ast.Expr, ast.If, ast.While, ast.Assert, ast.IfExp, ast.UnaryOp, ast.FormattedValue, ast.BinOp)
"""What asks for the truth of a class or makes a text of it; comparisons are looked at by themselves."""
_STORES = (
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.For, ast.AsyncFor),
    *(ast.comprehension, ast.withitem),
)
"""Stores, which are looked at by themselves."""
_PLAIN = (str, bytes, int, float, complex, type(None), types.FunctionType, types.BuiltinFunctionType)


class _Kind(enum.Flag):
    """What a value may be: the class of an object by `type(x)`, by `x.__class__`, in which a module with a graph does
    not differ from others; the name of a class; a container of such."""

    TYPE = enum.auto()
    ATTRIBUTE = enum.auto()
    NAME = enum.auto()
    HELD = enum.auto()


_NOTHING = _Kind(0)
_CLASS = _Kind.TYPE | _Kind.ATTRIBUTE


class Uses:
    """What is done with classes in a function.

    compared          classes of modules that are compared with that of an object, and whether by identity
    names             what the name of an object's class is compared with
    takes_apart       whether it asks for bases of an object's class, or the like
    compares_unknown  whether it compares by identity with what cannot be told
    asks              whether it does something else with the class of an object, that may compare it
    asks_identity     whether that may be by identity
    """

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function
        self.compared: list[tuple[type, bool]] = []
        self.names: list[str] = []
        self.takes_apart = self.compares_unknown = self.asks = self.asks_identity = False
        self._aliases: dict[str, _Kind] = {}
        self._comparisons: set[ast.AST | None] = set()
        if not any({"type", "__class__"} & set(code.co_names) for code in codes_of(function.__code__)):
            return
        tree = self._tree
        if tree is None:
            self.takes_apart = any("type" in code.co_names for code in codes_of(function.__code__))
            return
        self._find_aliases(tree)
        has_own_type = any("type" in code.co_varnames for code in codes_of(function.__code__))
        annotations = {part for node in ast.walk(tree) for one in _annotations_of(node) for part in ast.walk(one)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                self._look_at_comparison(node)
            elif _is_type(node) or _is_class_attribute(node) or self._is_alias(node):
                self._look_at_use(node)
            elif isinstance(node, ast.Name) and node.id == "type" and not has_own_type and node not in annotations:
                self._look_at_type(node)

    def named(self, kind: type) -> Iterator[type]:
        """The classes of modules that the function, a method of `kind` perhaps, names as values: not to ask for
        instances, to make one, or for an attribute."""
        found = _classes_in_reach(self._function, kind)
        if not found or self._tree is None:
            yield from found
            return
        for value in _defaults_of(self._function):
            yield from classes_among(value)
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(self._tree)):
            yield from found
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Name | ast.Attribute) or _is_passed_by(node, self._parents):
                continue
            value = _value_of(node, self._function)
            if isinstance(node, ast.Attribute) and value is None:
                value = next((vars(base)[node.attr] for base in kind.__mro__ if node.attr in vars(base)), None)
            if not (isinstance(value, type) and self._parents.get(node) in self._comparisons):
                yield from classes_among(value)

    @functools.cached_property
    def _tree(self) -> ast.AST | None:
        return _source_of(self._function)

    @functools.cached_property
    def _parents(self) -> dict[ast.AST, ast.AST]:
        tree = self._tree
        return {} if tree is None else {one: node for node in ast.walk(tree) for one in ast.iter_child_nodes(node)}

    def _find_aliases(self, tree: ast.AST) -> None:
        """What variables may be. What is stored elsewhere, in attributes or containers, cannot be followed."""
        stores = [store for node in ast.walk(tree) for store in stores_of(node)]
        shared = {name for node in ast.walk(tree) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
        before = None
        while before != self._aliases:
            before = dict(self._aliases)
            for target, value in stores:
                kind = self._kind_of(value)
                names = names_stored(target) if kind else {}
                for name, is_variable in names.items():
                    if is_variable:
                        self._aliases[name] = self._aliases.get(name, _NOTHING) | kind
                    if kind & _CLASS and (not is_variable or name in shared):
                        self._ask(bool(kind & _Kind.TYPE))

    def _is_alias(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and bool(self._kind_of(node) & _CLASS)

    def _kind_of(self, node: ast.AST) -> _Kind:
        """What an expression may be."""
        if _is_type(node):
            return _Kind.TYPE
        if _is_class_attribute(node):
            return _Kind.ATTRIBUTE
        if isinstance(node, ast.Name):
            return self._aliases.get(node.id, _NOTHING)
        if isinstance(node, ast.Attribute):
            return _Kind.NAME if node.attr in _NAMES and self._kind_of(node.value) & _CLASS else _NOTHING
        kind = functools.reduce(operator.or_, map(self._kind_of, parts_of(node)), _NOTHING)
        return kind | _Kind.HELD if kind and isinstance(node, _DISPLAYS) else kind

    def _look_at_comparison(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for relation, one, other in zip(node.ops, operands, operands[1:], strict=False):
            kinds = self._kind_of(one), self._kind_of(other)
            for kind, against in zip(kinds, (other, one), strict=True):
                if kind & _Kind.NAME:
                    self.names += [str(part.value) for part in ast.walk(against) if isinstance(part, ast.Constant)]
            if not (kinds[0] | kinds[1]) & _CLASS:
                continue
            self._comparisons.add(node)
            by_identity = isinstance(relation, ast.Is | ast.IsNot) and bool((kinds[0] | kinds[1]) & _Kind.TYPE)
            for found in _classes_of(other if kinds[0] & _CLASS else one, self._function):
                if found is not None:
                    self.compared.append((found, by_identity))
                else:
                    self.compares_unknown |= by_identity
                    self._ask(by_identity)

    def _look_at_use(self, node: ast.AST) -> None:
        """What an expression that is the class of an object is part of, comparisons aside."""
        kind, parent = self._kind_of(node), self._parents.get(node)
        while parent is not None and node in parts_of(parent):
            if isinstance(parent, _DISPLAYS):
                kind |= _Kind.HELD
                self._ask(False)
            node, parent = parent, self._parents.get(parent)
        is_type = bool(kind & _Kind.TYPE)
        if isinstance(parent, ast.Attribute):
            self.takes_apart |= is_type and parent.attr in _OF_CLASSES
            if kind & _Kind.HELD and parent.attr not in _NAMES:
                self._ask(is_type and parent.attr not in {"index", "count", "__contains__"})
        elif isinstance(parent, ast.keyword):
            self._ask(is_type)
        elif isinstance(parent, ast.Call):
            if node is not parent.func:
                self._look_at_call(parent, node, is_type)
        elif isinstance(parent, ast.Subscript | ast.Match):
            self._ask(False)
        elif not isinstance(parent, (*_IGNORED, *_STORES)):
            self._ask(is_type)

    def _look_at_call(self, call: ast.Call, node: ast.AST, is_type: bool) -> None:
        function = call.func
        name = function.id if isinstance(function, ast.Name) else ""
        method = function.attr if isinstance(function, ast.Attribute) else ""
        if is_type and (
            (name in ("super", "vars", "id") and node is call.args[0])
            or (name == "issubclass" and node is call.args[-1])
            or (name == "getattr" and any(getattr(one, "value", "") in _OF_CLASSES for one in call.args[1:]))
        ):
            self.takes_apart = True
        elif name not in _HARMLESS and method not in _MESSAGES and not self._is_error(function):
            self._ask(is_type and method not in _BY_VALUE)

    def _is_error(self, node: ast.AST) -> bool:
        value = _value_of(node, self._function)
        return isinstance(value, type) and issubclass(value, BaseException)

    def _look_at_type(self, node: ast.Name) -> None:
        """The name `type`: where it is not called, it may be by others."""
        parent = self._parents.get(node)
        while isinstance(parent, ast.Tuple | ast.BinOp):
            parent = self._parents.get(parent)
        if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name):
            harmless = parent.func is node or parent.func.id in ("isinstance", "issubclass", "cast")
        else:
            harmless = isinstance(parent, ast.Compare | ast.Attribute | ast.Subscript)
        if not harmless:
            self._ask(True)

    def _ask(self, by_identity: bool) -> None:
        self.asks, self.asks_identity = True, self.asks_identity or by_identity


def classes_among(value: Any, depth: int = 3) -> Iterator[type]:
    """The classes of modules that a value is, or holds as a container of containers."""
    if isinstance(value, type):
        if issubclass(value, nn.Module):
            yield value
    elif depth and isinstance(value, dict | list | tuple | set | frozenset):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from classes_among(one, depth - 1)


def imported_by(function: types.FunctionType) -> list[types.ModuleType]:
    """Modules that a function may import when it is called."""
    package = function.__globals__.get("__package__") or ""
    names = [name for code in codes_of(function.__code__) for name in code.co_names]
    found = [sys.modules.get(one) for name in names for one in (name, f"{package}.{name}".rstrip("."))]
    return [one for one in found if isinstance(one, types.ModuleType)]


def codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_of(constant)


def nonlocals_of(function: types.FunctionType) -> dict[str, Any]:
    """What a function has of the one around it."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is empty yet
            found[name] = cell.cell_contents
    return found


def _source_of(function: types.FunctionType) -> ast.AST | None:
    """None where it was made without a file."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError):
        return None


def _defaults_of(function: types.FunctionType) -> list[Any]:
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _classes_in_reach(function: types.FunctionType, kind: type) -> list[type]:
    """The classes of modules that the names in a function, a method of `kind` perhaps, can mean, in whatever order."""
    names = {name for code in codes_of(function.__code__) for name in (*code.co_names, *code.co_freevars)}
    spaces = [nonlocals_of(function), function.__globals__, *map(vars, (*kind.__mro__, *imported_by(function)))]
    left = _defaults_of(function) + [space[name] for space in spaces for name in names if name in space]
    seen: dict[int, Any] = {}
    found: list[type] = []
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, _PLAIN):
            continue
        seen[id(value)] = value
        found += classes_among(value)
        kinds = value.__mro__ if isinstance(value, type) else (type(value),)
        for space in (getattr(value, "__dict__", {}), *map(vars, kinds)):
            left += [space[name] for name in names if name in space]
        if isinstance(value, tuple):
            left += [getattr(value, name) for name in getattr(value, "_fields", ()) if name in names]
    return found


def _is_type(node: ast.AST) -> bool:
    """Whether it is `type(something)`."""
    if not isinstance(node, ast.Call) or len(node.args) != 1:
        return False
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr == "type":
        return isinstance(function.value, ast.Name) and function.value.id == "builtins"
    return isinstance(function, ast.Name) and function.id == "type"


def _is_class_attribute(node: ast.AST) -> bool:
    """Whether it is `something.__class__`, in which a module with a graph does not differ from others."""
    return isinstance(node, ast.Attribute) and node.attr == "__class__"


def _annotations_of(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
        yield node.annotation
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
        yield node.returns


def _is_passed_by(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a name is read for something else than the value that it has."""
    parent = parents.get(node)
    if isinstance(parent, ast.Tuple | ast.BinOp):
        node, parent = parent, parents.get(parent)
    if isinstance(parent, ast.Attribute):
        return parent.attr not in _BY_VALUE
    if isinstance(parent, ast.AnnAssign):
        return node is not parent.value
    if isinstance(parent, ast.arg | ast.FunctionDef):
        return True
    if not isinstance(parent, ast.Call):
        return False
    name = parent.func.id if isinstance(parent.func, ast.Name) else ""
    return node is parent.func or (name in ("isinstance", "issubclass", "super", "cast") and node in parent.args)


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
    return nonlocals_of(function).get(node.id, function.__globals__.get(node.id, getattr(builtins, node.id, None)))
