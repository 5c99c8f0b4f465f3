# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the code of a model looks at, and what it leaves behind, is as without convert."""

from __future__ import annotations

import collections
import copy
import random
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Looks(nn.Module):
    """Its forward looks at something beside its parameters, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(8, 8), how
        self.register_buffer("number", torch.tensor(1.0))
        self.register_buffer("flag", torch.tensor(False))
        self.plain = torch.tensor(1.0)
        self.config = types.SimpleNamespace(scale=1.0, inner=types.SimpleNamespace(scale=1.0))
        self.options = {"a": {"scale": [1.0]}}
        self.array = numpy.ones(3)
        self.slots = Slots()
        self.special, self.private = Special(), Private()
        self.helpers = [Helper()]  # not registered

    def scale(self) -> Any:
        return {
            "an item": lambda: self.number.item(),
            "a buffer": lambda: self.number,
            "a flag": lambda: 3.0 if self.flag else 1.0,
            "a plain tensor": lambda: self.plain.item(),
            "an object": lambda: self.config.scale,
            "an object in an object": lambda: self.config.inner.scale,
            "a nested container": lambda: self.options["a"]["scale"][0],
            "an array": lambda: float(self.array[1]),
            "slots": lambda: self.slots.scale,
            "an attribute of a dict": lambda: self.special.scale,
            "a private slot": lambda: self.private.get(),
            "a module in a list": lambda: self.helpers[0].scale,
        }[self.how]()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu() * self.scale()

    def change(self) -> None:
        with torch.no_grad():
            self.number.fill_(3.0)
            self.flag.fill_(True)
            self.plain.fill_(3.0)
        self.config.scale = self.config.inner.scale = self.options["a"]["scale"][0] = self.slots.scale = 3.0
        self.array[1] = 3.0
        self.special.scale = self.helpers[0].scale = 3.0
        self.private.set(3.0)


class Slots:
    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 1.0


class Private:
    __slots__ = ("__scale",)

    def __init__(self) -> None:
        self.__scale = 1.0

    def get(self) -> float:
        return self.__scale

    def set(self, scale: float) -> None:
        self.__scale = scale


class Special(dict):
    """A dict with attributes."""

    scale = 1.0


class Helper(nn.Module):
    scale = 1.0


LOOKS = (
    "an item",
    "a buffer",
    "a flag",
    "a plain tensor",
    "an object",
    "an object in an object",
    "a nested container",
    "an array",
    "slots",
    "an attribute of a dict",
    "a private slot",
    "a module in a list",
)


@pytest.mark.parametrize("how", LOOKS)
def test_what_code_looks_at_may_change(prefer: Prefer, how: str) -> None:
    model = Looks(how).eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, x)
    plans = [graph.prepare() for graph in graphs_of(model)]
    assert len(plans) == (how != "a flag")
    assert all(plan.watch.unchanged() for plan in plans)
    assert_agree(model, dense, x)
    for module in (model, dense):
        module.change()
    for _ in range(3):
        assert_agree(model, dense, x)
    assert all(graph.prepare().watch.unchanged() for graph in graphs_of(model))


def test_trainers_and_the_like_are_not_looked_at_in_each_call(prefer: Prefer) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    prune_(model, "random", 0.7)
    model.data = [[number] for number in range(10_000)]
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, torch.randn(4, 8))
    assert not list(graphs_of(model))
    assert any("hold more than can be looked at" in note for note in report.notes)


class Leaves(nn.Module):
    """Its forward leaves something in an attribute that is no list, dict or set of tensors."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(8, 8), how
        self.queue: collections.deque[Any] = collections.deque(maxlen=3)
        self.nested: dict[str, list[Any]] = {"seen": []}
        self.stats = types.SimpleNamespace(count=0)
        self.total = torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).relu()
        if self.how == "a deque":
            self.queue.append(y)
        elif self.how == "a nested list":
            self.nested["seen"].append(y)
        elif self.how == "an object":
            self.stats.count += 1
        else:
            self.total.add_(1)
        return y

    def left(self) -> tuple[int, int, int, float]:
        return len(self.queue), len(self.nested["seen"]), self.stats.count, float(self.total.sum())


def test_large_lists_are_not_looked_at_in_each_call(prefer: Prefer) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    prune_(model, "random", 0.7)
    model.words = [str(number) for number in range(100_000)]
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, torch.randn(4, 8))
    assert not list(graphs_of(model))


class Awkward:
    """What refuses to be put back, or does other things when it is."""

    def __init__(self) -> None:
        self.__dict__["scale"], self.count = 1.0, 0

    @property
    def scale(self) -> float:
        return self.__dict__["scale"]


class Frozen(dict):
    def clear(self) -> None:
        raise TypeError("frozen")

    def update(self, *_: Any, **__: Any) -> None:
        raise TypeError("frozen")


def test_what_is_awkward_to_put_back(prefer: Prefer) -> None:
    """Does not keep gradients and buffers from being put back."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.awkward, self.frozen = nn.Linear(8, 8), Awkward(), Frozen(count=0)
            self.ordered = collections.OrderedDict(count=0)
            self.array, self.expanded = numpy.zeros(2), torch.zeros(1).expand(3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.awkward.count += 1
            dict.__setitem__(self.frozen, "count", self.frozen["count"] + 1)
            self.ordered["count"] += 1
            self.array[0] += 1
            self.array.flags.writeable = False
            self.calls += 1
            result = self.layer(x)
            self.array.flags.writeable = True
            self.expanded[0:0] = 1.0
            return result

    model = Counts().train()
    prune_(model, "random", 0.7)
    model.layer.weight.grad = torch.ones(8, 8)
    prefer(FINE, LAYERS)
    sk.convert(model, torch.randn(4, 8))
    assert torch.equal(model.layer.weight.grad, torch.ones(8, 8))
    assert (model.awkward.count, model.frozen["count"], model.ordered["count"], model.calls.item()) == (0, 0, 0, 0)
    assert list(model.ordered.items()) == [("count", 0)]
    assert model.array[0] == 0
    assert model.awkward.scale == 1.0


@pytest.mark.parametrize("training", [True, False])
def test_decisions_of_chance_are_the_same_in_what_is_compared(prefer: Prefer, training: bool) -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.queue = nn.Linear(8, 8), [1.0]

        def forward(self, x: Tensor) -> Tensor:
            self.queue[0] += 1.0
            y = self.layer(x) * self.queue[0]
            return y if random.random() < 0.5 else y * 2

    model = Chooses().train(training)
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    assert sk.convert(model, torch.randn(4, 8)).converted


def test_what_a_call_leaves_in_a_layer(prefer: Prefer) -> None:
    """Nothing of convert's own calls; afterwards as before."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.layer.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.layer.calls += 1
            self.layer.last = x
            return self.layer(x)

    model, x = Counts().eval(), torch.randn(4, 8)
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    assert type(model.layer) is sk.nn.SparseLinear
    assert model.layer.calls == 0
    assert not hasattr(model.layer, "last")
    model(x)
    assert model.layer.calls == 1
    del model.layer.last
    sk.revert(model)
    assert model.layer.calls == 1
    assert not hasattr(model.layer, "last")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["a deque", "a nested list", "an object", "a tensor"])
def test_code_goes_on_leaving_what_it_left(prefer: Prefer, how: str, training: bool) -> None:
    """And converting leaves nothing."""
    model = Leaves(how).train(training)
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    assert model.left() == (0, 0, 0, 0.0)
    for calls in (1, 2):
        torch.testing.assert_close(model(x), dense(x))
        assert model.left() == dense.left() != (0, 0, 0, 0.0), calls


def test_all_random_numbers_stay(prefer: Prefer) -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.generator = nn.Linear(8, 8), torch.Generator().manual_seed(1)

        def forward(self, x: Tensor) -> Tensor:
            noise = random.random() + numpy.random.rand() + torch.rand((), generator=self.generator)
            return self.layer(x) + 0 * noise

    model = Draws().eval()
    prune_(model, "random", 0.7)
    before = random.getstate(), str(numpy.random.get_state()), model.generator.get_state()
    prefer(FINE, LAYERS)
    sk.convert(model, torch.randn(4, 8))
    assert before[:2] == (random.getstate(), str(numpy.random.get_state()))
    assert torch.equal(before[2], model.generator.get_state())


class Draw(NamedTuple):
    """A generator, how it is asked, and its state as text."""

    make: Callable[[], Any]
    draw: Callable[[Any], float]
    state: Callable[[Any], str]


DRAWN = {
    "torch": Draw(
        lambda: torch.Generator().manual_seed(1),
        lambda one: float(torch.rand((), generator=one)),
        lambda one: str(one.get_state().tolist()),
    ),
    "python": Draw(lambda: random.Random(1), lambda one: one.random(), lambda one: str(one.getstate())),
    "numpy": Draw(
        lambda: numpy.random.default_rng(1), lambda one: one.random(), lambda one: str(one.bit_generator.state)
    ),
    "RandomState": Draw(
        lambda: numpy.random.RandomState(1), lambda one: one.rand(), lambda one: str(one.get_state()[1].tolist())
    ),
}
HOLDERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda one: [one],
    "dict": lambda one: {"here": one},
    "tuple": lambda one: (one,),
    "object": lambda one: types.SimpleNamespace(here=one),
    "list in a dict in a tuple": lambda one: ({"here": [one, one]},),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("kind", DRAWN)
def test_random_numbers_of_generators_in_containers_stay(prefer: Prefer, kind: str, holder: str) -> None:
    """No graph has the number that was drawn when it was traced, either."""
    make_one, draw, state = DRAWN[kind]
    one = make_one()

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.held = nn.Linear(8, 8), HOLDERS[holder](one)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (1 + draw(one))

    model, x = Draws().eval(), torch.randn(4, 8)
    prune_(model, "random", 0.7)
    before = state(one)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert state(one) == before
    assert report.converted
    assert any("draws random numbers" in note for note in report.notes)
    assert not list(graphs_of(model))


class Stateless(random.Random):
    def getstate(self) -> Any:
        raise NotImplementedError("no state")


@pytest.mark.parametrize("generator", [random.SystemRandom, Stateless])
@pytest.mark.parametrize("training", [False, True])
def test_generators_without_a_state_are_left_alone(prefer: Prefer, generator: type, training: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).train(training)
    model.generators = [generator()]  # type: ignore[assignment]
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, torch.randn(4, 8)).converted
