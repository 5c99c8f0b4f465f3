# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Functions and other callables that a forward finds in lists, dicts and objects, and calls: these may change."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from acting_net import pruned
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def doubled(h: Tensor) -> Tensor:
    return h * 2


def raised(h: Tensor) -> Tensor:
    return h + 1


def calls_its_own(h: Tensor) -> Tensor:
    for function in calls_its_own.functions:  # type: ignore[attr-defined]
        h = function(h)
    return h


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, h: Tensor) -> Tensor:
        return h * self.factor

    def apply(self, h: Tensor) -> Tensor:
        return self(h)


REGISTERED: list[Callable[[Tensor], Tensor]] = []


class Calls(nn.Module):
    """What it calls between its layers is given by a function of it."""

    def __init__(self, read: Callable[[Any], Iterable[Callable[[Tensor], Tensor]]]) -> None:
        super().__init__()
        self.one, self.two, self.read = nn.Linear(16, 32), nn.Linear(32, 8), read
        self.listed, self.named = [doubled], {"first": doubled}
        self.ordered = collections.OrderedDict(first=doubled)
        self.nested = {"first": collections.deque([doubled])}
        self.object, self.bound = Scale(2.0), [Scale(2.0).apply]
        self.partial = [functools.partial(torch.mul, other=2.0)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x).relu()
        for function in self.read(self):
            h = function(h)
        result: Tensor = self.two(h)
        return result


CHANGES: dict[str, tuple[Callable[[Any], Iterable[Any]], Callable[[Any], object]]] = {
    "one more": (lambda model: model.listed, lambda model: model.listed.append(raised)),
    "another": (lambda model: model.listed, lambda model: model.listed.__setitem__(0, raised)),
    "none": (lambda model: model.listed, lambda model: model.listed.clear()),
    "a dict": (lambda model: model.named.values(), lambda model: model.named.update(first=raised)),
    "an ordered dict": (lambda model: model.ordered.values(), lambda model: model.ordered.update(second=raised)),
    "within": (lambda model: model.nested["first"], lambda model: model.nested["first"].append(raised)),
    "an object": (lambda model: [model.object], lambda model: setattr(model.object, "factor", 5.0)),
    "a bound method": (lambda model: model.bound, lambda model: setattr(model.bound[0].__self__, "factor", 5.0)),
    "a partial": (lambda model: model.partial, lambda model: model.partial[0].keywords.update(other=5.0)),
    "a global": (lambda _: REGISTERED, lambda _: REGISTERED.append(raised)),
    "of a function": (lambda _: [calls_its_own], lambda _: calls_its_own.functions.append(raised)),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_is_called_may_change(prefer: Prefer, how: str) -> None:
    read, change = CHANGES[how]
    REGISTERED[:] = [doubled]
    calls_its_own.functions = [doubled]  # type: ignore[attr-defined]
    model, x = pruned(Calls(read)), torch.randn(4, 16)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, x)
    assert list(graphs_of(model))
    with torch.no_grad():
        before = model(x)
        change(model)
        results = [model(x) for _ in range(3)]
        expected = sk.revert(model)(x)
    assert not torch.allclose(before, expected)
    for result in results:
        torch.testing.assert_close(result, expected)
