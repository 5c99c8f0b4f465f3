# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the first run of a model tells."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.conversion.chance import with_likes
from sparsekernels.conversion.survey import Call, Given, layers_of, record_inputs
from sparsekernels.pruning import prune_


class _Does(nn.Module):
    """What it is told, whenever it is called."""

    def __init__(self, what: Callable[[Any], object]) -> None:
        super().__init__()
        self.what = what
        self.layer = nn.Linear(8, 8)
        self.seen: dict[str, list[int]] = {"shapes": []}
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.what(self)
        return self.layer(x)


@pytest.mark.parametrize(
    ("what", "repeatable"),
    [
        (lambda model: None, True),
        (lambda model: model.count.add_(0), True),
        (lambda model: model.count.add_(1), False),
        (lambda model: model.seen["shapes"].append(8), False),
        (lambda model: setattr(model, "last", 1), False),
        (lambda model: setattr(model, "count", torch.zeros(())), False),
        (lambda model: torch.rand(()), False),
        (lambda model: random.random(), False),
        (lambda model: model.layer.weight.mul_(2), False),
        (lambda model: model.layer.train(), False),
        (lambda model: model.layer.register_forward_hook(lambda *_: None), False),
    ],
)
def test_whether_a_run_left_everything_as_it_was(what: Callable[[Any], object], repeatable: bool) -> None:
    model = _Does(what).eval()
    with torch.inference_mode():
        recorded = record_inputs(model, layers_of(model), lambda: model(torch.ones(2, 8)))
    assert recorded.repeatable is repeatable


def test_what_layers_and_other_modules_were_given() -> None:
    """By name and id; another run does not add to it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.never, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(input=self.act(self.twice(x))[:1])

    model, x = Net().eval(), torch.ones(2, 8)
    layers = layers_of(model)
    for _ in range(2):
        with torch.inference_mode():
            recorded = record_inputs(model, layers, lambda: model(x))
        assert {name: [one.shape for one in some] for name, some in recorded.given.items()} == {
            "twice": [(2, 8), (1, 8)]
        }
        assert recorded.calls == {id(module): [Call.of((x,), {})] for module in (model, model.act)}


def test_a_first_result_that_is_another_is_not_compared_with(prefer: Prefer) -> None:
    class Starts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.started = nn.Linear(8, 8), False

        def forward(self, x: Tensor) -> Tensor:
            started, self.started = self.started, True
            y = self.layer(x)
            return y if started else -y

    model = Starts().eval()
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    assert sk.convert(model, torch.randn(4, 8)).converted
    assert model.started is False


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_first_result_that_is_another_for_something_outside_of_the_model(prefer: Prefer, in_graph: bool) -> None:
    """What an iterator does. A graph that gives what only the first run gave is not kept."""
    calls = itertools.count()

    class Starts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            if isinstance(x, torch.fx.Proxy):
                return -y if in_graph else y
            return y if next(calls) > 0 else -y

    model, x = Starts().eval(), torch.randn(4, 8)
    prune_(model, "random", 0.7)
    expected = model.layer(x)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert report.converted
    assert bool(list(graphs_of(model))) is not in_graph
    assert any("results differed" in note for note in report.notes) is in_graph
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("where", ["outside", "attribute", "buffer", "dict", "array"])
def test_a_result_that_the_next_call_overwrites_is_kept(prefer: Prefer, where: str, training: bool) -> None:
    """Else each result would be compared with itself."""
    outside, held, array = torch.zeros(4, 8), {"result": torch.zeros(())}, numpy.zeros((4, 8), numpy.float32)

    class Reuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.own = torch.zeros(4, 8)
            self.register_buffer("buffer", torch.zeros(4, 8))

        def forward(self, x: Tensor) -> tuple[Tensor, object]:
            y = self.layer(x)
            result = y.detach() if not hasattr(self.layer, "pattern") else -y.detach()
            if where == "dict":
                held["result"] = result
                return y, held
            if where == "array":
                array[...] = result.numpy()
                return y, array
            place = {"outside": outside, "attribute": self.own, "buffer": self.buffer}[where]
            return y, place.copy_(result)

    model = Reuses().train(training)
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    report = sk.convert(model, torch.randn(4, 8))
    assert not report.converted
    assert any("results differed" in note for note in report.notes)
    assert not any("has a gradient" in note for note in report.notes)


class _Drops(nn.Module):
    """A network that leaves out blocks by chance in training."""

    def __init__(self, blocks: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        self.odd = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.blocks, self.odd):
            if not self.training or torch.rand(()) >= self.share:
                x = x + layer(x)
        return x


@pytest.mark.parametrize("seed", range(3))
def test_chance_decides_nothing(prefer: Prefer, seed: int) -> None:
    """Layers that are alike share a decision, others are waited for; what is never called says so."""
    prefer(FINE, LAYERS)
    x = torch.randn(4, 8, requires_grad=True)
    torch.manual_seed(seed)
    model = _Drops(3, 0.5).train()
    prune_(model, "random", 0.8)
    state = torch.get_rng_state()
    assert [row.decision for row in sk.convert(model, x).layers] == [FINE] * 4
    assert torch.equal(torch.get_rng_state(), state)
    never = _Drops(2, 1.1).train()
    prune_(never, "random", 0.8)
    reasons = {row.reason for row in sk.convert(never, x).layers}
    assert reasons == {"chance left it out: the model draws random numbers, and did not call it in 8 passes"}


def test_experts_share_what_the_busiest_was_given() -> None:
    """Those that saw no or few rows as well; a layer elsewhere keeps its own, and one of other shapes has none."""
    experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    model = nn.ModuleDict({"experts": experts, "head": nn.Linear(8, 8), "other": nn.Linear(8, 9)})
    prune_(model, "random", 0.8)
    rows = {"experts.0": 0, "experts.1": 3, "experts.2": 5, "head": 2}
    given = {name: [Given.of(torch.ones(count, 8))] for name, count in rows.items()}
    found = with_likes(layers_of(model), given)
    shapes = {name: [one.shape[0] for one in some] for name, some in found.items()}
    assert shapes == {**{f"experts.{index}": [5] for index in range(4)}, "head": [2], "other": []}
