# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert, and what the code of a model does: what it looks at, leaves behind, takes and returns."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import math
import random
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from conversion_checks import (
    DROPPED,
    FINE,
    GRAPH,
    LAYERS,
    Prefer,
    assert_agree,
    graphs_of,
    run,
)
from conversion_nets import drop_channels_, make
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.agreement import are_close, differentiable, kept, leaves_of
from sparsekernels.conversion.graph.base import Graph
from sparsekernels.conversion.graph.inference import InferenceGraph
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


# What code looks at, and what it leaves behind.


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


def test_large_models_are_graphs() -> None:
    """What torch keeps in every module does not count."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), *[nn.ReLU() for _ in range(2000)]).eval()
    graph = InferenceGraph(model, torch.float32, torch.device("cpu"), True)
    assert graph.prepare().watch.unchanged()


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


def test_code_that_asks_whether_it_is_given_a_tensor(prefer: Prefer) -> None:
    """Takes the way that it takes for one; where it depends on the size, that is no graph."""

    class Asks(nn.Module):
        def __init__(self, looks: bool) -> None:
            super().__init__()
            self.layer, self.looks = nn.Linear(8, 8), looks

        def forward(self, x: Any) -> Any:
            y = self.layer(x).relu()
            if isinstance(x, list | Tensor) and (not self.looks or x.shape[0] == 1):
                return y * 0 - 1
            return y

    x = torch.randn(4, 8)
    for looks in (False, True):
        model = Asks(looks).eval()
        prune_(model, "random", 0.7)
        dense = copy.deepcopy(model)
        prefer(FINE, GRAPH, LAYERS)
        sk.convert(model, x)
        assert bool(list(graphs_of(model))) == (not looks)
        for batch in (x, x[:1]):
            assert_agree(model, dense, batch)


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


@dataclasses.dataclass
class Output:
    """What a model may return; torch's pytrees do not know it."""

    scores: Tensor
    name: str


class Own(dict):
    """Neither do they know this."""


@dataclasses.dataclass(slots=True)
class WithSlots:
    scores: Tensor


@pytest.mark.parametrize("training", [True, False])
def test_results_in_an_object(prefer: Prefer, training: bool) -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Output:
            return Output(self.layer(x), "scores")

    model = Wraps().train(training)
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, LAYERS)
    report = sk.convert(model, x)
    assert report.converted
    assert not any("forward passes were measured" in note for note in report.notes)
    torch.testing.assert_close(model(x).scores, dense(x).scores)


def test_a_model_without_gradients_in_training_mode(prefer: Prefer) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).train().requires_grad_(False)
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    assert any("forward passes were measured" in note for note in sk.convert(model, torch.randn(4, 8)).notes)


def test_results_are_compared_whatever_they_are() -> None:
    ints = torch.arange(32)
    other = ints.clone()
    other[3] = 0
    assert are_close(other, ints)
    assert not are_close(ints + 1, ints)
    assert not are_close(torch.tensor([True, False]), torch.tensor([False, True]))
    assert are_close(torch.tensor([1 + 2j]), torch.tensor([1 + 2.0001j]))
    assert not are_close(torch.tensor([1 + 2j]), torch.tensor([0j]))
    assert are_close(Output(torch.ones(2), "a"), Output(torch.ones(2) * 1.0001, "a"))
    assert not are_close(Output(torch.ones(2), "a"), Output(torch.ones(2), "b"))
    assert not are_close(Output(torch.ones(2), "a"), Output(torch.zeros(2), "a"))
    assert are_close(slice(1, 2), slice(1, 2))
    assert not are_close("a", 1)
    assert are_close(Own(y=torch.ones(2)), Own(y=torch.ones(2) * 1.0001))
    assert not are_close(Own(y=torch.ones(2)), Own(y=torch.zeros(2)))
    assert not are_close(Own(y=torch.ones(2)), Own(z=torch.ones(2)))
    ones = numpy.ones(3, numpy.float32)
    assert are_close(ones, ones * numpy.float32(1.0001))
    assert not are_close(ones, ones * 0)
    assert are_close(WithSlots(torch.ones(2)), WithSlots(torch.ones(2)))
    assert not are_close(WithSlots(torch.ones(2)), WithSlots(torch.zeros(2)))
    assert are_close(1.0, 1.0001)
    assert not are_close(1.0, 1.1)
    assert are_close(math.nan, math.nan)
    assert not are_close(lambda: 1, lambda: 1)
    rings = [Own(), Own()]
    for ring, value in zip(rings, (1.0, 2.0), strict=True):
        ring["self"], ring["value"] = ring, torch.tensor(value)
    assert are_close(rings[0], rings[0])
    assert not are_close(*rings)
    assert [float(one) for one in leaves_of(rings)] == [1.0, 2.0]


def test_what_is_kept_of_a_result_does_not_change_with_it() -> None:
    ring = Own(y=[torch.ones(2), "a"])
    ring["self"] = ring
    for value, change in (
        (ring, lambda: ring["y"].append(1)),
        (output := Output(torch.ones(2), "a"), lambda: output.scores.zero_()),
        (slots := WithSlots(torch.ones(2)), lambda: slots.__setattr__(WithSlots.__slots__[0], torch.zeros(2))),
        (array := numpy.ones(3), lambda: array.fill(0)),
    ):
        as_it_was = kept(value)
        assert are_close(value, as_it_was)
        assert are_close(as_it_was, kept(value))
        change()
        assert not are_close(value, as_it_was)
    with torch.inference_mode():
        assert len(differentiable(kept((nn.Parameter(torch.ones(2)), torch.ones(2))))) == 1


def test_of_what_raises_when_it_is_looked_at_nothing_is_kept() -> None:
    class Refuses(dict):
        def items(self) -> Any:
            raise RuntimeError("no")

    one = Refuses()
    assert not are_close(one, kept(one))


def test_what_a_graph_raises_is_said(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("sequential")
    prefer(FINE, GRAPH, LAYERS)

    def fails(*_: Any) -> Tensor:
        raise OSError("no such thing")

    monkeypatch.setattr(Graph, "forward", fails)
    notes = sk.convert(model, x).notes
    assert any("Run as a graph, the model raised OSError: no such thing: not used." in note for note in notes)


def test_results_that_cannot_be_compared_are_no_error(prefer: Prefer) -> None:
    class Strange:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no")

        __hash__ = None

    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x), Strange()

    model = Returns().eval()
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    report = sk.convert(model, torch.randn(4, 8))
    assert not report.converted
    assert any("gave other results" in note for note in report.notes)
    assert not any("was not reliably faster" in note for note in report.notes)


def test_sizes_are_no_tensors(prefer: Prefer) -> None:
    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor, dims: Any = (2, 3)) -> Tensor:
            if not isinstance(dims, tuple | list):
                dims = (dims,)
            y = self.conv(x).relu()
            height = y.shape[2] // 2
            assert not isinstance(height, Tensor)
            assert not isinstance(y.size(0), Tensor)
            assert isinstance(y + 1, Tensor)
            return y[:, :, :height].mean(dims)

    model, x = Sizes().eval(), torch.randn(2, 8, 9, 9)
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    assert_agree(model, dense, x)
    assert_agree(model, dense, torch.randn(3, 8, 13, 11))


def test_a_tuple_is_an_argument_by_default(prefer: Prefer) -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor, dims: tuple[int, ...] = (2, 3)) -> Tensor:
            return self.conv(x).relu().mean(dims)

    model, x = Pools().eval(), torch.randn(2, 8, 9, 9)
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    assert_agree(model, dense, x)
    torch.testing.assert_close(model(x, (1, 2)), dense(x, (1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["a number", "by name", "a part is not called"])
def test_a_graph_that_could_not_serve_is_none(prefer: Prefer, how: str) -> None:
    """Its parts are graphs then, and the report says why."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.how = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), how
            self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())

        def forward(self, x: Tensor, index: int = 0) -> Tensor:
            if how != "a part is not called":
                return self.head(self.body(x)) * (index + 1)
            assert x.shape[0] == 2  # no graph
            for layer in self.body:
                x = layer(x)
            return self.head(x)

    model, x = Wrapper().eval(), torch.randn(2, 8, 9, 9)
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    if how == "by name":
        report = sk.convert(model, example_kwargs={"x": x})
    else:
        report = sk.convert(model, (x, 1) if how == "a number" else x)
    found = {type(graph.module) for graph in graphs_of(model)}
    assert found == {nn.Sequential}
    assert len(list(graphs_of(model))) == (1 if how == "a part is not called" else 2)
    expected = (
        "body does not run as a graph: it is not called as a whole" if how == "a part is not called" else "by keywords"
    )
    assert any(expected in note for note in report.notes), report.notes
    assert_agree(model, dense, x)


def test_attributes_of_layers_stay_theirs(prefer: Prefer) -> None:
    class Tagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.layer.tag = 3.0

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.layer.tag

    for training in (True, False):
        model = Tagged().train(training)
        prune_(model, "random", 0.7)
        dense, x = copy.deepcopy(model), torch.randn(4, 8)
        prefer(FINE, GRAPH, LAYERS)
        sk.convert(model, x)
        torch.testing.assert_close(model(x), dense(x))
        model.layer.tag = 5.0
        assert sk.revert(model).layer.tag == 5.0


@pytest.mark.parametrize("what", ["parameter", "buffer", "module"])
def test_a_layer_that_was_given_more_stays(what: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    prune_(model, "random", 0.7)
    if what == "parameter":
        model[0].register_parameter("scale", nn.Parameter(torch.ones(1)))
    elif what == "buffer":
        model[0].register_buffer("scale", torch.ones(1))
    else:
        model[0].observer = nn.Identity()
    report = sk.convert(model.eval(), torch.randn(4, 8))
    assert "beside its own" in report.layers[0].reason


def test_the_default_device_may_be_another(prefer: Prefer) -> None:
    model, x = make("sequential")
    drop_channels_(model)
    dense = copy.deepcopy(model)
    prefer(DROPPED, GRAPH)
    with torch.device("meta"):
        sk.convert(model, x)
    assert_agree(model, dense, x)
    for module in (model, dense):
        with torch.no_grad():
            module[0].weight.mul_(2)
    with torch.device("meta"), torch.no_grad():
        result = model(x)
    torch.testing.assert_close(result, run(dense, x)[0], rtol=1e-3, atol=1e-4)


def test_tensors_of_other_devices_are_the_layers_business(prefer: Prefer) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()).eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(2, 8, 5, 5))
    (graph,) = graphs_of(model)
    seen = []
    graph._run = lambda *_: seen.append(1)
    with torch.no_grad(), contextlib.suppress(Exception):
        model(torch.randn(2, 8, 5, 5, device="meta"))
    assert not seen


def test_empty_batches_in_channels_last(prefer: Prefer) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.pool, self.two = nn.Conv2d(16, 8, 1), nn.AvgPool2d(1), nn.Conv2d(8, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return (self.two(self.pool(self.one(x))) + x).relu()

    model, x = Sums().eval(), torch.randn(2, 16, 8, 8)
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.no_grad():
        assert model(torch.empty(0, 16, 8, 8).to(memory_format=torch.channels_last)).shape == (0, 16, 8, 8)


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast(prefer: Prefer, training: bool) -> None:
    """No graph serves there: layers are measured as they will run."""
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).train(training), torch.randn(2, 8, 9, 9)
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, LAYERS)
    with torch.autocast("cpu", torch.bfloat16):
        report = sk.convert(model, x)
        assert report.converted
        assert any("under autocast" in note for note in report.notes)
        torch.testing.assert_close(model(x), dense(x), rtol=0.05, atol=0.05)


def test_parameters_keep_their_order(prefer: Prefer) -> None:
    """Optimizers know them by it; `prune.remove` puts a weight behind its bias."""
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval(), torch.randn(2, 8, 9, 9)
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", 0.8)
        prune.remove(layer, "weight")
    names = list(model.state_dict())
    assert names[0] == "0.bias"
    for decision in (FINE, DROPPED):
        drop_channels_(model)
        prefer(decision, LAYERS)
        assert sk.convert(model, x).converted
        assert list(model.state_dict()) == names
        sk.revert(model)
        assert list(model.state_dict()) == names
