"""convert and revert: results, decisions, what they leave alone, and the way back."""

from __future__ import annotations

import collections
import copy
import functools
import io
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conversion_checks import (
    ALL_CHAINS,
    CHAINED,
    CHAINS,
    DENSE,
    DROPPED,
    FINE,
    GRAPH,
    LAYERS,
    Prefer,
    assert_agree,
    convert_module,
    engines,
    graph_of,
    run,
)
from conversion_nets import NETS, drop_channels_, make
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench import timer
from sparsekernels.bench.models import MODELS, calibrate_, prune_
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion.measure import Times, times_of

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


# Results.


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("decision", [FINE, DROPPED])
@pytest.mark.parametrize("how", [GRAPH, LAYERS])
def test_results(prefer: Prefer, name: str, decision: str, how: str) -> None:
    model, x = make(name)
    drop_channels_(model)
    dense = copy.deepcopy(model)
    prefer(decision, how)
    report = sk.convert(model, x)
    assert {row.decision for row in report.layers} - {DENSE} == {decision}
    assert len(report.converted) == sum(getattr(row.kind, "groups", 1) == 1 for row in report.converted)
    assert bool(list(engines(model))) == (how == GRAPH)
    assert_agree(model, dense, x)
    others = [x[:1], torch.cat([x, x, x]), x.flip(-1).contiguous()]
    if x.dim() == 4:
        others.append(x.contiguous(memory_format=torch.channels_last))
    for other in others:
        assert_agree(model, dense, other)
    assert_agree(model.to(torch.bfloat16), dense.to(torch.bfloat16), x.bfloat16())


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5-caffe", "alexnet-s", "vgg16-d", "wrn-28-2"])
def test_networks(prefer: Prefer, name: str) -> None:
    model, x = MODELS[name].make(), MODELS[name].images(3, seed=7)
    prune_(model, "clustered", 0.9)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    report = sk.convert(model, x)
    assert len(report.converted) == len(report.layers)
    assert_agree(model, dense, x)
    sk.revert(model)
    assert all(torch.equal(one, other) for one, other in zip(run(model, x), run(dense, x), strict=True))


@pytest.mark.parametrize("name", ["resnet-50", "efficientnet-lite0"])
def test_large_networks(prefer: Prefer, name: str) -> None:
    model = MODELS[name].make(pretrained=False)
    x = torch.randn(1, 3, 96, 96)
    prune_(model, "magnitude", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert_agree(model, dense, x)
    calls = graph_of(model)
    assert not any(".relu" in call or "bn" in call for call in calls), calls  # all of them are fused
    assert not any("add" in call for call in calls), calls


def test_channels_last_results_follow_the_input(prefer: Prefer) -> None:
    model, x = make("residual")
    prefer(FINE, GRAPH)
    x = x.contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    before = run(model, x)[0]
    sk.convert(model, x)
    after = run(model, x)[0]
    assert before.stride() == after.stride()
    sk.revert(model)
    prefer(FINE, "a graph in the input's layout")
    dense = copy.deepcopy(model)
    sk.convert(model, x)
    assert [engine.contiguous for engine in engines(model)] == [False]
    assert_agree(model, dense, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(prefer: Prefer, dtype: torch.dtype) -> None:
    model, x = make("residual")
    model, x = model.to(dtype), x.to(dtype)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    assert sk.convert(model, x).converted
    truth, baseline, actual = (
        run(dense.double(), x.double())[0],
        run(copy.deepcopy(dense).to(dtype), x)[0],
        run(model, x)[0],
    )
    assert (actual.double() - truth).abs().max() <= 2 * (baseline.double() - truth).abs().max()


def test_many_arguments(prefer: Prefer) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, y: Tensor, scale: float = 2.0, negate: bool = False) -> tuple[Tensor, Tensor]:
            total = self.a(x) + self.b(y) * scale
            return (-total if negate else total), x

    model = Two().eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    x, y = torch.randn(2, 4, 8).unbind()
    prefer(FINE, GRAPH)
    sk.convert(model, (x, y))
    with torch.inference_mode():
        for args, kwargs in (((x, y), {}), ((x, y, 3.0), {}), ((x,), {"y": y}), ((x, y), {"negate": True})):
            for one, other in zip(model(*args, **kwargs), dense(*args, **kwargs), strict=True):
                torch.testing.assert_close(one, other)


# What is fused.


def test_everything_around_a_layer_is_fused(prefer: Prefer) -> None:
    model, x = make("residual")
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert all("sparsekernels_fused" in call for call in graph_of(model)), graph_of(model)
    assert len(graph_of(model)) == 6


def test_what_others_see_is_not_fused(prefer: Prefer) -> None:
    prefer(FINE, GRAPH)
    model, x = make("forked")
    sk.convert(model, x)
    assert sum("fused" in call for call in graph_of(model)) == 3  # one layer is called twice
    assert any(call == "call_module:bn" for call in graph_of(model))
    for name in ("writes", "shared sum"):
        model, x = make(name)
        sk.convert(model, x)
        assert any("mul_" in call or "iadd" in call for call in graph_of(model)), graph_of(model)


@pytest.mark.parametrize("name", sorted(NETS))
def test_chains_of_layers(prefer: Prefer, name: str) -> None:
    model, x = make(name)
    dense = copy.deepcopy(model)
    prefer(FINE, CHAINS, GRAPH)
    report = sk.convert(model, x)
    chained = [one for engine in engines(model) for one in engine.prepare().chained]
    assert bool(chained) == any("run as one call" in note for note in report.notes)
    assert bool(chained) == (name in CHAINED), name
    batches = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    if x.dim() == 4:
        batches += [x[:1], torch.cat([x] * 5)[:9] + torch.randn(9, 1, 1, 1)]
    for other in batches:
        assert_agree(model, dense, other)
    # the chain is packed anew when parameters change
    with torch.no_grad():
        for one in (model, dense):
            for parameter in one.parameters():
                parameter.mul_(0.7)
    assert_agree(model, dense, x)
    copied = copy.deepcopy(model)
    assert_agree(copied, dense, x)
    sk.revert(model)
    assert_agree(model, dense, x)


def test_a_layer_becomes_sparse_for_the_sake_of_its_chain(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone it is not faster; the chain that it completes is."""
    model, x = make("sequential")
    dense = copy.deepcopy(model)
    prefer(ALL_CHAINS, CHAINS, GRAPH)
    chosen = decide_module.times_of

    def one_is_slower_alone(calls: Mapping[str, Callable[[], object]], effort: object) -> Times:
        times = chosen(calls, effort)
        measured.append(times)
        alone = 1.1 if len(measured) == 2 else 0.4
        return Times({name: [1.0 if name == DENSE else alone if name == FINE else 5.0] for name in calls})

    measured: list[Times] = []
    monkeypatch.setattr(decide_module, "times_of", one_is_slower_alone)
    report = sk.convert(model, x)
    rows = [row for row in report.layers if "for the sake of its chain" in row.reason]
    assert len(rows) == 1
    assert rows[0].decision == FINE
    assert "alone, fine-grained would be 0.91x" in rows[0].reason
    assert rows[0].speedup is None
    assert type(model.get_submodule(rows[0].name)) is sk.nn.SparseConv2d
    assert_agree(model, dense, x)
    assert "for the sake" in str(report)
    sk.revert(model)
    assert type(model.get_submodule(rows[0].name)) is nn.Conv2d
    assert_agree(model, dense, x)


def test_a_chain_that_does_not_fit_says_what_the_layers_say(prefer: Prefer) -> None:
    model, x = make("sequential")
    prefer(FINE, CHAINS)
    sk.convert(model, x)
    (engine,) = engines(model)
    assert engine.prepare().chained
    with torch.inference_mode(), pytest.raises((ValueError, RuntimeError), match="channels|shape|size"):
        model(x[:, 1:])


def test_no_chain_where_somebody_else_reads_between(prefer: Prefer) -> None:
    """One tensor goes in, one comes out: what else is read ends the chain before."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            for layer in self.layers[:3]:
                x = layer(x).relu()
            between = x
            for layer in self.layers[3:]:
                x = layer(x)
            return x, between

    model, x = Between().eval(), torch.randn(4, 8, 10, 10)
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, CHAINS)
    sk.convert(model, x)
    (engine,) = engines(model)
    assert [len(one.steps) for one in engine.prepare().chained] == [3, 2]
    assert_agree(model, dense, x)


def test_parts_of_what_cannot_be_traced(prefer: Prefer) -> None:
    model, x = make("choosing")
    prefer(FINE, GRAPH)
    report = sk.convert(model, x)
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == ["body"]
    assert any("does not run as a graph" in note and "torch.fx cannot trace it" in note for note in report.notes)


# Channels.


def chain(padding: int = 1) -> nn.Module:
    """Everything that keeps channels apart stands between two layers somewhere."""
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=padding), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3, padding=padding), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=padding, bias=False), nn.BatchNorm2d(12), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 6),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("decision", [DENSE, FINE, DROPPED])
@pytest.mark.parametrize("padding", [0, 1])
def test_channels_are_left_out_along_chains(prefer: Prefer, padding: int, decision: str) -> None:
    """Filters that are zero, whose constants are or are not absorbed; channels that nobody reads."""
    model, x = chain(padding), torch.randn(3, 4, 16, 16)
    calibrate_(model, x)
    with torch.no_grad():
        for index in (0, 4, 6, 10):
            model[index].weight[:4] = 0
        model[1].bias[:2], model[1].bias[2:4] = -3, 3  # constants of zero, and others
        model[4].bias[:2], model[4].bias[2:4] = -3, 3
        model[6].weight[:, 8:] = 0
        model[10].weight[:, 40:] = 0  # the last two channels, four values each
        model[12].weight[:, 5] = 0
    prune_(model, "random", 0.5)
    dense = copy.deepcopy(model)
    state = dict(model.named_modules())
    prefer(decision, GRAPH)
    report = sk.convert(model, x)
    assert report.converted
    assert_agree(model, dense, x)
    (engine,) = engines(model)
    first, second, third, head, last = engine.prepare().fused
    lost = {name: set(range(12)) - set(one.outputs.tolist()) for name, one in (("first", first), ("second", second))}
    # where images are padded with zeros, a channel that is 3 everywhere is not 3 at the border
    assert {0, 1} <= lost["first"]
    assert bool({2, 3} <= lost["first"]) == (padding == 0)
    assert {0, 1, 8, 9, 10, 11} <= lost["second"]
    assert {0, 1, 2, 3, 10, 11} == set(range(12)) - set(third.outputs.tolist())
    assert head.inputs.numel() == 4 * third.outputs.numel()
    assert {0, 1, 2, 3, 5} <= set(range(12)) - set(head.outputs.tolist())
    assert last.outputs is None
    assert "the graph leaves out" in report.layers[1].reason
    with torch.no_grad():
        for module in (model, dense):
            module[4].weight[1] = 0.1
            module[6].weight[5, 9] = 0.2
    if decision == DENSE:
        assert_agree(model, dense, x)
        assert 1 in second.outputs
    sk.revert(model)
    assert dict(model.named_modules()) == state


def test_channels_that_a_sum_needs_stay(prefer: Prefer) -> None:
    model, x = make("residual")
    with torch.no_grad():
        for block in model:
            block.conv2.weight[:4], block.shortcut[0].weight[:6] = 0, 0
            block.conv1.weight[3:5] = 0
            block.bn1.bias[3:5] = -5
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert_agree(model, dense, x)
    (engine,) = engines(model)
    for one in engine.prepare().fused:
        layer = one.parts[0]
        if layer.kernel_size == (3, 3) and layer.bias is None:  # conv1: inside of the block
            assert set(range(12)) - set(one.outputs.tolist()) == {3, 4}
        else:
            assert one.outputs is None


def test_a_network_without_filters(prefer: Prefer) -> None:
    model, x = chain(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.zero_()
    dense = copy.deepcopy(model)
    prefer(DROPPED, GRAPH)
    sk.convert(model, x)
    torch.testing.assert_close(run(model, x), run(dense, x))


def test_decisions_are_kept_to(prefer: Prefer) -> None:
    model, x = chain(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        for index in (0, 4, 6, 10):
            model[index].weight[:4] = 0
    prune_(model, "random", 0.5)
    prefer(FINE, DROPPED, GRAPH)
    assert {row.decision for row in sk.convert(model, x, decisions=[FINE]).layers} == {FINE}
    (engine,) = engines(model)
    assert not engine.prepare().links
    assert {row.decision for row in sk.convert(model, x, decisions="channel-dropped").layers} == {DROPPED}
    assert not sk.convert(model, x, decisions=[]).converted
    with pytest.raises(ValueError, match="decisions has 'sparse', accepted are 'dense', 'fine-grained'"):
        sk.convert(model, x, decisions=["sparse"])


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
    assert not list(engines(model))
    assert type(model[0].conv1) is nn.Conv2d


def test_revert_of_what_was_never_converted() -> None:
    layer = nn.Linear(2, 2)
    assert sk.revert(layer) is layer
    with pytest.raises(TypeError, match=r"model is of type int, accepted is a torch\.nn\.Module"):
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
    assert len(list(engines(model))) == 1
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
    assert len(list(engines(model))) == 1
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


def test_code_that_looks_at_types_is_left_to_the_layers(prefer: Prefer) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Any) -> Tensor:
            return self.layer(x if isinstance(x, Tensor) else torch.cat(list(x)))

    model = Looks().eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    torch.testing.assert_close(run(model, x), run(dense, x))


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
        assert len(list(engines(other))) == 1
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


# What stays as it is.


def reasons(report: sk.Report) -> dict[str, str]:
    return {row.name: row.reason for row in report.layers if row.decision == DENSE}


def test_a_model_that_is_not_pruned_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    modules = list(model)
    report = sk.convert(model, torch.randn(2, 3, 8, 8))
    assert list(model) == modules
    assert "forward" not in vars(model)
    assert not report.converted
    assert report.speedup is None
    assert "not pruned" in report.notes[0]
    assert "the model is as it was" in str(report)
    assert set(reasons(report).values()) == {"it has no zeros"}


def test_layers_that_have_to_stay(prefer: Prefer) -> None:
    class Custom(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.hooked, self.custom = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), Custom(4, 4, 1)
            self.pruned, self.parametrized = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.tied, self.tied_too = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.tied_too.weight = self.tied.weight
            self.twice = nn.ModuleList([nn.Conv2d(4, 4, 1)])
            self.twice.append(self.twice[0])
            self.scripted = torch.jit.script(nn.Conv2d(4, 4, 1))
            self.replaced = nn.Conv2d(4, 4, 1)
            self.unused, self.full = nn.Linear(4, 4), nn.Conv2d(4, 4, 1)
            self.strange = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pruned(self.custom(self.hooked(self.plain(x))))
            x = self.tied_too(self.tied(self.parametrized(x)))
            return self.strange(self.full(self.replaced(self.scripted(self.twice[1](self.twice[0](x))))))

    model = Net().eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in ("full", "pruned"):
            with torch.no_grad():
                module.weight[:, 1:] = 0
    with torch.no_grad():
        model.scripted.weight[:, 1:] = 0
        model.strange.weight[0, 0] = torch.nan
    calls: list[int] = []
    model.hooked.register_forward_hook(lambda *_: calls.append(1))
    prune.l1_unstructured(model.pruned, "weight", amount=0.7)
    parametrize.register_parametrization(model.parametrized, "weight", nn.Identity())
    own = model.replaced.forward
    model.replaced.forward = lambda x: own(x) * 2
    x = torch.randn(2, 4, 5, 5)
    expected = run(model, x)
    calls.clear()
    prefer(FINE, GRAPH)
    report = sk.convert(model, x, decisions=[FINE])
    assert [row.name for row in report.converted] == ["plain"], report
    for name, words in {
        "hooked": "hooks",
        "custom": "its class Custom",
        "pruned": "prune.remove",
        "parametrized": "remove_parametrizations",
        "tied": "shared with tied_too",
        "tied_too": "shared with tied",
        "twice.0": "several places: twice.0, twice.1",
        "replaced": "its forward was replaced",
        "unused": "did not call it",
        "full": "no zeros",
        "strange": "NaN",
    }.items():
        assert words in reasons(report)[name], (name, reasons(report)[name])
    calls.clear()
    assert_equal_with_nan(run(model, x), expected)
    assert len(calls) == 1


def assert_equal_with_nan(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_transformer_layers(prefer: Prefer) -> None:
    """torch's fast path multiplies by weights itself; without it, the layers are called."""
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    prune_(model, "random", 0.8)
    with torch.no_grad():
        model.self_attn.out_proj.weight[:, ::2] = 0
    x = torch.randn(2, 5, 16)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert not report.converted
    assert "set_fastpath_enabled(False)" in reasons(report)["linear1"]
    assert "MultiheadAttention" in reasons(report)["self_attn.out_proj"]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = run(model, x)
        assert [row.name for row in sk.convert(model, x).converted] == ["linear1", "linear2"]
        torch.testing.assert_close(run(model, x), expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_nothing_slower_is_kept(prefer: Prefer) -> None:
    model, x = make("residual")
    state = dict(model.named_modules())
    prefer(DENSE, FINE, "as before", GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert not report.converted
    assert "fine-grained would be 0.50x" in report.layers[0].reason
    prefer(FINE, DENSE, "as before", GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert not report.converted
    assert report.speedup is None
    assert any("the whole model was not faster" in note for note in report.notes)
    assert "alone, fine-grained would be 2.00x" in report.layers[0].reason
    assert dict(model.named_modules()) == state
    assert "forward" not in vars(model)


def test_results_that_differ_are_not_used(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that does something else in every call is found out; what was fused wrongly would be as well."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.calls = [0.0]

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += 1.0
            return self.layer(x) * self.calls[0]

    model = Counting().eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, torch.randn(4, 8))
    assert not list(engines(model))
    assert any("gave other results" in note for note in report.notes)


@pytest.mark.parametrize(
    ("model", "input", "error", "words"),
    [
        (3, torch.ones(2), TypeError, "model is of type int"),
        (
            nn.Linear(3, 2),
            torch.ones(2, 4),
            ValueError,
            r"example_input \(a tensor of shape \[2, 4\]\)",
        ),
        (nn.Linear(3, 2), "text", ValueError, "a str"),
        (nn.Linear(3, 2), (), ValueError, r"example_input \(\)"),
        (torch.jit.script(nn.Linear(3, 2)), torch.ones(2, 3), TypeError, "ScriptModule"),
    ],
)
def test_bad_input(model: Any, input: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sk.convert(model, input)


def test_an_error_leaves_the_model_as_it_was(prefer: Prefer) -> None:
    model, x = make("residual")
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match="cannot be called"):
        sk.convert(model, x[:, :3])
    assert dict(model.named_modules()) == modules
    assert len(list(engines(model))) == 1


@pytest.mark.parametrize("training", [True, False])
def test_converting_leaves_no_trace(prefer: Prefer, training: bool) -> None:
    """Not in running statistics, gradients or the random numbers."""
    model, x = make("pre-activation")
    model.train(training)
    model[0].conv1.weight.grad = torch.ones_like(model[0].conv1.weight)
    state = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(model[0].conv1.weight.grad, torch.ones_like(model[0].conv1.weight))
    assert [parameter.grad is not None for parameter in model.parameters()].count(True) == 1
    assert all(module.training == training for module in model.modules())
    assert not x.requires_grad


def test_inside_of_inference_mode(prefer: Prefer) -> None:
    """What convert makes is no inference tensor, whatever mode it is called in; the graph goes on after a change."""
    model, x = make("sequential")
    drop_channels_(model)
    prefer(DROPPED, GRAPH)
    with torch.inference_mode():
        sk.convert(model, x)
    dense = copy.deepcopy(sk.revert(copy.deepcopy(model)))
    for module in (model, dense):
        with torch.no_grad():
            module[0].weight.mul_(2)
    assert_agree(model, dense, x)
    model(x).sum().backward()
    with torch.inference_mode():
        for module in (model, dense):
            module[0].weight = nn.Parameter(module[0].weight * 2)
    assert_agree(model, dense, x)


def test_layers_that_are_alike_are_measured_once(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike in options, inputs, gradients and, to two digits, in their nonzeros."""
    prefer(FINE, GRAPH)
    fake, measured = decide_module.times_of, []

    def counted(calls: Mapping[str, Callable[[], object]], effort: Any) -> Times:
        measured.append(calls)
        return fake(calls, effort)

    monkeypatch.setattr(decide_module, "times_of", counted)

    def conversion(*changes: Callable[[Any], Any], training: bool = False) -> list[str]:
        model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))).train(training)
        prune_(model, "random", 0.8)
        for change in changes:
            change(model)
        measured.clear()
        return [row.reason for row in sk.convert(model, torch.randn(2, 8, 12, 12)).layers]

    reasons = conversion()
    assert len(measured) == 1
    assert [reason.endswith("measured on 0, which is alike") for reason in reasons] == [False, True, True]
    conversion(training=True)
    assert len(measured) == 2  # the first one's input wants no gradient
    for change in (
        lambda net: prune_(net[1], "random", 0.9),
        lambda net: net.__setitem__(1, nn.Sequential(nn.Upsample(scale_factor=2), net[1])),
        lambda net: setattr(net[1], "padding_mode", "circular"),
        lambda net: setattr(net[1], "bias", None),
        lambda net: net[1].to(memory_format=torch.channels_last),
        lambda net: net[1].weight.data[:4].zero_(),
    ):
        conversion(change)
        assert len(measured) > 1, change


@pytest.mark.parametrize(("second", "stays"), [(1.3, True), (1.01, False)])
def test_a_small_gain_is_measured_once_more(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch, second: float, stays: bool
) -> None:
    prefer(FINE, LAYERS)
    gains, asked = iter([1.2, second]), []

    def fake(calls: Mapping[str, Callable[[], object]], effort: Any) -> Times:
        asked.append(list(calls))
        gain = next(gains)
        return Times({name: [1.0 if name == LAYERS else gain if name == "as before" else 2.0] for name in calls})

    monkeypatch.setattr(convert_module, "times_of", fake)
    model, x = make("sequential")
    report = sk.convert(model, x)
    assert asked[1] == ["as before", LAYERS]
    assert bool(report.converted) == stays
    if stays:
        assert report.speedup == pytest.approx(second)


# What else one may try.


def test_a_compiled_model_is_refused() -> None:
    model, x = make("sequential")
    compiled = torch.compile(model)
    with pytest.raises(TypeError, match="is compiled, accepted is what torch.compile was given"):
        sk.convert(compiled, x)
    model.compile()
    with pytest.raises(TypeError, match="is compiled"):
        sk.convert(model, x)


def test_an_empty_batch_is_refused() -> None:
    model, x = make("sequential")
    with pytest.raises(ValueError, match="has a tensor of shape .0, 8, .*accepted is one with elements"):
        sk.convert(model, x[:0])


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, *, images: Tensor, factor: float = 1.0) -> Tensor:
        return self.conv(images) * factor


def test_keyword_arguments(prefer: Prefer) -> None:
    model = ByName().eval()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 9, 9)
    prefer(FINE, LAYERS)
    report = sk.convert(model, example_kwargs={"images": x, "factor": 2.0})
    assert [row.decision for row in report.layers] == [FINE]
    assert report.layers[0].input_shape == (2, 8, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(model(images=x), dense(images=x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"example_input \(images=a tensor of shape \[3\]\): "):
        sk.convert(model, example_kwargs={"images": torch.ones(3)})


def test_a_list_is_one_argument() -> None:
    model, x = make("sequential")
    with pytest.raises(ValueError, match="a list is one argument, a tuple is several"):
        sk.convert(model, [x, x])


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


def test_notes(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3), nn.Conv1d(9, 9, 1)).eval()
    model[3].forward = lambda x: x
    prune_(model, "random", 0.8)
    x = torch.randn(2, 8, 9, 9)
    prefer(FINE, LAYERS, GRAPH)
    monkeypatch.setattr(timer.Interruptions, "_now", staticmethod(lambda: 0))
    notes = sk.convert(model, x).notes
    assert "Layers of other kinds stay as they are: 1 ConvTranspose2d, 1 Conv1d." in notes
    assert "As a graph, the model was no faster: its layers run one by one." in notes
    assert not any("training" in note or "Other programs" in note for note in notes)
    counts = itertools.count(step=10**6)
    monkeypatch.setattr(timer.Interruptions, "_now", staticmethod(lambda: next(counts)))
    notes = sk.convert(model.train(), x).notes
    assert "Measured in training mode: for inference, call model.eval() and convert again." in notes
    assert any("Other programs took the processor" in note for note in notes)


# Training.


def test_training_mode(prefer: Prefer) -> None:
    """The optimiser that there was goes on; gradients are those of the dense layers at the nonzeros."""
    model, x = make("pre-activation")
    dense = copy.deepcopy(model)
    prefer(FINE, LAYERS)
    optimizers = [torch.optim.SGD(module.train().parameters(), 0.05, momentum=0.9) for module in (model, dense)]
    report = sk.convert(model, x)
    assert report.mode == "train"
    assert not list(engines(model))
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


# The report.


def test_report() -> None:
    """By the clock, for once."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 3)).eval()
    prune_(model, "random", 0.95)
    with torch.no_grad():
        model[2].weight.normal_()
    report = sk.convert(model, torch.randn(16, 64, 16, 16))
    assert [row.decision for row in report.layers] == [FINE, DENSE]
    first, second = report.layers
    assert (first.name, first.kind, first.weight_shape, first.input_shape) == (
        "0",
        "Conv2d",
        (64, 64, 3, 3),
        (16, 64, 16, 16),
    )
    assert first.sparsity == pytest.approx(0.95, abs=1e-4)
    assert first.speedup is not None
    assert first.speedup > 1
    assert second.speedup is None
    assert report.speedup is not None
    assert report.speedup > 1
    value = json.loads(report.to_json())
    assert [row["decision"] for row in value["layers"]] == [FINE, DENSE]
    assert value["layers"][0]["speedup"] == pytest.approx(first.speedup)
    assert value["speedup"] == pytest.approx(report.speedup)
    assert (value["mode"], value["threads"]) == ("eval", torch.get_num_threads())
    text = str(report)
    assert "64x64x3x3" in text
    assert "1 of 2 layers are converted: a forward pass takes" in text
    from rich.console import Console

    console = Console(width=160, file=io.StringIO())
    console.print(report)
    assert "fine-grained" in console.file.getvalue()


def test_times_take_turns() -> None:
    from sparsekernels.bench.timer import Effort

    order: list[str] = []
    times = times_of({name: lambda name=name: order.append(name) for name in "ab"}, Effort(0.01, 1e-6, 3, 3))
    assert set(times.rounds) == {"a", "b"}
    assert all(len(rounds) == 3 for rounds in times.rounds.values())
    assert {"a", "b"} == set(order)
    assert Times({"a": [2.0, 4.0], "b": [1.0, 1.0]}).speedup("b", "a") == 3.0


def test_names_of_the_public_surface() -> None:
    assert sk.convert is convert_module.convert
    assert isinstance(sk.convert(nn.Sequential(nn.ReLU()).eval(), torch.ones(2)), sk.Report)
