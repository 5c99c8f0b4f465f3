# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code asks of a tensor beside its sizes: the class, identity, attributes, a text; and what it returns."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.facts import GraphObstacle
from sparsekernels.conversion.graph.attach import NO_ANSWER
from sparsekernels.conversion.graph.trace import Trace
from sparsekernels.conversion.graph.untraceable import Untraceable
from sparsekernels.conversion.survey import Call
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

Code = Callable[..., Any]


class Net(nn.Module):
    """`code` is its forward."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(1))
        self.kept: dict[str, int] = {}
        self.code = code

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.code(self, *args, **kwargs)


def obstacle(code: Code, *args: Any, **kwargs: Any) -> GraphObstacle | None:
    """Why the code is no graph."""
    try:
        Trace.of(Net(code).eval(), Call.of(args, kwargs))
    except Untraceable as error:
        return error.obstacle
    return None


def expect_alike(code: Code, prefer: Prefer, example: Tensor, calls: list[Tensor], served: list[bool]) -> None:
    """served: which of the calls the graph answers when they come for the second time."""
    torch.manual_seed(1)
    model = Net(code).eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    report = sk.convert(model, example)
    (graph,) = graphs_of(model)
    assert graph.module is model, report.notes
    with torch.no_grad():
        for x, is_served in zip(calls, served, strict=True):
            for _ in range(2):
                torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
            assert (graph.answer((x,), {}) is not NO_ANSWER) == is_served


def doubled(self: Net, x: Tensor, doubles: bool) -> Tensor:
    result = torch.relu(self.layer(x))
    return result * 2 if doubles else result


@functools.singledispatch
def is_dispatched(value: Any) -> bool:
    return False


@is_dispatched.register
def _(value: Tensor) -> bool:
    return True


def matches(self: Net, x: Tensor) -> Tensor:
    match x:
        case Tensor():
            return doubled(self, x, True)
    return doubled(self, x, False)


ASKS: list[Code] = [
    lambda self, x: doubled(self, x, type(x) is Tensor),
    lambda self, x: doubled(self, x, type(x) in (Tensor, nn.Parameter)),
    lambda self, x: doubled(self, x, {Tensor: True}.get(type(x), False)),
    lambda self, x: doubled(self, x, x.__class__ is Tensor),
    lambda self, x: doubled(self, x, type(self.scale) is nn.Parameter),
    lambda self, x: doubled(self, x, type(x.shape[0]) is int),
    lambda self, x: (lambda rows: doubled(self, x, str(type(rows)) == "<class 'int'>"))(x.shape[0]),
    lambda self, x: doubled(self, x, any(type(one) is Tensor for one in [x])),
    lambda self, x: doubled(self, x, Tensor in list(map(type, [x]))),
    lambda self, x: doubled(self, x, is_dispatched(x)),
    matches,
]


@pytest.mark.parametrize("code", ASKS)
def test_the_class_of_a_tensor(code: Code) -> None:
    assert obstacle(code, torch.randn(3, 8)) is GraphObstacle.ASKS_THE_CLASS


def tries(self: Net, x: Tensor) -> Tensor:
    try:
        return doubled(self, x, x.shape[0] in {3})
    except TypeError:
        return x


DECIDES: list[Code] = [
    lambda self, x: doubled(self, x, x.grad_fn is None),
    lambda self, x: doubled(self, x, x.requires_grad is False),
    lambda self, x: doubled(self, x, x._base is None),
    lambda self, x: doubled(self, x, hasattr(x, "mask")),
    lambda self, x: doubled(self, x, getattr(x, "mask", None) is None),
    lambda self, x: doubled(self, x, isinstance(x, nn.Parameter)),
    lambda self, x: doubled(self, x, isinstance(x, torch.FloatTensor)),
    lambda self, x: doubled(self, x, str(x) == ""),
    tries,
]


@pytest.mark.parametrize("code", DECIDES)
def test_what_is_not_known_of_a_tensor(code: Code) -> None:
    assert obstacle(code, torch.randn(3, 8)) is GraphObstacle.DECIDES


HARMLESS: list[Code] = [
    lambda self, x: doubled(self, x, type(self) is nn.Sequential),
    lambda self, x: doubled(self, x, type(x) in (list, tuple)),
    lambda self, x: doubled(self, x, type(self.kept) is dict),
    lambda self, x: doubled(self, x, str(type(x)).startswith("<class 'torch.")),
    lambda self, x: doubled(self, x, len(f"{type([x][0]).__name__} {type(x)}") > 2),
    lambda self, x: doubled(self, x, x.layout is torch.strided),
    lambda self, x: doubled(self, x, not x.is_cuda),
    lambda self, x: doubled(self, x, x.dtype is torch.float32),
    lambda self, x: doubled(self, x, self.layer(x).dtype in {torch.float32}),
    lambda self, x: doubled(self, x, f"{x.ndim} {x.dtype}" == "2 torch.float32"),
    lambda self, x: doubled(self, x, isinstance(self.scale, nn.Parameter)),
    lambda self, x: doubled(self, x, isinstance(self.layer(x).split(4, -1), tuple)),
    lambda self, x: doubled(self, x, isinstance(x.T, Tensor) and not hasattr(self.layer(x), "mask")),
    lambda self, x: self.layer(x).clamp(min=torch.finfo(self.layer(x).dtype).min),
]


@pytest.mark.parametrize("code", HARMLESS)
def test_what_is_known_of_a_tensor(code: Code, prefer: Prefer) -> None:
    expect_alike(code, prefer, torch.randn(3, 8), [torch.randn(5, 8), torch.randn(0, 8)], [True, True])


SIZES: list[Code] = [
    lambda self, x: doubled(self, x, f"{x.shape[0]}" == "3"),
    lambda self, x: doubled(self, x, "%s" % x.shape[0] == "3"),  # noqa: UP031
    lambda self, x: doubled(self, x, str(tuple(x.shape)) == "(3, 8)"),
    lambda self, x: doubled(self, x, divmod(x.shape[0], 3) == (1, 0)),
]


@pytest.mark.parametrize("code", SIZES)
def test_sizes_in_texts(code: Code, prefer: Prefer) -> None:
    calls = [torch.randn(3, 8), torch.randn(4, 8), torch.randn(3, 8)]
    expect_alike(code, prefer, torch.randn(3, 8), calls, [True, False, True])


def test_a_value_that_is_unpacked(prefer: Prefer) -> None:
    """To another number of names than it has elements is an error."""

    def code(self: Net, x: Tensor) -> Tensor:
        rows, _ = x.shape
        first, second = self.layer(x)
        return first * rows + second

    expect_alike(code, prefer, torch.randn(2, 8), [torch.randn(2, 8)], [True])
    torch.manual_seed(1)
    model = Net(code).eval()
    prune_(model, "random", 0.7)
    sk.convert(model, torch.randn(2, 8))
    for wrong, message in ((2, 2, 8), "too many"), ((8,), "not enough"), ((3, 8), "too many"), ((1, 8), "not enough"):
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            model(torch.randn(wrong))


@dataclass
class Result:
    value: Tensor
    more: int = 0


@dataclass
class Computed:
    value: Tensor
    other: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.value = self.value * 2


def with_more(self: Net, x: Tensor) -> Result:
    result = Result(self.layer(x))
    result.another = 1  # type: ignore[attr-defined]
    return result


def twice(self: Net, x: Tensor) -> Any:
    parts = [self.layer(x)]
    return parts, parts


def test_what_is_returned() -> None:
    x = torch.randn(3, 8)
    assert obstacle(lambda self, x: Result(self.layer(x), 3), x) is None
    assert obstacle(lambda self, x: {"value": [self.layer(x), x.shape]}, x) is None
    assert obstacle(lambda self, x: Computed(self.layer(x)), x) is GraphObstacle.RETURNS_MORE
    assert obstacle(with_more, x) is GraphObstacle.RETURNS_MORE
    for code in (lambda self, x: (self.layer(x), self.kept), twice):
        assert obstacle(code, x) is GraphObstacle.RETURNS_ITS_OWN
    assert obstacle(lambda self, parts: (self.layer(parts[0]), parts), [x]) is GraphObstacle.RETURNS_ITS_OWN
