# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A converted model lives on: training, code that keeps something, arguments, copies."""

from __future__ import annotations

import builtins
import collections
import concurrent.futures
import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, assert_agree, attempt_module, graphs_of, run
from conversion_nets import make
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.graph.inference import InferenceGraph
from sparsekernels.conversion.modules import GRAPH as GRAPH_OF
from sparsekernels.conversion.watch.state import CONVERSION
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_training_after_conversion(prefer: Prefer) -> None:
    """The BatchNorms' statistics and the weights move; the graph is that of the moved ones."""
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    masks = [parameter != 0 for parameter in dense.parameters()]
    for module in (model, dense):
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            for parameter, mask in zip(module.parameters(), masks, strict=True):
                if parameter.dim() > 1:
                    parameter.grad.mul_(mask)
            optimizer.step()
        module.eval()
    torch.testing.assert_close(run(model, x), run(dense, x), rtol=1e-3, atol=1e-4)


def test_gradients_go_by_the_layers(prefer: Prefer) -> None:
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for one in (x, x.clone().requires_grad_()):
        gradients = []
        for module in (model, dense):
            module.zero_grad()
            y = module(one)
            assert y.requires_grad
            y.square().sum().backward()
            gradients.append([p.grad * (p != 0) if p.dim() > 1 else p.grad for p in module.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    model.requires_grad_(False)
    assert model(x.clone().requires_grad_()).requires_grad
    assert not model(x).requires_grad


class Keeps(nn.Module):
    """Its forward leaves something behind, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(8, 8), how
        self.last: Any = None
        self.log: list[Any] = []
        self.count = 0
        self.register_buffer("state", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).relu()
        if self.how == "attribute":
            self.last = y
        elif self.how == "list":
            self.log.append(y)
        elif self.how == "number":
            self.count += 1
        elif self.how == "buffer":
            self.state = y.mean(0) + self.state
            return y + self.state
        return y


@pytest.mark.parametrize("how", ["attribute", "list", "number", "buffer"])
def test_code_that_keeps_something_goes_on_keeping_it(prefer: Prefer, how: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Keeps(how)).eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert any("changes attributes" in note for note in report.notes), report.notes
    kept = [copy.deepcopy(vars(module[1])) for module in (model, dense)]
    for index in range(2):
        if index:
            sk.revert(model)
        for module, attributes in zip((model, dense), kept, strict=True):
            vars(module[1]).update(copy.deepcopy({key: attributes[key] for key in ("last", "log", "count")}))
            module[1].state = torch.zeros(8)
        torch.testing.assert_close(run(model, x), run(dense, x))
        assert type(model[1].last) is type(dense[1].last)
        assert [type(one) for one in model[1].log] == [type(one) for one in dense[1].log]
        assert model[1].count == dense[1].count
        torch.testing.assert_close(model[1].state, dense[1].state)


def test_an_argument_is_optional(prefer: Prefer) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            y = self.layer(x).relu() * scale
            if mask is not None:
                y = y * mask
            return y

    model = Masked().eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    with torch.inference_mode():
        for args in ((x,), (x, torch.rand(8)), (x, None, 2.0)):
            torch.testing.assert_close(model(*args), dense(*args))


def test_containers_of_results_stay_what_they_were(prefer: Prefer) -> None:
    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            return collections.OrderedDict(y=self.layer(x).relu())

    model = Ordered().eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, torch.randn(4, 8))
    assert type(model(torch.randn(4, 8))) is collections.OrderedDict


def test_arguments_are_written_to_as_before(prefer: Prefer) -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x += self.layer(x)
            return x * 2

    model = Adds().eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    example = torch.randn(2, 8, 5, 5)
    kept = example.clone()
    sk.convert(model, example)
    assert torch.equal(example, kept)
    for last in (False, True):
        inputs = [kept.contiguous(memory_format=torch.channels_last) if last else kept.clone() for _ in range(2)]
        with torch.inference_mode():
            outputs = [module(one) for module, one in zip((model, dense), inputs, strict=True)]
        torch.testing.assert_close(*inputs)
        torch.testing.assert_close(*outputs)


def test_a_residual_with_gaps(prefer: Prefer) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return self.layer(first) + second

    model = Halves().eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(3, 4, 16)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    torch.testing.assert_close(run(model, x), run(dense, x))


def test_features_of_a_sequence_are_no_channels(prefer: Prefer) -> None:
    """Flattened, a Linear's outputs lie position by position; weights that become zero later must not mix them up."""
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10)).eval()
    prune_(model, "random", 0.5)
    dense, x = copy.deepcopy(model), torch.randn(3, 6, 16)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for module in (model, dense):
        with torch.no_grad():
            module[0].weight[:3] = 0
            module[0].bias[:3] = -1
    torch.testing.assert_close(run(model, x), run(dense, x))


def test_copies_are_independent(prefer: Prefer) -> None:
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in (twin, loaded):
        assert len(list(graphs_of(other))) == 1
        assert_agree(other, dense, x)
        sk.revert(other)
        assert type(other[0].conv1) is nn.Conv2d
        assert all(torch.equal(one, two) for one, two in zip(run(other, x), run(dense, x), strict=True))


def test_under_torch(prefer: Prefer) -> None:
    """Autocast, vmap, export and compile take the layers, not the graph."""
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.inference_mode():
        expected = dense(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == dense(x).dtype
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(model, in_dims=0)(x[:, None])[:, 0], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected, rtol=1e-3, atol=1e-3)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-3, atol=1e-3)


def test_training_mode(prefer: Prefer) -> None:
    """The optimizer that there was goes on; gradients are those of the dense layers at the nonzeros."""
    model, x = make("pre-activation")
    dense = copy.deepcopy(model)
    prefer(FINE, LAYERS)
    optimizers = [torch.optim.SGD(module.train().parameters(), 0.05, momentum=0.9) for module in (model, dense)]
    report = sk.convert(model, x)
    assert report.mode == "train"
    assert not list(graphs_of(model))
    for _ in range(2):
        for module, optimizer in zip((model, dense), optimizers, strict=True):
            optimizer.zero_grad()
            torch.manual_seed(3)  # dropout
            module(x).square().mean().backward()
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.grad.mul_(parameter != 0)
            optimizer.step()
    for one, other in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert "forward and backward pass" in report.summary()


def test_an_interruption_leaves_the_model_as_it_was(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("sequential")
    modules = dict(model.named_modules())
    prefer(FINE, GRAPH)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(attempt_module, "with_omissions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sk.convert(model, x)
    assert dict(model.named_modules()) == modules
    assert not list(graphs_of(model))


@pytest.mark.parametrize("how", ["a cached property", "an attribute", "a cache"])
def test_what_code_keeps_at_its_first_call(prefer: Prefer, how: str) -> None:
    """convert leaves nothing of its own calls; once the code has kept it again, the graph serves."""

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.factor: Any = None
            self.factors: dict[int, float] = {}

        @functools.cached_property
        def scale(self) -> float:
            return float(torch.ones(()) * 1.5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x).relu()
            if how == "a cached property":
                return y * self.scale
            if how == "an attribute":
                if self.factor is None:
                    self.factor = [1.5]
                return y * self.factor[0]
            if 3 not in self.factors:
                self.factors[3] = float(torch.ones(()) * 1.5)
            return y * self.factors[3]

    model = Lazy().eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    before = set(vars(model))
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert set(vars(model)) - before == {GRAPH_OF, CONVERSION}
    assert model.factor is None
    assert model.factors == {}
    for _ in range(3):
        assert_agree(model, dense, x)
    (graph,) = graphs_of(model)
    assert graph.prepare().watch.unchanged()


def test_two_threads_convert_at_once(prefer: Prefer) -> None:
    """What is patched in the whole process while models are traced is restored afterwards."""
    before = builtins.isinstance, nn.Module.__call__, nn.Module.__getattr__
    prefer(FINE, GRAPH)
    # made before: drawing random numbers in one thread looks to another as if its model drew them
    models = [[make("sequential")[0] for _ in range(5)] for _ in range(3)]

    def work(models: list[nn.Module]) -> None:
        for model in models:
            InferenceGraph(model, torch.float32, torch.device("cpu"), torch.contiguous_format).prepare()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(work, models))
    assert (builtins.isinstance, nn.Module.__call__, nn.Module.__getattr__) == before


@pytest.mark.parametrize(
    "change", [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_one_warning_for_all_layers_that_something_was_merged_into(
    prefer: Prefer, change: Callable[[nn.Module], nn.Module]
) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))).eval()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(2, 8)
    prefer(FINE, LAYERS)
    assert len(sk.convert(model, x).converted) == 4
    model = change(model)
    zeros = [int((layer.weight == 0).sum()) for layer in dense]
    with torch.no_grad():
        for layer, other in zip(list(model)[1:], list(dense)[1:], strict=True):
            layer.weight += 1.0
            other.weight += 1.0
        count = sum(zeros[1:])
        with pytest.warns(UserWarning, match="and 2 more layers") as told:
            results = [model(x), model(x)]
        (message,) = [str(one.message) for one in told]
        assert message.startswith(f"SparseLinear '1' and 2 more layers: {count} elements of their weights that they")
        torch.testing.assert_close(results, [dense(x), dense(x)])
        model[0].weight += 1.0
        with pytest.warns(UserWarning, match=f"SparseLinear '0': {zeros[0]} elements of its weight that it would"):
            model(x)
