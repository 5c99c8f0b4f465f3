# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What this package uses of torch and is not public there."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels._torch import ATTRIBUTES, TorchDispatchMode, apply_of

PACKAGE = Path(sk.__file__).parent
EXAMPLES: dict[type, object] = {
    nn.Module: nn.Module(),
    nn.Conv2d: nn.Conv2d(1, 1, 1),
    Tensor: torch.zeros(1, requires_grad=True),
    TorchDispatchMode: TorchDispatchMode(),
}


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Of all files but the one that has torch's private names, with where they are."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "_torch.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}", node


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_are_imported_in_one_file() -> None:
    found = []
    for place, node in nodes():
        name = ""
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            name = ".".join([str(node.module), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Import):
            name = ".".join(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
        root, *rest = name.split(".")
        if root in ("torch", "nn", "F") and rest[:2] != ["ops", "sparsekernels"] and any(map(is_private, rest)):
            found.append(f"{place}: {name}")
    assert not found


def test_private_attributes_are_listed() -> None:
    """Those that are read, overridden, or named in a list of attributes; not fields of our own classes."""
    read, overridden, own = set(), set(), set()
    for _, node in nodes():
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            (own if of_self and isinstance(node.ctx, ast.Store) else read).add((of_self, node.attr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add((False, node.value))
        elif isinstance(node, ast.ClassDef):
            overridden |= {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    used = filter(is_private, overridden | {name for _, name in read - own})
    used = {name for name in used if any(hasattr(one, name) for one in EXAMPLES.values())}
    assert used == {name for names in ATTRIBUTES.values() for name in names}


@pytest.mark.parametrize("kind", ATTRIBUTES, ids=lambda kind: kind.__name__)
def test_private_attributes_are_there(kind: type) -> None:
    assert not [name for name in ATTRIBUTES[kind] if not hasattr(EXAMPLES[kind], name)]


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        scaled = x * factor
        return scaled, scaled * weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, weight, ctx.factor = inputs
        ctx.needed = ctx.needs_input_grad
        ctx.save_for_backward(output[0], weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, to_scaled: Tensor | None, to_output: Tensor | None) -> tuple[Tensor | None, ...]:
        scaled, weight = ctx.saved_tensors
        assert ctx.needed == ctx.needs_input_grad == (True, True, False)
        if to_output is None:
            return to_scaled * ctx.factor, None, None
        through = to_output * weight
        return (through if to_scaled is None else through + to_scaled) * ctx.factor, to_output * scaled, None


def test_apply_of_is_apply() -> None:
    """The same results, gradients of two orders, and name of the step in autograd's graph."""
    found = []
    for apply in (apply_of(_Scaled), _Scaled.apply):
        x, weight = (torch.arange(1.0, 4.0, dtype=torch.float64, requires_grad=True) for _ in range(2))
        output = apply(x, weight, 2.0)[1]
        first = torch.autograd.grad(output.pow(2).sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(first[0].pow(3).sum() + first[1].sum(), (x, weight))
        found.append((output.grad_fn.name(), output, *first, *second))
    assert found[0][0] == found[1][0]
    for mine, theirs in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.equal(mine, theirs)


def test_training_calls_inspect_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than a small kernel. torch moved it from Python to C++ once, where it came back."""
    layer = sk.nn.SparseLinear.from_dense(torch.nn.Linear(16, 8), mask=torch.rand(8, 16) < 0.5)
    norm = sk.nn.RMSNorm(16)
    x = torch.randn(4, 16, requires_grad=True)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a signature was inspected")

    monkeypatch.setattr(inspect, "signature", refuse)
    layer(sk.add_rms_norm(norm(x), x, (16,), norm.weight)[0]).sum().backward()
    assert x.grad is not None
