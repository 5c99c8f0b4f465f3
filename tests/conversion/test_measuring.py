# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What measuring does to arguments and gradients: each call has its own, and nothing that waits for one is told."""

from __future__ import annotations

import copy
import threading
import types
from collections.abc import Iterator
from operator import is_
from typing import Any

import pytest
import torch
import torch.distributed
from acting_net import Net, pruned
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


# Arguments.


class Cache:
    """An argument that keeps state."""

    def __init__(self) -> None:
        self.keys, self.counts, self.seen = torch.zeros(4, 0, 16), torch.zeros(2), {"calls": [0]}

    def update(self, x: Tensor) -> Tensor:
        self.keys = torch.cat([self.keys, x[:, None]], 1)
        self.counts += 1
        self.seen["calls"][0] += 1
        return self.keys


class Locked(Cache):
    """One that Python cannot copy."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Decodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        return self.out(cache.update(self.key(x)).sum(1)) * cache.seen["calls"][0]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Cache, Locked])
def test_an_argument_that_keeps_state(prefer: Prefer, kind: type[Cache], training: bool) -> None:
    """Each call finds it as it was given, and so does the caller."""
    model, cache, x = pruned(Decodes(), training), kind(), torch.randn(4, 16)
    with torch.no_grad():
        model(x, cache)
    keys, counts = cache.keys, cache.counts
    prefer(FINE, LAYERS)
    report = sk.convert(model, x, example_kwargs={"cache": cache})
    assert report.converted
    assert cache.keys is keys
    assert cache.counts is counts
    assert counts.eq(1).all()
    assert cache.seen == {"calls": [1]}


def test_one_tensor_as_two_arguments_is_one_in_each_call(prefer: Prefer) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.helper = nn.Linear(16, 8), nn.Identity()

        def forward(self, query: Tensor, key: Tensor, helper: nn.Module) -> Tensor:
            assert query is key
            assert helper is self.helper
            return self.one(query)

    model, x = pruned(Asks()), torch.randn(4, 16)
    prefer(FINE, LAYERS)
    assert sk.convert(model, (x, x, model.helper)).converted


# Gradients.


def gradients_of(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [None if one.grad is None else one.grad.clone() for one in model.parameters()]


def test_no_parameter_is_told_of_a_gradient(prefer: Prefer) -> None:
    """Neither hooks of parameters nor what else would see one; the model has its own parameters in the end."""
    called: list[int] = []
    model, x = pruned(Net(), training=True), torch.randn(4, 16)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.register_hook(lambda _: called.append(1))
        parameter.register_post_accumulate_grad_hook(lambda _: called.append(1))
        parameter.grad = torch.ones_like(parameter)
    given = [parameter.grad for parameter in parameters]
    prefer(FINE, LAYERS)
    assert sk.convert(model, x).converted
    assert not called
    assert all(map(is_, model.parameters(), parameters))
    assert all(parameter.requires_grad for parameter in parameters)
    assert all(map(is_, [parameter.grad for parameter in parameters], given))
    assert all(gradient is not None and gradient.eq(1).all() for gradient in given)
    gradients_of(model, x)
    assert len(called) == 2 * len(parameters)


class Shares(nn.Module):
    """Parameters in more than one place: tied, in a list, a dict and an object, in a module in a list, in an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.tied, self.recurrent = (*(nn.Linear(16, 16) for _ in range(3)), nn.LSTM(16, 16))
        self.tied.weight = self.two.weight
        self.listed, self.named = [self.one.bias], {"bias": self.two.bias}
        self.object = types.SimpleNamespace(bias=self.tied.bias)
        self.helpers = [nn.Linear(16, 16)]
        self.loose = torch.ones(16, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.two(self.one(x).relu())) + self.listed[0] + self.named["bias"] + self.object.bias
        return self.recurrent(self.helpers[0](x) * self.loose)[0]

    def all(self) -> list[Tensor]:
        return [*self.parameters(), *self.helpers[0].parameters(), self.loose]


def test_parameters_in_several_places(prefer: Prefer) -> None:
    model, x = pruned(Shares(), training=True), torch.randn(4, 16)
    dense, parameters = copy.deepcopy(model), model.all()
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda _: pytest.fail("a gradient arrived"))
    hooks = [parameter._post_accumulate_grad_hooks for parameter in parameters]
    prefer(FINE, LAYERS)
    model.loose._post_accumulate_grad_hooks.clear()  # an attribute, which no parameter stands in for
    assert sk.convert(model, x).converted
    assert all(map(is_, model.all(), parameters))
    assert all(parameter.grad is None for parameter in parameters)
    assert model.listed[0] is model.one.bias
    assert model.object.bias is model.tied.bias
    for one in hooks:
        one.clear()
    for mine, theirs in zip(gradients_of(model, x), gradients_of(dense, x), strict=True):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(torch.where(mine == 0, 0, theirs), mine, rtol=1e-4, atol=1e-5)


def test_a_training_graph_follows_the_models_own_parameters(prefer: Prefer) -> None:
    """It was planned with others in their place; nothing is traced again for that."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Scales())
    x = torch.randn(4, 4, 10, 10)
    pruned(model, training=True)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    (graph,) = graphs_of(model)
    assert graph.prepare().watch.unchanged()
    for one in (model, dense):
        with torch.no_grad():
            one[4].scale.fill_(3.0)
    for mine, theirs in zip(gradients_of(model, x), gradients_of(dense, x), strict=True):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(torch.where(mine == 0, 0, theirs), mine, rtol=1e-4, atol=1e-4)


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


# Models that are wrapped for distributed training.


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("training", [False, True])
def test_a_distributed_model_is_refused_by_name(prefer: Prefer, training: bool) -> None:
    ddp: Any = nn.parallel.DistributedDataParallel(pruned(Net(), training))
    prefer(FINE, LAYERS)
    words = "expected model before DistributedDataParallel wraps it, got "
    with pytest.raises(TypeError, match=words + "a DistributedDataParallel; convert the module inside"):
        sk.convert(ddp, torch.randn(4, 16))
    with pytest.raises(TypeError, match=words + "'0' in a DistributedDataParallel"):
        sk.convert(nn.Sequential(ddp), torch.randn(4, 16))
    for _ in range(2):
        ddp(torch.randn(4, 16)).sum().backward()


@pytest.mark.usefixtures("one_process")
def test_what_a_distributed_model_wraps_is_averaged_afterwards(prefer: Prefer) -> None:
    """Converted after it was wrapped; a static graph counts which gradients arrive in the first steps."""
    averaged: list[int] = []

    def average(_: object, bucket: Any) -> Any:
        averaged.append(1)
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    average.__annotations__.clear()  # torch compares them with classes, these are strings
    for static in (False, True):
        model = pruned(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), training=True)
        x = torch.ones(4, 16)
        ddp: Any = nn.parallel.DistributedDataParallel(model, static_graph=static)
        ddp.register_comm_hook(None, average)
        prefer(FINE, LAYERS)
        assert sk.convert(model, x).converted
        for step in range(1, 4):
            averaged.clear()
            ddp(x).sum().backward()
            assert averaged, step
