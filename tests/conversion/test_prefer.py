# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparsekernels.testing.prefer: decisions without the clock; and what the timer does for convert."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from conversion_checks import CHAINS, DENSE, DROPPED, FINE, GRAPH, LAYERS, graphs_of
from conversion_nets import make
from torch import nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import measure
from sparsekernels.conversion.report import Ground, Way
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
    assert notes == ("No way to run the model that sparsekernels.testing.prefer names is possible: it is unchanged.",)


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
    assert "forward" not in vars(model)


def test_nesting_restores() -> None:
    model, x = make("sequential")
    with prefer(FINE, GRAPH):
        with prefer(FINE, LAYERS):
            assert sk.convert(model, x).way is Way.LAYERS
        with contextlib.suppress(KeyError), prefer(FINE, LAYERS):
            raise KeyError
        assert sk.convert(model, x).way is Way.GRAPH


@pytest.mark.parametrize("name", ["sparse", "as before", "Graph", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="prefer: expected names of 'dense', .*'layers', .*got "), prefer(FINE, name):
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
