# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Who imports whom: no circles, also through imports inside of functions, and nothing leads up to the benchmark."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sparsekernels"
FILES = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for path, name in FILES.items()}


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules of ours that a file imports; what is for type checkers alone does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if name in MODULES or base in MODULES:
                    yield name if name in MODULES else base
        else:
            yield from imported(node, package)


def graph() -> dict[str, set[str]]:
    edges = {}
    for name, path in MODULES.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        edges[name] = set(imported(ast.parse(path.read_text(encoding="utf-8")), package)) - {name}
    return edges


def test_no_circles() -> None:
    edges = graph()
    assert "sparsekernels.ops._operation" in edges["sparsekernels.ops.rms_norm.gradients"]
    tuple(graphlib.TopologicalSorter(edges).static_order())  # raises CycleError, which names the circle


def test_nothing_leads_up_to_the_benchmark_and_the_experiments() -> None:
    """Save the command line, which begins there; and experiments know the benchmark, whose networks they train."""
    above = {
        (name, package)
        for name, targets in graph().items()
        for package in ("bench", "experiments")
        if any(f".{package}" in target for target in targets) and f".{package}" not in name
    }
    own = {(name, package) for name, package in above if ".experiments" not in name}
    assert own == {("sparsekernels._cli", "bench"), ("sparsekernels._cli", "experiments")}
