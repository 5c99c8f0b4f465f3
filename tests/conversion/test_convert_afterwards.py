# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A converted model lives on: the way back, changes, copies, training."""

from __future__ import annotations

import builtins
import collections
import copy
import functools
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, attempt_module, graphs_of, run
from conversion_nets import NETS, make
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.graph.base import Graph
from sparsekernels.conversion.graph.inference import InferenceGraph
from sparsekernels.conversion.watch.state import CONVERSION
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


# The way back.


@pytest.mark.parametrize("how", [GRAPH, LAYERS])
@pytest.mark.parametrize("name", NETS)
def test_revert(prefer: Prefer, name: str, how: str) -> None:
    model, x = make(name)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    attributes = {key: set(vars(module)) for key, module in modules.items()}
    before = run(model, x)
    prefer(FINE, how)
    for _ in range(2):
        assert sk.convert(model, x).converted
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
        assert sk.revert(model) is model
        assert sk.revert(model) is model
        assert dict(model.named_modules()) == modules
        assert {key: set(vars(module)) for key, module in modules.items()} == attributes
        assert all(torch.equal(one, other) for one, other in zip(run(model, x), before, strict=True))


def test_converting_twice(prefer: Prefer) -> None:
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    assert sk.convert(model, x).converted == sk.convert(model, x).converted
    assert_agree(model, dense, x)
    prefer(DENSE)
    assert not sk.convert(model, x).converted
    assert not list(graphs_of(model))
    assert type(model[0].conv1) is nn.Conv2d


def test_revert_of_what_was_never_converted() -> None:
    layer = nn.Linear(2, 2)
    assert sk.revert(layer) is layer
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got int"):
        sk.revert(3)  # type: ignore[arg-type]


def test_revert_hands_back_what_was_trained(prefer: Prefer) -> None:
    model, x = make("sequential")
    prefer(FINE, LAYERS)
    sk.convert(model.train(), x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    model.load_state_dict({key: value * 1.5 for key, value in model.state_dict().items()}, assign=True)
    expected = copy.deepcopy(model.state_dict())
    y = run(model.eval(), x)
    sk.revert(model)
    assert type(model[0]) is nn.Conv2d
    assert not model[0].training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())
    torch.testing.assert_close(run(model, x), y)


# After conversion.


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


class Doubled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


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


def test_what_was_done_to_a_converted_layer_is_not_lost(prefer: Prefer) -> None:
    model, x = make("sequential")
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    modules = dict(model.named_modules())
    handle = model[0].register_forward_hook(lambda *_: None)
    for undo in (sk.revert, lambda one: sk.convert(one, x)):
        with pytest.raises(RuntimeError, match="'0' was given hooks"):
            undo(model)
        assert dict(model.named_modules()) == modules
    handle.remove()
    sk.revert(model)
    assert type(model[0]) is nn.Conv2d


def test_parameters_with_gradient_hooks_are_not_measured(prefer: Prefer) -> None:
    model, x = make("sequential")
    model.train()
    model[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    prefer(FINE, LAYERS)
    with pytest.raises(ValueError, match=r"the parameter 0\.weight has hooks"):
        sk.convert(model, x)
    assert type(model[0]) is nn.Conv2d


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


@pytest.mark.parametrize("function", ["convert", "revert"])
def test_what_keeps_from_reverting_is_named(prefer: Prefer, function: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())).eval()
    prune_(model, "random", 0.8)
    x = torch.randn(2, 8, 9, 9)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    call = functools.partial(sk.convert, model, x) if function == "convert" else functools.partial(sk.revert, model)
    handle = model[0][0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=f"{function}: the converted layer '0.0' was given hooks since"):
        call()
    handle.remove()
    prune.l1_unstructured(model[0][0], "weight", 0.5)
    with pytest.raises(RuntimeError, match=f"{function}: the converted layer '0.0' was given a mask since"):
        call()
    prune.remove(model[0][0], "weight")
    parametrize.register_parametrization(model[0][0], "weight", Doubled(model))
    with pytest.raises(RuntimeError, match=f"{function}: the converted layer '0.0' was given a parametrization since"):
        call()


# Training.


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


# Patterns and statistics.


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
    assert_agree(model, dense, x)
    assert not graph._failed
    assert not graph.prepare()._is_stale()


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
    """What an optimizer moves there is nobody's: the model computes the same before and after it is saved."""
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


def test_revert_goes_into_parts(prefer: Prefer) -> None:
    inner, x = make("sequential")
    prefer(FINE, GRAPH)
    own = list(inner)
    sk.convert(inner, x)
    outer = nn.Sequential(nn.Identity(), inner)
    report = sk.convert(copy.deepcopy(outer), x)
    assert any("SparseConv2d already" in row.reason for row in report.layers)
    sk.revert(outer)
    assert list(inner) == own
    assert not list(graphs_of(outer))


def test_an_interruption_leaves_the_model_as_it_was(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("sequential")
    modules = dict(model.named_modules())
    prefer(FINE, GRAPH)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(attempt_module, "_with_omissions", interrupted)
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
    assert set(vars(model)) - before == {"forward", CONVERSION}
    assert model.factor is None
    assert model.factors == {}
    for _ in range(3):
        assert_agree(model, dense, x)
    (graph,) = graphs_of(model)
    assert graph.prepare().watch.unchanged()


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
    monkeypatch.setattr(Graph, "prepare", lambda self: (count.append(1), plain(self))[1])
    for step in range(30):
        model.schedule = [step]
        assert_agree(model, dense, x)
    assert 0 < len(count) <= 8
    assert not graph._failed


def test_two_threads_convert_at_once(prefer: Prefer) -> None:
    """What is exchanged for the whole process while models are traced is there again afterwards."""
    before = builtins.isinstance, nn.Module.__call__, nn.Module.__getattr__
    prefer(FINE, GRAPH)

    def work() -> None:
        for _ in range(5):
            graph = InferenceGraph(make("sequential")[0], torch.float32, torch.device("cpu"), True)
            graph.prepare()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (builtins.isinstance, nn.Module.__call__, nn.Module.__getattr__) == before
