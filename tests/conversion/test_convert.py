# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert: results, and what is fused."""

from __future__ import annotations

import copy
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
    graph_of,
    graphs_of,
    run,
)
from conversion_nets import NETS, drop_channels_, make
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench.models import MODELS
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion.measure import Times
from sparsekernels.conversion.modules import GRAPH as GRAPH_OF
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
    assert [graph.layout for graph in graphs_of(model)] == [torch.preserve_format]
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
    assert [name for name, module in model.named_modules() if GRAPH_OF in vars(module)] == ["body"]
    assert any("does not run as a graph" in note and "decides by what tensors hold" in note for note in report.notes)
