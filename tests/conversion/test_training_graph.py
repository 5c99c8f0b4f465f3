# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert in training mode: the graph in which BatchNorm, sum, ReLU and dropout are one step, and pooling is ours."""

from __future__ import annotations

import copy
import importlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graph_of, graphs_of
from conversion_nets import make
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench.models import MODELS
from sparsekernels.conversion.agreement import point_alike
from sparsekernels.conversion.graph.batch_norm import FusedNorm, dropout_by_torch
from sparsekernels.conversion.graph.tracing import Untraceable
from sparsekernels.conversion.graph.training import TrainingGraph
from sparsekernels.pruning import prune_
from sparsekernels.testing import compare

norm_module = importlib.import_module("sparsekernels.conversion.graph.batch_norm")

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Stack(nn.Module):
    """BatchNorms with all that may stand behind them, each between two convolutions."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(7))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(6))
        self.norms[3] = nn.BatchNorm2d(8, momentum=None)
        self.norms[4] = nn.BatchNorm2d(8, affine=False)
        self.norms[5] = nn.BatchNorm2d(8, track_running_stats=False)
        self.relu, self.relu6, self.dropout = nn.ReLU(inplace=True), nn.ReLU6(), nn.Dropout(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.convs[0](x)))
        x = self.dropout(self.relu6(self.norms[1](self.convs[1](x))))
        x = F.dropout(F.relu(self.norms[2](self.convs[2](x))), self.p, self.training)
        x = self.norms[3](self.convs[3](x))
        x = torch.relu(self.norms[4](self.convs[4](x)))
        x = F.hardtanh(self.norms[5](self.convs[5](x)))
        return self.convs[6](x)


def trained(p: float = 0.0) -> tuple[nn.Module, Tensor]:
    model = Stack(p).train()
    prune_(model, "random", 0.8)
    with torch.no_grad():
        for norm in model.norms:
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
    return model, torch.randn(6, 8, 9, 11)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, the gradients for it at the nonzeros, and the buffers afterwards."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    result = model(x)
    result.square().mean().backward()
    assert x.grad is not None
    found = [result.detach(), x.grad]
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(torch.where(parameter != 0, parameter.grad, 0) if parameter.dim() > 1 else parameter.grad)
    return found + [buffer.clone() for buffer in model.buffers()]


def assert_steps_alike(model: nn.Module, dense: nn.Module, wide: nn.Module, x: Tensor) -> None:
    """Results, gradients and buffers of a step, against the modules in float64; counts against those in float32."""
    for mine, truth, baseline in zip(
        gradients(model, x), gradients(wide, x.double()), gradients(dense, x), strict=True
    ):
        if truth.is_floating_point():
            torch.testing.assert_close(mine.double(), truth, rtol=1e-3, atol=1e-5)
        else:
            assert torch.equal(mine, baseline)


def calls(model: nn.Module) -> list[str]:
    return [name.partition(":")[2] for name in graph_of(model)]


def test_results(prefer: Prefer) -> None:
    """Results, gradients and running statistics over several steps, against the modules in float64."""
    model, x = trained()
    dense = copy.deepcopy(model)
    wide = copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    report = sk.convert(model, x)
    assert report.mode == "train"
    assert any(
        "BatchNorm and the residual sum, ReLU and dropout behind it are one step" in note for note in report.notes
    )
    assert not {"dropout", "relu", "relu6", "hardtanh"} & {name.rpartition(".")[2] for name in calls(model)}
    norms = [name for name in calls(model) if name.startswith("sparsekernels_norm_")]
    assert len(norms) == 6
    for step in range(3):
        assert_steps_alike(model, dense, wide, x + step)
    assert [int(norm.num_batches_tracked) for norm in model.norms[:4]] == [3, 3, 3, 3]
    sk.revert(model)
    assert not list(graphs_of(model))


def test_oracle(prefer: Prefer) -> None:
    """A forward pass, element by element."""
    model, x = trained()
    dense, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.no_grad():
        comparison = compare("result", model(x), wide(x.double()), dense(x))
    assert comparison.passed, comparison


def test_dropout(prefer: Prefer) -> None:
    """Another draw in each call, the same from the same seed; torch's own on request."""
    model, x = trained(0.4)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with dropout_by_torch():
        torch.manual_seed(4)
        mine = model(x)
        torch.manual_seed(4)
        theirs = dense(x)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    torch.manual_seed(4)
    one, other = model(x), model(x)
    torch.manual_seed(4)
    assert torch.equal(one, model(x))
    assert not torch.equal(one, other)
    # over many draws, what torch's dropout gives
    with torch.no_grad():
        mean_of_mine = torch.stack([model(x) for _ in range(400)]).mean(0)
        mean_of_theirs = torch.stack([dense(x) for _ in range(400)]).mean(0)
    assert (mean_of_mine - mean_of_theirs).abs().mean() < 0.15 * mean_of_theirs.abs().mean()


def test_evaluation_and_back(prefer: Prefer) -> None:
    """In evaluation mode the layers run one by one; the graph waits."""
    model, x = trained(0.4)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    torch.testing.assert_close(model.eval()(x), dense.eval()(x), rtol=1e-3, atol=1e-4)
    before = model.norms[0].running_mean.clone()
    assert torch.equal(before, dense.norms[0].running_mean)
    model.train()(x)
    assert not torch.equal(before, model.norms[0].running_mean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_calls_are_the_modules(prefer: Prefer, dtype: torch.dtype) -> None:
    model, x = trained()
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for one in (model, dense):
        one.to(dtype)
    torch.testing.assert_close(model(x.to(dtype)), dense(x.to(dtype)), rtol=3e-2, atol=3e-2)
    for one in (model, dense):
        one.float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x), dense(x), rtol=3e-2, atol=3e-2)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last), dense(last), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="more than 1 value"):
        model.norms[0](torch.ones(1, 8, 1, 1))
    with pytest.raises(ValueError, match="more than 1 value"):
        model(torch.ones(1, 8, 1, 1))


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


def test_second_derivatives(prefer: Prefer) -> None:
    """A gradient penalty, as the modules give it."""
    model, x = trained()
    dense = copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    found = []
    for one, given in ((model, x), (dense, x.double())):
        given = given.clone().requires_grad_()
        (first,) = torch.autograd.grad(one(given).square().sum(), given, create_graph=True)
        penalty = first.square().sum()
        found.append(torch.autograd.grad(penalty, [norm.weight for norm in one.norms if norm.affine]))
    for mine, truth in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-2, atol=1e-3 * truth.abs().max().item())


def test_without_gradients(prefer: Prefer) -> None:
    """Statistics are taken all the same, as by torch."""
    model, x = trained()
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(model.buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


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


DRAWS: dict[str, Callable[[Any], float]] = {
    "torch": lambda net: float(torch.rand(())),
    "python": lambda net: random.random(),
    "numpy": lambda net: float(numpy.random.rand()),
    "a Generator of torch": lambda net: float(torch.rand((), generator=net.torch)),
    "a Random": lambda net: net.python.random(),
    "a Generator of numpy": lambda net: float(net.numpy.random()),
    "a RandomState": lambda net: float(net.numpy_state.rand()),
}


class Awkward(nn.Module):
    """What a graph would record once, or not at all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.again = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.how = how
        self.python, self.numpy, self.torch = random.Random(1), numpy.random.default_rng(1), torch.Generator()
        self.numpy_state = numpy.random.RandomState(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "no_grad":
            with torch.no_grad():
                x = self.norm(x)
            return self.again(x)
        if self.how == "checkpoint":
            return self.again(checkpoint(self.norm, x, use_reentrant=False))
        if self.how == "reentrant checkpoint":
            return self.again(checkpoint(self.norm, x, use_reentrant=True))
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.again(F.relu(self.norm(x)))
        x = F.relu(self.norm(x))
        return x if DRAWS[self.how](self) < 0.5 else self.again(x)

    def states(self) -> list[Any]:
        own = self.torch.get_state().tolist(), self.python.getstate(), self.numpy.bit_generator.state
        everyones = torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()
        return [*own, *everyones, self.numpy_state.get_state()[1].tolist()]


@pytest.mark.parametrize("how", ["no_grad", "checkpoint", "reentrant checkpoint", "autocast", *DRAWS])
def test_what_a_graph_would_lose_is_not_traced(prefer: Prefer, how: str) -> None:
    model = Awkward(how).train()
    prune_(model, "random", 0.8)
    before = [str(state) for state in model.states()]
    with pytest.raises(Untraceable):
        TrainingGraph(model, torch.float32, torch.device("cpu")).prepare()
    assert [str(state) for state in model.states()] == before  # what was drawn was given back
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(4, 8, 6, 6))
    assert not list(graphs_of(model))


def test_a_part_that_can_be_traced(prefer: Prefer) -> None:
    """Where the whole cannot."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return x if x.sum() > 0 else -x

    model = Outer().train()
    prune_(model, "random", 0.8)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(4, 8, 6, 6))
    (graph,) = graphs_of(model)
    assert graph.module is model.inner


def test_a_graph_that_is_wrong_is_not_used(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = trained()
    prefer(FINE, GRAPH, LAYERS)
    genuine = FusedNorm.forward
    wrongs: list[Callable[[Tensor], Tensor]] = [lambda y: 1.01 * y, Tensor.detach, lambda y: y + 0 * y.mean()]
    used = []
    for wrong in wrongs:
        monkeypatch.setattr(FusedNorm, "forward", lambda self, x, wrong=wrong: wrong(genuine(self, x)))
        report = sk.convert(model, x)
        used.append(bool(list(graphs_of(model))))
        assert any("gave other results" in note for note in report.notes) is not used[-1]
    assert used == [False, False, True]


def test_slower_graphs_are_not_used(prefer: Prefer) -> None:
    model, x = trained()
    prefer(FINE, LAYERS, GRAPH)
    sk.convert(model, x)
    assert not list(graphs_of(model))
    assert isinstance(model.convs[1], sk.nn.SparseConv2d)


@pytest.mark.parametrize("name", ["pre-activation", "residual", "residual, shortcut first"])
def test_training_goes_on(prefer: Prefer, name: str) -> None:
    """Twenty steps beside the dense model; dropout is torch's, which draws the same."""
    model, x = make(name)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    optimizers = [torch.optim.SGD(module.train().parameters(), 0.02, momentum=0.9) for module in (model, dense)]
    sk.convert(model, x)
    assert list(graphs_of(model))
    losses: list[list[float]] = [[], []]
    masks = [parameter != 0 for parameter in dense.parameters()]
    with dropout_by_torch():
        for step in range(20):
            for index, (module, optimizer) in enumerate(zip((model, dense), optimizers, strict=True)):
                optimizer.zero_grad()
                torch.manual_seed(step)
                loss = (module(x) - 1).square().mean()
                loss.backward()
                losses[index].append(loss.item())
                for parameter, mask in zip(module.parameters(), masks, strict=True):
                    if parameter.dim() > 1:
                        parameter.grad.mul_(mask)
                optimizer.step()
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=5e-3, atol=1e-4)
    assert losses[0][-1] < 0.8 * losses[0][0]


def test_a_network_by_the_clock() -> None:
    """WRN-28-2 converts to a graph that passes its check, and is faster by it."""
    model = MODELS["wrn-28-2"].make().train()
    prune_(model, "random", 0.9)
    report = sk.convert(model, MODELS["wrn-28-2"].images(16))
    assert list(graphs_of(model))
    assert report.speedup is not None
    assert report.speedup > 1


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


def test_code_that_looks_whether_gradients_are_wanted(prefer: Prefer) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.conv(x))
            return x if torch.is_grad_enabled() else -x

    model = Looks().train()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(4, 8, 9, 9)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert list(graphs_of(model))
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)


def test_one_backward_pass_of_both(prefer: Prefer) -> None:
    """torch's BatchNorm saves running statistics, which the graph moves: as torch does, without counting a change."""
    model, x = trained()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    versions = [buffer._version for buffer in model.norms[0].buffers()]
    one = model(x.contiguous(memory_format=torch.channels_last).requires_grad_())
    other = model(x)
    (one.sum() + other.sum()).backward()
    moved = [buffer._version - version for buffer, version in zip(model.norms[0].buffers(), versions, strict=True)]
    assert moved == [0, 0, 2]


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


def test_what_torch_refuses_is_refused(prefer: Prefer) -> None:
    model, x = trained()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    model.norms[0].eps = 0.0
    with pytest.raises(ValueError, match="eps"):
        model(x)
    model.norms[0].eps = 1e-5
    model.norms[0].running_mean = torch.zeros(9)
    with pytest.raises(RuntimeError, match="running_mean"):
        model(x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_new_statistics_of_a_model_for_inference(prefer: Prefer, mode: Callable[[], Any]) -> None:
    """torch's BatchNorm counts batches, but no change of its running statistics."""
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.inference_mode():
        model(x)
    for one in (model, dense):
        one.train()
        with mode():
            one(3 * x + 1)
        one.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)


def test_statistics_count_in_the_check(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = trained()
    prefer(FINE, GRAPH, LAYERS)
    monkeypatch.setattr(norm_module, "_track", lambda *_: None)
    report = sk.convert(model, x)
    assert not list(graphs_of(model))
    assert any("gave other results" in note for note in report.notes)


def test_the_package_does_without_numpy() -> None:
    """As torch does: it is no requirement."""
    program = "import sys; sys.modules['numpy'] = None; import sparsekernels as sk, torch; from torch import nn\n"
    program += "net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).train()\n"
    program += "with torch.no_grad(): net[0].weight[:, :6] = 0\n"
    program += "print(sk.convert(net, torch.randn(2, 8, 9, 9)))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_check_of_gradients() -> None:
    """Directions and lengths count, not the last digit."""
    one = [torch.randn(100), None, torch.randn(3, 3)]
    near = [None if tensor is None else tensor * 1.01 for tensor in one]
    far = [one[0], None, torch.randn(3, 3)]  # one parameter among others
    assert point_alike(near, one)
    assert not point_alike(far, one)
    assert not point_alike([one[0], torch.ones(1), one[2]], one)
    assert not point_alike([one[0] * float("nan"), None, one[2]], one)


class Pooled(nn.Module):
    """A residual block as ResNet's behind a stem: a sum in place, on either side, with and without limits; pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norms[0](self.stem(x)).relu())
        y = self.norms[1](self.convs[0](x))
        y += x
        y = y.relu_()
        z = torch.add(self.norms[2](self.convs[1](y)), self.norms[3](self.convs[2](x)))
        return F.max_pool2d(self.norms[4](self.convs[3](z)) + z, 2)


def test_sums_and_pooling(prefer: Prefer) -> None:
    model, x = Pooled().train(), torch.randn(6, 8, 13, 15)
    prune_(model, "random", 0.7)
    dense, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    found = calls(model)
    assert [name.rpartition(".")[2] for name in found if "sparsekernels_norm" not in name and "conv" not in name] == [
        "stem",
        *[name for name in found if "max_pool2d" in name],
    ], found
    assert len([name for name in found if "max_pool2d" in name]) == 2
    for step in range(2):
        assert_steps_alike(model, dense, wide, x + step)


def test_pooling_alone_is_a_graph(prefer: Prefer) -> None:
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2)).train(), torch.randn(4, 8, 10, 10)
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    for mine, theirs in zip(gradients(model, x), gradients(dense, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
