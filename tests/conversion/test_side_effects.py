# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What convert's own calls of a model leave behind: nothing, whatever the model holds, does or raises."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from operator import is_
from typing import Any

import pytest
import torch
import torch.distributed
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Net(nn.Module):
    """Linear, BatchNorm, ReLU, Linear; `act` is what else its forward does with what is between them."""

    def __init__(self, act: Callable[[Tensor], object] = lambda _: None) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.act = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 8), act

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.one(x)).relu()
        self.act(h)
        return self.two(h)


def pruned(model: nn.Module, training: bool = False) -> nn.Module:
    prune_(model, "random", 0.8)
    return model.train(training)


# What a model may hold.

TENSORS: dict[str, Callable[[], Tensor]] = {
    "coo": lambda: torch.eye(4).to_sparse(),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "csc": lambda: torch.eye(4).to_sparse_csc(),
    "meta": lambda: torch.empty(3, device="meta"),
    "uninitialized": nn.UninitializedBuffer,
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "mkldnn": lambda: torch.ones(3).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_any_kind(prefer: Prefer, kind: str, training: bool) -> None:
    """Beside them everything is put back."""
    calls: list[int] = []
    model = pruned(Net(), training)
    model.act = lambda _: model.calls.append(1)
    model.calls, model.odd = calls, TENSORS[kind]()
    model.register_buffer("buffer", TENSORS[kind]())
    prefer(FINE, LAYERS)
    assert sk.convert(model, torch.randn(4, 16)).converted
    assert not calls
    assert not model.norm.running_mean.any()


def test_what_is_written_to_a_sparse_buffer_is_put_back(prefer: Prefer) -> None:
    model = pruned(Net())
    model.register_buffer("adjacency", torch.eye(4).to_sparse())
    model.act = lambda _: model.adjacency.mul_(2)
    prefer(FINE, LAYERS)
    assert sk.convert(model, torch.randn(4, 16)).converted
    assert torch.equal(model.adjacency.to_dense(), torch.eye(4))


@pytest.mark.parametrize("training", [False, True])
def test_lazy_modules(training: bool) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3)).train(training)
    sk.convert(model, torch.randn(2, 3, 6, 6))
    assert not model[1].running_mean.any()
    assert all(module.training is training for module in model.modules())
    assert type(model[3]) is nn.Linear


# What a model may do in a call.


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_what_is_raised_in_any_call_leaves_nothing(prefer: Prefer, error: type[BaseException], training: bool) -> None:
    calls: list[int] = []
    prefer(FINE, GRAPH, LAYERS)
    for last in range(1, 8):
        kept: list[int] = []

        def act(_: Tensor, last: int = last, kept: list[int] = kept) -> None:
            kept.append(1)
            calls.append(1)
            if len(calls) == last:
                raise error

        model = pruned(Net(act), training)
        model.kept, calls[:] = kept, []
        model.one.weight.grad = gradient = torch.ones_like(model.one.weight)
        modules = dict(model.named_modules())
        try:
            sk.convert(model, torch.randn(4, 16))
        except (ValueError, Interrupted):
            assert dict(model.named_modules()) == modules
        assert not kept
        assert not model.norm.running_mean.any()
        assert model.one.weight.grad is gradient
        assert gradient.eq(1).all()


def test_a_forward_that_differentiates(prefer: Prefer) -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                energy = self.two(F.silu(self.one(x))).sum()
                (force,) = torch.autograd.grad(energy, x)
            return energy.detach(), force

    model, x = pruned(Energy()), torch.randn(4, 16)
    with torch.no_grad():
        expected = model(x)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_what_a_model_keeps_is_no_inference_tensor(prefer: Prefer) -> None:
    @functools.lru_cache
    def table(size: int) -> Tensor:
        return torch.ones(size)

    model, x = pruned(Net(lambda h: model.tables.setdefault("here", table(h.shape[1])))), torch.randn(4, 16)
    model.tables = {}
    prefer(FINE, GRAPH, LAYERS)
    with torch.inference_mode():
        sk.convert(model, x)
    assert not table(32).is_inference()
    assert not model.tables


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
