# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparsekernels.testing.prefer: decisions without the clock; and what the timer does for convert."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from conversion_checks import ALL_CHAINS, CHAINS, DENSE, DROPPED, FINE, GRAPH, LAYERS, assert_agree, graphs_of
from conversion_nets import make
from torch import nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import measure
from sparsekernels.conversion.candidates import candidate_of
from sparsekernels.conversion.facts import Way
from sparsekernels.conversion.modules import GRAPH as GRAPH_OF
from sparsekernels.conversion.report import Ground
from sparsekernels.pruning import prune_
from sparsekernels.testing import prefer
from sparsekernels.timing import Effort, samples_of

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "samples_of", lambda *_: pytest.fail("the clock was asked"))


@pytest.mark.parametrize(
    ("names", "way"),
    [
        ((FINE, GRAPH, LAYERS), Way.GRAPH),
        ((FINE, LAYERS, GRAPH), Way.LAYERS),
        ((LAYERS, FINE), Way.LAYERS),
        ((FINE, CHAINS, GRAPH), Way.CHAINS),
    ],
)
def test_the_first_that_applies(names: tuple[str, ...], way: Way) -> None:
    model, x = make("sequential")
    with prefer(*names):
        report = sk.convert(model, x)
    assert report.way is way
    assert bool(list(graphs_of(model))) is (way is not Way.LAYERS)
    assert {row.decision for row in report.layers} == {FINE}
    assert {row.ground for row in report.layers} == {Ground.PREFERENCE}
    assert report.speedup is None
    assert {row.ms for row in report.layers} == {None}
    assert report.summary().endswith("and a forward pass was not measured")
    assert not any("faster" in note for note in report.notes), report.notes


def test_what_does_not_apply_gives_way() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[0] = 0  # an empty filter
        model[2].weight[:, :, 0, 0] -= model[2].weight[:, :, 0, 0].diag().diag()  # no empty channels
    with prefer(DROPPED, FINE, LAYERS):
        report = sk.convert(model, torch.randn(2, 4, 5, 5))
    assert [row.decision for row in report.layers] == [DROPPED, DENSE]
    with torch.no_grad():
        model[2].weight[0, 1] = 0
        model[2].weight[1, 0] = 0
    with prefer(DROPPED, FINE, LAYERS):
        report = sk.convert(model, torch.randn(2, 4, 5, 5))
    assert [row.decision for row in report.layers] == [DROPPED, FINE]


def test_no_way_to_run_the_model_is_named() -> None:
    model, x = make("sequential")
    with prefer(FINE):
        notes = sk.convert(model, x).notes
    assert notes == ("sparsekernels.testing.prefer names no way to run the model, such as 'layers' or 'graph'.",)


def test_the_way_that_is_named_is_not_possible() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU()).eval()
    prune_(model, "random", 0.8)
    with prefer(FINE, CHAINS):
        notes = sk.convert(model, torch.randn(2, 16)).notes
    assert notes == ("No way to run the model that sparsekernels.testing.prefer names is possible.",)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("names", "decisions"), [((DENSE, LAYERS), (FINE, DROPPED)), ((FINE, LAYERS), (DROPPED,))])
def test_every_layer_stays_dense(names: tuple[str, ...], decisions: tuple[str, ...], training: bool) -> None:
    """Preferred, or as there is nothing that it may become: times are not mentioned, as none were measured."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU()).train(training)
    with torch.no_grad():
        model[0].weight[torch.rand(16, 16) < 0.8] = 0
        model[0].weight[:, 0] = model[0].weight[0] = 0.1  # none is empty
    with prefer(*names):
        report = sk.convert(model, torch.randn(2, 16), decisions=decisions)
    assert "Every layer stays dense under sparsekernels.testing.prefer." in report.notes
    assert not any("easured" in note or "aster" in note for note in report.notes)


APPLIES: list[set[str]] = [{FINE, DROPPED}, {FINE}, {DROPPED}, {FINE, DROPPED}]
"""What each layer of `mixed` may become."""


def mixed() -> nn.Sequential:
    """Layers with many zeros, with empty filters, and with both."""
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()) for _ in APPLIES)).eval()
    with torch.no_grad():
        for (layer, _), names in zip(model, APPLIES, strict=True):
            if FINE in names:
                layer.weight[torch.rand_like(layer.weight) < 0.8] = 0
                layer.weight[:, :, 0, 0] = 0.1  # none is empty yet
            if DROPPED in names:
                layer.weight[:2] = 0
    return model


@pytest.mark.parametrize("way", [LAYERS, GRAPH, CHAINS])
@pytest.mark.parametrize("names", [*itertools.permutations([DENSE, FINE, DROPPED], 2), (DENSE,), (FINE,), (DROPPED,)])
def test_each_layer_becomes_the_first_that_applies(names: tuple[str, ...], way: str) -> None:
    """A decision that was not named is never taken, not even to complete a chain."""
    model, x = mixed(), torch.randn(3, 8, 14, 14)
    before = copy.deepcopy(model)
    expected = [next((name for name in names if name == DENSE or name in may), DENSE) for may in APPLIES]
    with prefer(*names, way):
        report = sk.convert(model, x)
    chained = any(pair == (FINE, FINE) for pair in itertools.pairwise(expected))
    taken = {LAYERS: set(expected) != {DENSE}, GRAPH: True, CHAINS: chained}[way]
    assert report.way is (Way(way) if taken else Way.BEFORE)
    rows = [candidate_of(layer) for layer, _ in model]
    assert [DENSE if row is None else row.name for row in rows] == (expected if taken else [DENSE] * len(expected))
    for row, name in zip(report.layers, expected, strict=True):
        omits = name == DENSE and any(row.omitted)  # the graph leaves empty filters out, whatever the layers are
        assert row.ground is (Ground.GRAPH if omits else Ground.PREFERENCE)
        assert row.decision == (DENSE if not taken else DROPPED if omits else name)
    assert_agree(model, before, x)


def test_no_chain_of_what_nobody_named() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))).eval()
    with torch.no_grad():
        for layer in model:
            layer.weight[torch.rand_like(layer.weight) < 0.9] = 0
            layer.weight[:2] = 0
    with prefer(DROPPED, CHAINS, GRAPH):
        report = sk.convert(model, torch.randn(4, 8, 8, 8))
    assert report.way is Way.GRAPH
    assert [row.decision for row in report.layers] == [DROPPED] * 3


def test_places_in_a_preference_are_no_times() -> None:
    """However many names stand before: one place is as good as any."""
    model, x = make("sequential")
    with prefer(*[CHAINS] * 200, FINE, DENSE, LAYERS):
        assert {row.decision for row in sk.convert(model, x).layers} == {FINE}
    with prefer(FINE, *[CHAINS, GRAPH] * 100, LAYERS):
        assert sk.convert(model, x).way is Way.CHAINS
    order = measure.Times({}, ("b", "a", "c", "d"))
    assert not order.measured
    assert order.faster("dabe", "c", 1.03) == ["b", "a"]
    assert order.faster("da", "e", 1.03) == ["a", "d"]


@pytest.mark.parametrize("names", [(FINE,), (DENSE,), (DENSE, LAYERS), ()])
def test_where_none_applies_all_stays(names: tuple[str, ...]) -> None:
    model, x = make("sequential")
    modules = dict(model.named_modules())
    with prefer(*names):
        report = sk.convert(model, x)
    assert not report.converted
    assert report.way is Way.BEFORE
    assert report.notes
    assert dict(model.named_modules()) == modules
    assert GRAPH_OF not in vars(model)


def test_nesting_restores() -> None:
    model, x = make("sequential")
    with prefer(FINE, GRAPH):
        with prefer(FINE, LAYERS):
            assert sk.convert(model, x).way is Way.LAYERS
        with contextlib.suppress(KeyError), prefer(FINE, LAYERS):
            raise KeyError
        assert sk.convert(model, x).way is Way.GRAPH


@pytest.mark.parametrize("name", ["sparse", "as before", "Graph", "", ALL_CHAINS])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="prefer: expected names of 'dense', .*'layers', .*got "), prefer(FINE, name):
        pass


def test_the_error_offers_what_is_documented() -> None:
    """ "graph" stands for that in the input's layout, too."""
    offered = "'dense', 'fine-grained', 'channel-dropped', 'block', 'packed', 'norms', 'layers', 'graph', 'chains'"
    with pytest.raises(ValueError, match=f"^prefer: expected names of {offered}, got 'sparse'$"), prefer("sparse"):
        pass


def test_a_context_is_entered_once_for_each_sample() -> None:
    events: list[str] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        events.append("enter")
        yield
        events.append("leave")

    samples = samples_of({"a": lambda: events.append("call")}, Effort(0, 1e-5, 3, 3), {"a": context})
    assert len(samples["a"]) == 3
    text = " ".join(events)
    assert "call call" in text
    assert events.count("enter") == events.count("leave") < events.count("call")


def test_what_rules_out_a_preference_is_named() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    prune_(model, "random", 0.8)
    nn.init.zeros_(model[1].weight)
    with prefer("fine-grained", "layers"):
        rows = sk.convert(model, torch.randn(4, 16)).layers
    assert [row.decision for row in rows] == ["fine-grained", "dense", "fine-grained"]
    assert "not fine-grained or block: all of its weights are zero" in rows[1].reason
    assert "not channel-dropped" not in rows[0].reason
