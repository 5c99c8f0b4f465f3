# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What models keep in attributes, and what is assigned to a converted model: layers in lists, settings of the root."""

from __future__ import annotations

import collections
import contextvars
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import DROPPED, FINE, GRAPH, LAYERS, Prefer, graphs_of
from conversion_nets import drop_channels_
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.pruning import prune_


class InAList(nn.Module):
    """Its layers are also in an attribute, by which it calls them."""

    def __init__(self, held: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.order = held([self.a, self.b])

    def forward(self, x: Tensor) -> Tensor:
        layers = self.order.values() if isinstance(self.order, dict) else self.order
        for layer in layers:
            x = layer(x)
        result: Tensor = self.c(x)
        return result


@pytest.mark.parametrize("held", [list, tuple, lambda layers: dict(enumerate(layers))])
def test_layers_in_an_attribute_stay(prefer: Prefer, held: Any) -> None:
    model, x = InAList(held).eval(), torch.randn(3, 8)
    prune_(model, "random", 0.5)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    rows = {row.name: row for row in report.layers}
    assert [rows[name].decision == FINE for name in "abc"] == [False, False, True]
    assert "order" in rows["a"].reason
    for one in (model, dense):
        one.a.weight = nn.Parameter(torch.ones(8, 8))
        one.b.register_forward_hook(lambda module, args, output: 2 * output)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(model(x), dense(x))
    sk.revert(model)
    assert all(type(one) is nn.Linear for one in (model.a, model.b, model.c))


class Root(nn.Module):
    temperature = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def act(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x))) * self.temperature
        return x * self.scale if hasattr(self, "scale") else x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", [("temperature", 4.0), ("scale", 3.0), ("act", F.gelu)])
def test_an_attribute_that_the_model_gets_later(prefer: Prefer, change: tuple[str, Any], training: bool) -> None:
    model, x = Root().train(training), torch.randn(2, 3, 6, 6)
    prune_(model, "random", 0.5)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    for one in (model, dense):
        setattr(one, *change)
    with torch.set_grad_enabled(training):
        for _ in range(3):
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_a_forward_of_its_own_is_not_lost(prefer: Prefer) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), torch.randn(3, 8)
    prune_(model, "random", 0.5)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    layer = model[0]
    layer.forward = lambda x: type(layer).forward(layer, x) + 1  # type: ignore[method-assign]
    expected = model(x)
    for step in (sk.revert, lambda model: sk.convert(model, x)):
        with pytest.raises(RuntimeError, match=r"'0' was given a forward of its own since.*del layer\.forward"):
            step(model)
        assert torch.equal(model(x), expected)
    del layer.forward
    sk.revert(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("shape", [(1,), (), (4, 8)])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("decision", [FINE, DROPPED])
def test_a_bias_that_torch_broadcasts(prefer: Prefer, decision: str, grad: bool, shape: tuple[int, ...]) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), torch.randn(4, 8)
    prune_(model, "random", 0.5)
    drop_channels_(model)
    dense = copy.deepcopy(model)
    prefer(decision, GRAPH, LAYERS)
    sk.convert(model, x)
    bias = torch.randn(shape)
    for one in (model, dense):
        one[0].bias = nn.Parameter(bias.clone())
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            torch.testing.assert_close(model(x), dense(x))
    if grad:
        for one in (model, dense):
            one(x).sum().backward()
        torch.testing.assert_close(model[0].bias.grad, dense[0].bias.grad)


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_strided(self.conv(x), (4,), (1,))


def test_elements_by_where_they_lie(prefer: Prefer) -> None:
    model, x = Strided().eval(), torch.randn(2, 3, 6, 6)
    prune_(model, "random", 0.5)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert any("as_strided" in note for note in report.notes)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


class Instantiates(collections.OrderedDict[str, type]):
    """As transformers has its activations: what it gives is made of what it holds."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


class InstantiatesAll(list[type]):
    def __iter__(self) -> Any:
        return (kind() for kind in super().__iter__())


ACTIVATIONS, MORE_ACTIVATIONS = Instantiates(relu=nn.ReLU), InstantiatesAll([nn.ReLU])


def test_containers_that_make_what_they_give(prefer: Prefer) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            (last,) = MORE_ACTIVATIONS
            return last(ACTIVATIONS["relu"](self.layer(x)))

    torch.manual_seed(0)
    model = Net().eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    x = torch.randn(3, 16)
    sk.convert(model, x)
    assert dict.__getitem__(ACTIVATIONS, "relu") is nn.ReLU
    assert list.__getitem__(MORE_ACTIVATIONS, 0) is nn.ReLU
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


COLLECTED: contextvars.ContextVar[list[Tensor] | None] = contextvars.ContextVar("collected", default=None)


def collect(module: nn.Module, args: Any, result: Tensor) -> None:
    collected = COLLECTED.get()
    if collected is not None:
        collected.append(result)


class Collecting(nn.Module):
    """As transformers collects hidden states: by hooks, which it registers when they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, collects: bool = False) -> Any:
        if collects and not self.a._forward_hooks:
            self.a.register_forward_hook(collect)
        token = COLLECTED.set([] if collects else None)
        try:
            result = self.b(torch.relu(self.a(x)))
            return result, tuple(COLLECTED.get() or ())
        finally:
            COLLECTED.reset(token)


def test_what_hooks_leave_for_forward(prefer: Prefer) -> None:
    torch.manual_seed(0)
    model = Collecting().eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    x = torch.randn(3, 16)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    with torch.no_grad():
        for collects in (False, True, True, True, False, False):
            torch.testing.assert_close(model(x, collects=collects), dense(x, collects=collects), rtol=1e-4, atol=1e-5)
