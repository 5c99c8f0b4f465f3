# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert, and what the code of a model does: what it takes and returns, and what of it is no graph."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from conversion_checks import DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of, run
from conversion_nets import drop_channels_, make
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import modes
from sparsekernels.conversion.graph.attach import own_class
from sparsekernels.conversion.graph.base import Graph
from sparsekernels.conversion.graph.inference import InferenceGraph
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_large_models_are_graphs() -> None:
    """What torch keeps in every module does not count."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), *[nn.ReLU() for _ in range(2000)]).eval()
    graph = InferenceGraph(model, torch.float32, torch.device("cpu"), torch.contiguous_format)
    assert graph.prepare().watch.unchanged()


def test_code_that_asks_whether_it_is_given_a_tensor(prefer: Prefer) -> None:
    """Takes the way that it takes for one; where it depends on the size, for those of that size."""

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
        assert [graph.module for graph in graphs_of(model)] == [model]
        for batch in (x, x[:1]):
            assert_agree(model, dense, batch)


def test_what_a_graph_raises_is_said(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("sequential")
    prefer(FINE, GRAPH, LAYERS)

    def fails(*_: Any) -> Tensor:
        raise OSError("no such thing")

    monkeypatch.setattr(Graph, "answer", fails)
    notes = sk.convert(model, x).notes
    assert any("Running as a graph was rejected: it raised OSError: no such thing." in note for note in notes)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("place", ["the model", "the comparison"])
def test_what_the_model_itself_raises_is_raised(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch, place: str, training: bool
) -> None:
    """No conversion is to blame for a pass of the model as it was, nor for a comparison."""

    class Fails(nn.Sequential):
        fails = False

        def forward(self, x: Tensor) -> Tensor:
            if self.fails and not hasattr(self[0], "pattern"):
                raise OSError("no such thing")
            return super().forward(x)

    model, x = Fails(nn.Linear(16, 16), nn.ReLU()).train(training), torch.randn(4, 16)
    prune_(model, "random", 0.8)
    mode: Any = modes.Training if training else modes.Inference
    passed = mode.passed

    def then_fails(self: Any, conversion: Any) -> object:
        result = passed(self, conversion)
        Fails.fails = True
        return result

    def differs(*_: Any) -> bool:
        if place == "the comparison":
            raise OSError("no such thing")
        return False

    monkeypatch.setattr(mode, "passed", then_fails)
    monkeypatch.setattr(modes, "are_close", differs)
    prefer(FINE, LAYERS)
    with pytest.raises(OSError, match="no such thing"):
        sk.convert(model, x)
    assert type(model[0]) is nn.Linear


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
            assert x.isfinite().all()  # no graph
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
    found = [own_class(graph.module) for graph in graphs_of(model)]
    if how == "by name":
        assert found == [Wrapper]
        return
    assert found == [nn.Sequential] * (1 if how == "a part is not called" else 2)
    not_called = "body does not run as a graph: it is not called as a whole"
    expected = not_called if how == "a part is not called" else "called with a number"
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
        assert any("Under autocast" in note for note in report.notes)
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


class _Cached(nn.Module):
    """As the attention of LeViT and EfficientFormer: its table of biases is looked up once for each device."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.biases = nn.Linear(64, 64), nn.Parameter(torch.randn(7, 64))
        self.register_buffer("indices", torch.randint(7, (5,)), persistent=False)
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> _Cached:
        super().train(mode)
        self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.biases[self.indices]
        return (self.layer(x) + self.cache[key]).relu()


def test_a_cache_by_device_is_no_obstacle(prefer: Prefer) -> None:
    """A graph reads what is in it, as the code does, and notices when that is another."""
    model, x = nn.Sequential(_Cached(), _Cached()).eval(), torch.randn(2, 5, 64)
    prune_(model, "random", 0.9)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    report = sk.convert(model, x)
    assert report.way.value == GRAPH
    assert model[0].cache == {}
    (graph,) = graphs_of(model)
    for _ in range(3):  # it is filled, traced with it, and read
        assert_agree(model, dense, x)
    assert graph.prepare().watch.unchanged()
    with torch.no_grad():
        for one in (model, dense):
            one[0].biases.add_(1)
    torch.testing.assert_close(run(model, x), run(dense, x))  # both read a cache that is stale
    for one in (model, dense):
        one[1].cache["cpu"] = one[1].cache["cpu"] + 1
    torch.testing.assert_close(run(model, x), run(dense, x))
    for one in (model, dense):
        one.train().eval()
    for _ in range(3):
        assert_agree(model, dense, x)


class _Image(Tensor):
    """As torchvision's, which are tensors of a class of their own."""


def test_inputs_of_a_subclass_of_tensor(prefer: Prefer) -> None:
    """A parameter is a plain tensor; of others a note says why no graph serves them, and the layers do."""
    x = torch.randn(4, 64)
    for given in (nn.Parameter(x), x.as_subclass(_Image)):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
        prune_(model, "random", 0.9)
        dense = copy.deepcopy(model)
        prefer(FINE, GRAPH, LAYERS)
        report = sk.convert(model, given)
        is_plain = type(given) is nn.Parameter
        assert bool(list(graphs_of(model))) is is_plain
        assert report.converted
        assert any("it is called with a _Image" in note for note in report.notes) is not is_plain
        with torch.no_grad():
            result = model(given)
            torch.testing.assert_close(result, dense(given))
            assert type(result) is type(dense(given))
