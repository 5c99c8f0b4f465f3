# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Where the values of expressions go in the source of a function: into other expressions, and into what they store."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any


def parts_of(node: ast.AST) -> list[Any]:
    """The expressions of which the values become that of an expression, or go into it."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return node.elts
    if isinstance(node, ast.Dict):
        return [*filter(None, node.keys), *node.values]
    if isinstance(node, ast.Starred | ast.NamedExpr | ast.Subscript | ast.Await):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        return [node.elt]
    if isinstance(node, ast.DictComp):
        return [node.key, node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult | ast.BitOr):
        return [node.left, node.right]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast":
        return node.args
    return []


def stores_of(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Targets, and the expressions of which they get values."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _pairs(target, node.value)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        yield node.target, node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr
    elif isinstance(node, ast.Match):
        for case in node.cases:
            yield case.pattern, node.subject


def _pairs(target: ast.AST, value: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Those of `a, b = c, d`."""
    targets, values = _elements(target), _elements(value)
    if targets and len(targets) == len(values):
        for one, other in zip(targets, values, strict=True):
            yield from _pairs(one, other)
    else:
        yield target, value


def _elements(node: ast.AST) -> list[ast.expr]:
    """Those of a tuple or a list as it is written; none where one has a star."""
    elements = node.elts if isinstance(node, ast.Tuple | ast.List) else []
    return [] if any(isinstance(one, ast.Starred) for one in elements) else elements


def names_stored(target: ast.AST) -> dict[str, bool]:
    """The names in a target, and whether they are variables; not so: attributes, and names of containers."""
    if isinstance(target, ast.Name):
        return {target.id: True}
    if isinstance(target, ast.Attribute | ast.Subscript):
        return {ast.unparse(target): False}
    if isinstance(target, ast.MatchAs | ast.MatchStar | ast.MatchMapping):
        name = target.rest if isinstance(target, ast.MatchMapping) else target.name
        found = {} if name is None else {name: True}
    else:
        found = {}
    for part in ast.iter_child_nodes(target):
        if isinstance(part, ast.pattern) or not isinstance(target, ast.pattern):
            found |= names_stored(part)
    return found
