# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model's code asks of the layers that its graph calls as they are, and what it does to them beside calling."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


class Net(nn.Module):
    """`act` is called with it and what is between its layers; what that gives is a factor."""

    def __init__(self, act: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.last = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.group, self.own, self.act = nn.GroupNorm(2, 8), Own(), act
        self.conv.gate = 1.0  # type: ignore[assignment]
        self.own.register_forward_hook(lambda *_: None)  # so that the graph calls it as it is
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        return self.own(self.group(self.last(h))) * self.scale * self.act(self, h)


def twins(
    act: Callable[[Any, Tensor], Any], training: bool, prefer: Prefer, is_graph: bool | None = True
) -> tuple[Any, Any]:
    """The converted model, and the same before."""
    torch.manual_seed(0)
    model = Net(act).train(training)
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, torch.randn(3, 8, 8, 8))
    assert report.converted
    if is_graph is not None:
        assert any(graph.module is model for graph in graphs_of(model)) is is_graph, report.notes
    return model, dense


def assert_alike(model: Any, dense: Any, calls: int = 3) -> None:
    x = torch.randn(2, 8, 8, 8)
    with torch.set_grad_enabled(model.training):
        for _ in range(calls):
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)


CHANGES: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[Any], object]]] = {
    "of a layer": (lambda net, _: net.conv.gate, lambda net: setattr(net.conv, "gate", 3.0)),
    "new, of a layer": (lambda net, _: 1 + hasattr(net.last, "gate"), lambda net: setattr(net.last, "gate", 3.0)),
    "new, of torch's": (lambda net, _: getattr(net.group, "gain", 1), lambda net: setattr(net.group, "gain", 3)),
    "of torch's": (lambda net, _: net.group.eps + 1, lambda net: setattr(net.group, "eps", 1.0)),
    "of a user's": (lambda net, _: net.own.scale, lambda net: setattr(net.own, "scale", 3.0)),
    "of a BatchNorm": (lambda net, _: net.norm.momentum, lambda net: setattr(net.norm, "momentum", 0.5)),
    "a mode": (lambda net, _: 1 + net.group.training, lambda net: net.group.train(not net.group.training)),
    "number of parameters": (
        lambda net, _: len(list(net.parameters())),
        lambda net: net.group.register_parameter("more", nn.Parameter(torch.zeros(1))),
    ),
    "number of buffers": (
        lambda net, _: 1 + len(net.group._buffers),
        lambda net: net.group.register_buffer("more", torch.zeros(1)),
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_attributes_that_change_later(name: str, training: bool, prefer: Prefer) -> None:
    act, change = CHANGES[name]
    model, dense = twins(act, training, prefer)
    assert_alike(model, dense)
    for one in (model, dense):
        change(one)
    assert_alike(model, dense)


def sets_momentum(net: Any, _: Tensor) -> float:
    net.norm.momentum = 0.5
    return 1.0


@pytest.mark.parametrize("training", [False, True])
def test_settings_of_a_layer_that_forward_makes(training: bool, prefer: Prefer) -> None:
    model, dense = twins(sets_momentum, training, prefer, None)
    assert model.norm.momentum == 0.1
    assert_alike(model, dense, 5)
    assert model.norm.momentum == 0.5
    torch.testing.assert_close(model.norm.running_mean, dense.norm.running_mean)


def freezes(net: Any, _: Tensor) -> float:
    net.last.requires_grad_(False)
    return 1.0


def clips(net: Any, _: Tensor) -> float:
    for one in net.group.parameters():
        one.data = one.data.clamp(-2.0, 2.0)
    return 1.0


def trains(net: Any, x: Tensor) -> float:
    with torch.enable_grad():
        (x.detach().mean() * net.scale).sum().backward()
    return 1.0


def seeds(net: Any, _: Tensor) -> float:
    np.random.seed(7)
    return 1.0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("act", [freezes, clips, trains, seeds])
def test_what_forward_does_each_time(act: Callable[[Any, Tensor], Any], training: bool, prefer: Prefer) -> None:
    np.random.seed(0)
    model, dense = twins(act, training, prefer, False)
    assert all(one.requires_grad and one.grad is None for one in model.parameters())
    for one in (model, dense):
        with torch.no_grad():
            one.group.weight.fill_(3.0)
    assert_alike(model, dense)
    for one, other in zip(model.parameters(), dense.parameters(), strict=True):
        assert one.requires_grad is other.requires_grad
        torch.testing.assert_close(one.detach(), other.detach())
        torch.testing.assert_close(one.grad, other.grad)
    if act is seeds:
        assert np.random.random_sample() == np.random.RandomState(7).random_sample()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_size_in_the_result(memory_format: torch.memory_format, prefer: Prefer) -> None:
    class WithSize(Net):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y, y.shape, [y.shape[2:]]

    torch.manual_seed(0)
    model = WithSize(lambda *_: 1.0).eval()
    prune_(model, "random", 0.8)
    prefer(FINE, GRAPH)
    assert sk.convert(model, torch.randn(3, 8, 8, 8)).converted
    with torch.no_grad():
        for _ in range(3):
            _, size, sizes = model(torch.randn(2, 8, 8, 8).to(memory_format=memory_format))
            assert [type(one) for one in (size, *sizes)] == [torch.Size, torch.Size]


def test_another_thread_exchanges_weights_while_a_copy_is_traced(prefer: Prefer) -> None:
    """Which its first call does: what the other thread put there stays."""
    model, _ = twins(lambda *_: 1.0, False, prefer)
    for turn in range(40):
        one, new = copy.deepcopy(model), torch.full((1,), 2.0)
        began = threading.Event()

        def swap(one: Any = one, new: Tensor = new, began: Any = began, turn: int = turn) -> None:
            began.wait()
            time.sleep(turn * 4e-5)
            one.scale.data = new

        thread = threading.Thread(target=swap)
        thread.start()
        began.set()
        with torch.no_grad():
            one(torch.randn(1, 8, 8, 8))
        thread.join()
        assert one.scale.data_ptr() == new.data_ptr()
