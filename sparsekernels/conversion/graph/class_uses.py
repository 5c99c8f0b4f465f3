# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the source of a function does with the class of an object: `type(x)` or `x.__class__`."""

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

_OF_CLASSES = {"__base__", "__bases__", "__mro__", "__subclasses__", "__dict__", "mro"}
"""Attributes in which a subclass differs from its base."""
_NAMES = {"__name__", "__qualname__"}
_HARMLESS = {"isinstance", "issubclass", "str", "repr", "print", "getattr", "hasattr", "cast", "type"}
"""Functions that may be given the class of an object."""
_BY_VALUE = {"get", "pop", "setdefault", "index", "count", "__contains__", "__getitem__"}
"""Methods of containers that look for what equals a class."""
_DISPLAYS = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.Subscript)


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
        if not any({"type", "__class__"} & set(code.co_names) for code in codes_of(function.__code__)):
            return
        tree = _source_of(function)
        if tree is None:
            self.takes_apart = any("type" in code.co_names for code in codes_of(function.__code__))
            return
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self._aliases = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.NamedExpr) and _is_type(node.value)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                self._look_at_comparison(node)
            elif self._is_kind(node) or _is_class_attribute(node):
                self._look_at_use(node)

    def named(self, kind: type) -> Iterator[type]:
        """The classes of modules that the function, a method of `kind` perhaps, names as values: not to ask for
        instances, to make one, or for an attribute."""
        tree = _source_of(self._function)
        if tree is None:
            return
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name | ast.Attribute) or _is_passed_by(node, parents):
                continue
            value = _value_of(node, self._function)
            if isinstance(node, ast.Attribute) and value is None:
                value = next((vars(base)[node.attr] for base in kind.__mro__ if node.attr in vars(base)), None)
            if not (isinstance(value, type) and isinstance(parents.get(node), ast.Compare)):  # these are in `compared`
                yield from classes_among(value)

    def _is_kind(self, node: ast.AST) -> bool:
        """Whether it is `type(something)`, or a name for that."""
        if isinstance(node, ast.NamedExpr):
            return _is_type(node.value)
        is_read = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        return _is_type(node) or (is_read and node.id in self._aliases)  # type: ignore[attr-defined]

    def _look_at_comparison(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, one, other in zip(node.ops, operands, operands[1:], strict=False):
            for this, against in ((one, other), (other, one)):
                if isinstance(this, ast.Attribute) and this.attr in _NAMES and self._is_class(this.value):
                    self.names += [str(part.value) for part in ast.walk(against) if isinstance(part, ast.Constant)]
            by_identity = isinstance(operator, ast.Is | ast.IsNot) and (self._is_kind(one) or self._is_kind(other))
            if not (self._is_class(one) or self._is_class(other)):
                continue
            for found in _classes_of(other if self._is_class(one) else one, self._function):
                if found is not None:
                    self.compared.append((found, by_identity))
                else:
                    self.compares_unknown |= by_identity
                    self.asks, self.asks_identity = True, self.asks_identity or by_identity

    def _is_class(self, node: ast.AST) -> bool:
        return self._is_kind(node) or _is_class_attribute(node)

    def _look_at_use(self, node: ast.AST) -> None:
        """What an expression that is the class of an object is part of, comparisons aside."""
        parent = self._parents.get(node)
        if isinstance(parent, ast.Attribute):
            self.takes_apart |= parent.attr in _OF_CLASSES and self._is_kind(node)
        elif isinstance(parent, ast.Call) and node is not parent.func:
            function = parent.func
            name = function.id if isinstance(function, ast.Name) else ""
            if self._is_kind(node) and (
                (name in ("super", "vars", "id") and node is parent.args[0])
                or (name == "issubclass" and node is parent.args[-1])
            ):
                self.takes_apart = True
            elif name not in _HARMLESS:
                by_value = isinstance(function, ast.Attribute) and function.attr in _BY_VALUE
                self._ask(not by_value and self._is_kind(node))
        elif isinstance(parent, _DISPLAYS):
            self._ask(False)
        elif isinstance(parent, ast.Return | ast.IfExp | ast.BoolOp | ast.keyword):
            self._ask(self._is_kind(node))

    def _ask(self, by_identity: bool) -> None:
        self.asks, self.asks_identity = True, self.asks_identity or by_identity


def classes_among(value: Any) -> Iterator[type]:
    """The classes of modules that a value is, or holds as a container."""
    if isinstance(value, type):
        held: Iterable[Any] = (value,)
    elif isinstance(value, dict):
        held = (*value, *value.values())
    else:
        held = value if isinstance(value, list | tuple | set | frozenset) else ()
    return (one for one in held if isinstance(one, type) and issubclass(one, nn.Module))


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


def _is_type(node: ast.AST) -> bool:
    """Whether it is `type(something)`."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"
    return is_call and len(node.args) == 1  # type: ignore[attr-defined]


def _is_class_attribute(node: ast.AST) -> bool:
    """Whether it is `something.__class__`, in which a module with a graph does not differ from others."""
    return isinstance(node, ast.Attribute) and node.attr == "__class__"


def _is_passed_by(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a name is read for something else than the value that it has."""
    parent = parents.get(node)
    if isinstance(parent, ast.Tuple | ast.BinOp):
        node, parent = parent, parents.get(parent)
    if isinstance(parent, ast.Attribute):
        return parent.attr not in _BY_VALUE
    if isinstance(parent, ast.arg | ast.FunctionDef | ast.AnnAssign):
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
