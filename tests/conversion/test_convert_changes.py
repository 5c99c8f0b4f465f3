# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A converted model that is changed: its graph follows, or its modules run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of, run
from conversion_nets import Doubled, make
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.graph.base import Graph
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_the_graph_follows_the_parameters(prefer: Prefer) -> None:
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for module in (model, dense):
        with torch.no_grad():
            module[0].conv1.weight.mul_(1.5)
            module[0].bn2.running_mean.add_(0.5)
            module[1].bn1.weight = nn.Parameter(module[1].bn1.weight * 2)
    assert_agree(model, dense, x)
    other, _ = make("residual", sparsity=0.5)
    for module in (model, dense):
        module.load_state_dict(other.state_dict())
    assert_agree(model, dense, x)
    for module in (model, dense):
        module.double()
    assert_agree(model, dense, x.double())
    for module in (model, dense):
        module.float()
    assert_agree(model, dense, x)


def test_hooks_and_exchanged_modules_count(prefer: Prefer) -> None:
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    seen: list[str] = []
    handle = model[0].bn1.register_forward_hook(lambda *_: seen.append("bn1"))
    run(model, x)
    assert seen == ["bn1"]
    handle.remove()
    run(model, x)
    assert seen == ["bn1"]
    outer = model.register_forward_hook(lambda module, args, output: output * 0)
    assert run(model, x)[0].count_nonzero() == 0
    outer.remove()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    run(model, x)
    assert "BatchNorm2d" in seen
    handle.remove()
    for module in (model, dense):
        module[1].bn1 = nn.Identity()
    assert_agree(model, dense, x)
    for module in (model, dense):
        module[0].bn2.train()
    torch.testing.assert_close(run(model, x), run(dense, x))


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "an attribute of the code": lambda net: setattr(net, "shortcut_first", False),
    "an eps": lambda net: setattr(net.bn2, "eps", 0.5),
    "a padding mode": lambda net: setattr(net.conv1, "padding_mode", "circular"),
    "a module more": lambda net: net.shortcut.append(nn.Softmax(1)),
    "a module less": lambda net: net.shortcut.pop(1),
    "a bias where none was": lambda net: setattr(net.conv1, "bias", nn.Parameter(torch.ones(12))),
    "a parametrization": lambda net: parametrize.register_parametrization(net.conv1, "weight", Doubled(net)),
    "a forward": lambda net: setattr(net.relu, "forward", lambda x: x),
    "a mode": lambda net: net.bn2.train(),
    "another class": lambda net: setattr(net.relu, "__class__", nn.Tanh),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_count(prefer: Prefer, change: str) -> None:
    model, x = make("residual, shortcut first")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for module in (model, dense):
        CHANGES[change](module)
        if change == "a parametrization":
            run(module, x)
            with torch.no_grad():
                module.conv1.parametrizations.weight[0].factor.fill_(3)
    torch.testing.assert_close(run(model, x), run(dense, x), rtol=1e-4, atol=1e-5)


def test_lists_that_the_code_looks_at_count(prefer: Prefer) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scales, self.options = nn.Linear(8, 8), [1.0, 2.0], {"negate": False}

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x).relu() * self.scales[1]
            return -y if self.options["negate"] else y

    model = Scaled().eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    for change in (lambda one: one.scales.__setitem__(1, 3.0), lambda one: one.options.update(negate=True)):
        for module in (model, dense):
            change(module)
        torch.testing.assert_close(run(model, x), run(dense, x))


def test_the_graph_follows_the_patterns(prefer: Prefer) -> None:
    """load_state_dict with other zeros, and another dtype and back: it goes on as a graph."""
    model, x = make("sequential")
    prefer(FINE, GRAPH)
    dense, other = copy.deepcopy(model), copy.deepcopy(model)
    prune_(other, "random", 0.8)
    sk.convert(model, x)
    (graph,) = graphs_of(model)
    for module in (model, dense):
        module.load_state_dict(other.state_dict())
    assert_agree(model, dense, x)
    assert graph.prepare().watch.unchanged()
    model.double().float()
    assert_agree(model, dense, x)
    assert graph.prepare().watch.unchanged()


def test_the_graph_comes_back(prefer: Prefer) -> None:
    """Parameters whose changes cannot be seen are the layers' business, for as long as they are there."""
    model, x = make("sequential")
    prefer(FINE, GRAPH)
    dense = copy.deepcopy(model)
    sk.convert(model, x)
    (graph,) = graphs_of(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        assert_agree(model, dense, x)
    model.load_state_dict(state, assign=True)
    for _ in range(2):
        assert_agree(model, dense, x)
    assert not graph._failed
    assert not graph.prepare().source.changed()


@pytest.mark.parametrize("how", ["data", "vector", "shared"])
def test_the_graph_follows_parameters_that_moved(prefer: Prefer, how: str) -> None:
    """Another address counts as a change, where no version does."""
    model, x = make("sequential")
    prefer(FINE, GRAPH)
    dense = copy.deepcopy(model)
    sk.convert(model, x)
    assert_agree(model, dense, x)
    for module in (model, dense):
        with torch.no_grad():
            if how == "data":
                for parameter in module.parameters():
                    parameter.data = parameter.data * 1.5
            elif how == "vector":
                vector = nn.utils.parameters_to_vector(module.parameters()) * 1.5
                nn.utils.vector_to_parameters(vector, module.parameters())
            else:
                module.share_memory()
                for parameter in module.parameters():
                    parameter.mul_(1.5)
    assert_agree(model, dense, x)


def test_a_norm_that_does_not_count_is_not_folded(prefer: Prefer) -> None:
    """Nothing would tell that its statistics are others."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    model[1].num_batches_tracked = None
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(6, 8, 9, 9)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for module in (model, dense):
        module.train()(x * 3)
        module.eval()
    assert_agree(model, dense, x)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_dropped_channels_stay_dropped(prefer: Prefer, kind: str) -> None:
    """What an optimizer moves there is unused: the model computes the same before and after it is saved."""
    make_layer = (lambda: nn.Conv2d(16, 16, 3)) if kind == "conv" else (lambda: nn.Linear(16, 16))
    model = nn.Sequential(make_layer(), nn.ReLU(), make_layer()).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[torch.rand(16) < 0.6] = 0
            layer.weight[:, torch.rand(16) < 0.5] = 0
            layer.weight[0, 0] = -0.0
    x = torch.randn(4, 16, 9, 9) if kind == "conv" else torch.randn(4, 16)
    prefer(DROPPED, LAYERS)
    sk.convert(model, x)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.add_(0.1)
        expected = model(x)
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(sk.revert(model)(x), expected)


def test_a_model_that_changes_all_the_time_is_not_traced_all_the_time(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make("sequential")
    model.schedule = [0]
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    (graph,) = graphs_of(model)
    count, plain = [], Graph.prepare
    monkeypatch.setattr(Graph, "prepare", lambda *args: (count.append(1), plain(*args))[1])
    for step in range(30):
        model.schedule = [step]
        assert_agree(model, dense, x)
    assert 0 < len(count) <= 8
    assert not graph._failed
