# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A training graph whose model is changed, hooked, or called in part: its modules run where they have to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from torch import Tensor, nn
from training_graph_checks import calls, gradients, trained

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.agreement import point_alike
from sparsekernels.conversion.graph.batch_norm import dropout_by_torch
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a mode": lambda net: net.norms[0].eval(),
    "dropout off": lambda net: net.dropout.eval(),
    "a probability": lambda net: setattr(net, "p", 0.0),
    "a probability of a module": lambda net: setattr(net.dropout, "p", 0.0),
    "an eps": lambda net: setattr(net.norms[0], "eps", 0.5),
    "a momentum": lambda net: setattr(net.norms[0], "momentum", 0.9),
    "another class": lambda net: setattr(net.relu6, "__class__", nn.Tanh),
    "a norm less": lambda net: net.norms.__setitem__(0, nn.Identity()),
    "other parameters": lambda net: setattr(net.norms[0], "weight", nn.Parameter(torch.full((8,), 3.0))),
    "other statistics": lambda net: setattr(net.norms[0], "running_mean", torch.ones(8)),
    "no statistics": lambda net: [setattr(net.norms[0], f"running_{name}", None) for name in ("mean", "var")],
    "no scale": lambda net: setattr(net.norms[0], "weight", None),
    "no shift": lambda net: setattr(net.norms[0], "bias", None),
    "in place": lambda net: net.norms[0].weight.data.fill_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_count(prefer: Prefer, change: str) -> None:
    model, x = trained(0.5)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    found = []
    with dropout_by_torch():
        for one in (model, dense):
            torch.manual_seed(1)
            one(x)
            CHANGES[change](one)
            found.append(gradients(one, x))
    mine, theirs = found
    behind = 2 + len(list(model.parameters()))
    torch.testing.assert_close(mine[0], theirs[0], rtol=2e-3, atol=2e-4)
    assert point_alike([*mine[1:behind]], [*theirs[1:behind]])
    torch.testing.assert_close(mine[behind:], theirs[behind:], rtol=1e-4, atol=1e-5)


def of_inference_mode(norm: Any) -> None:
    with torch.inference_mode():
        norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()


ERRORS: dict[str, Callable[[Any], Any]] = {
    "a scale of one number": lambda norm: setattr(norm, "weight", nn.Parameter(torch.ones(1))),
    "a shift of one number": lambda norm: setattr(norm, "bias", nn.Parameter(torch.ones(1))),
    "a mean of one number": lambda norm: setattr(norm, "running_mean", torch.ones(1)),
    "a variance of more": lambda norm: setattr(norm, "running_var", torch.ones(9)),
    "no mean": lambda norm: setattr(norm, "running_mean", None),
    "statistics of inference mode": of_inference_mode,
}


@pytest.mark.parametrize("change", ERRORS)
def test_errors_are_torchs(prefer: Prefer, change: str) -> None:
    model, x = trained()
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    messages = []
    for one in (model, dense):
        ERRORS[change](one.norms[0])
        with pytest.raises((RuntimeError, ValueError)) as raised:
            one(x)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_hooks_count(prefer: Prefer) -> None:
    model, x = trained()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    seen: list[str] = []
    handles = [model.norms[0].register_forward_hook(lambda *_: seen.append("norm"))]
    handles.append(model.relu6.register_full_backward_hook(lambda *_: seen.append("relu6")))
    model(x).sum().backward()
    assert seen == ["norm", "relu6"]
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert seen == ["norm", "relu6"]


def test_hooks_that_were_there(prefer: Prefer) -> None:
    """A BatchNorm or a ReLU with a hook is called as it is; the others are fused."""
    model, x = trained()
    seen: list[str] = []
    model.norms[0].register_forward_hook(lambda *_: seen.append("norm"))
    model.relu6.register_forward_hook(lambda *_: seen.append("relu6"))
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert {"norms.0", "relu6", "relu"} <= set(calls(model))
    seen.clear()
    model(x)
    assert seen == ["norm", "relu6"]


def test_copies(prefer: Prefer) -> None:
    model, x = trained()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    model(x)
    other = copy.deepcopy(model)
    (mine,), (theirs,) = graphs_of(model), graphs_of(other)
    assert mine is not theirs
    assert theirs.module is other
    with torch.no_grad():
        other.norms[5].weight.fill_(0)
        other.norms[5].bias.fill_(0)
    assert (other(x) - other.convs[6].bias[:, None, None]).abs().max() < 1e-5
    assert (model(x) - model.convs[6].bias[:, None, None]).abs().max() > 0.1


class Shared(nn.Module):
    """One ReLU and one dropout, behind a BatchNorm and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8)
        self.relu, self.drop = nn.ReLU(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.relu(self.bn(self.conv(x)))).mean((2, 3))
        return self.drop(self.relu(self.fc(x)))


SHARED_CHANGES: dict[str, Callable[[Any], Any]] = {
    "dropout off": lambda net: net.drop.eval(),
    "a probability": lambda net: setattr(net.drop, "p", 0.0),
    "another class": lambda net: setattr(net.relu, "__class__", nn.Sigmoid),
}


@pytest.mark.parametrize("change", SHARED_CHANGES)
def test_modules_that_are_also_called_elsewhere(prefer: Prefer, change: str) -> None:
    model = Shared().train()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(4, 8, 9, 9)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert any(name.startswith("sparsekernels_norm") for name in calls(model))
    assert {"relu", "drop"} <= set(calls(model))
    results = []
    for one in (model, dense):
        SHARED_CHANGES[change](one)
        with dropout_by_torch():
            torch.manual_seed(0)
            results.append(one(x))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_hooks_of_modules_that_are_also_called_elsewhere(prefer: Prefer) -> None:
    model = Shared().train()
    prune_(model, "random", 0.8)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(4, 8, 9, 9))
    seen: list[int] = []
    model.relu.register_forward_hook(lambda *_: seen.append(1))
    model(torch.randn(4, 8, 9, 9))
    assert len(seen) == 2


def test_a_norm_that_is_called_twice_or_read(prefer: Prefer) -> None:
    """It stays as it is: the order of its calls, and what it has when it is read, count."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.read = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.last = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.bn(self.conv(x)), self.bn(self.conv(2 * x + 1))
            c = F.relu(self.read(F.relu(a) + b))
            return self.last(c) + self.read.weight.abs().sum()

    model = Twice().train()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(4, 8, 9, 9)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert sum(name.startswith("sparsekernels_norm") for name in calls(model)) == 1
    for one in (model, dense):
        one(x)
        one.read.weight = nn.Parameter(torch.full((8,), 3.0))
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(model.buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_schedule_of_the_momentum(prefer: Prefer) -> None:
    """The graph goes on with it."""
    model, x = trained()
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    (graph,) = graphs_of(model)
    for momentum in (0.5, 0.25, 0.125):
        for one in (model, dense):
            for norm in one.norms:
                norm.momentum, norm.eps = momentum, momentum / 10
            one(x)
        assert graph.prepare().watch.unchanged()
    for mine, theirs in zip(model.buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
