# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert: results, what is fused, channels, the report."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Mapping

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
    graph_of,
    graphs_of,
    run,
)
from conversion_nets import NETS, drop_channels_, make
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench.models import MODELS, calibrate_
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion.measure import Times, times_of
from sparsekernels.pruning import prune_

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
    assert bool(list(graphs_of(model))) == (how == GRAPH)
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
    prefer(FINE, "graph in the input's layout")
    dense = copy.deepcopy(model)
    sk.convert(model, x)
    assert [graph.contiguous for graph in graphs_of(model)] == [False]
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
    chained = [one for graph in graphs_of(model) for one in graph.prepare().chained]
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
    (graph,) = graphs_of(model)
    assert graph.prepare().chained
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
    (graph,) = graphs_of(model)
    assert [len(one.steps) for one in graph.prepare().chained] == [3, 2]
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
    (graph,) = graphs_of(model)
    first, second, third, head, last = graph.prepare().fused
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


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_channels_that_are_no_numbers_stay(prefer: Prefer, value: float) -> None:
    """An infinite bias times a zero is no number in the dense model: nor is it here, in the same places."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 9, 9)
    prefer(DROPPED, GRAPH)
    sk.convert(model, x)
    assert list(graphs_of(model))
    for module in (model, dense):  # found out by convert itself, if it had been there before
        with torch.no_grad():
            module[0].bias[0] = value
    assert_agree(model, dense, x)


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
    (graph,) = graphs_of(model)
    for one in graph.prepare().fused:
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
    (graph,) = graphs_of(model)
    assert not graph.prepare().links
    assert {row.decision for row in sk.convert(model, x, decisions="channel-dropped").layers} == {DROPPED}
    assert not sk.convert(model, x, decisions=[]).converted
    with pytest.raises(ValueError, match="expected decisions of 'dense', 'fine-grained', .*, got 'sparse'"):
        sk.convert(model, x, decisions=["sparse"])


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
    from sparsekernels.timing import Effort

    order: list[str] = []
    times = times_of({name: lambda name=name: order.append(name) for name in "ab"}, Effort(0.01, 1e-6, 3, 3))
    assert set(times.rounds) == {"a", "b"}
    assert all(len(rounds) == 3 for rounds in times.rounds.values())
    assert {"a", "b"} == set(order)
    assert Times({"a": [2.0, 4.0], "b": [1.0, 1.0]}).speedup("b", "a") == 3.0


def test_names_of_the_public_surface() -> None:
    assert sk.convert is convert_module.convert
    assert isinstance(sk.convert(nn.Sequential(nn.ReLU()).eval(), torch.ones(2)), sk.Report)
