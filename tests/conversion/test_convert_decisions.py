# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is decided by measured times."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conversion_checks import BLOCK, DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, attempt_module
from conversion_nets import make
from torch import nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import blocks, candidates
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion.facts import CandidateObstacle
from sparsekernels.conversion.measure import Times
from sparsekernels.conversion.modules import GRAPH as GRAPH_OF
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_nothing_slower_is_kept(clock: Prefer) -> None:
    model, x = make("residual")
    state = dict(model.named_modules())
    clock(DENSE, FINE, "as before", GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert not report.converted
    assert "fine-grained would be 0.50x" in report.layers[0].reason
    clock(FINE, DENSE, "as before", GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert not report.converted
    assert report.speedup is None
    assert any("The whole model was not reliably faster" in note for note in report.notes)
    assert "alone, fine-grained would be 2.00x" in report.layers[0].reason
    assert dict(model.named_modules()) == state
    assert GRAPH_OF not in vars(model)


def test_layers_that_are_alike_are_measured_once(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike in options, inputs, gradients and, to two digits, in their nonzeros."""
    clock(FINE, GRAPH)
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


def test_rows_that_are_added_are_asked(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, and of layers without zeros as well."""
    kind, asked = candidates.CANDIDATES[1], []
    row = dataclasses.replace(kind, name="added", obstacle=lambda layer: asked.append(layer.name))
    monkeypatch.setattr(candidates, "CANDIDATES", [*candidates.CANDIDATES, row])
    model, x = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)).eval(), torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        model[1].weight[0, 0] = 0  # few zeros, and no empty channel
    prefer("added", FINE, LAYERS)
    assert [one.decision for one in sk.convert(model, x, decisions=[FINE]).layers] == [DENSE] * 2
    assert [one.decision for one in sk.convert(model, x).layers] == ["added"] * 2
    assert set(asked) == {"0", "1"}


def test_a_layer_has_reasons_for_what_it_cannot_become(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "has_block_kernel", lambda device, dtype, block: False)
    layers = nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        layers[0].weight.zero_()
        layers[1].weight.copy_(layers[1].weight[..., 0, 0].triu()[..., None, None])
        layers[2].weight[0] = 0
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 4, 9, 9)
    clock(DENSE, FINE, DROPPED, "as before", GRAPH, LAYERS)
    rows = sk.convert(model, x).layers
    kinds = [{name: fact.kind for name, fact in row.ruled_out.items()} for row in rows]
    assert kinds == [
        {FINE: CandidateObstacle.ALL_ZERO, DROPPED: CandidateObstacle.GROUPS, BLOCK: CandidateObstacle.ALL_ZERO},
        {DROPPED: CandidateObstacle.NO_EMPTY_CHANNELS, BLOCK: CandidateObstacle.NO_BLOCKS},
        {FINE: CandidateObstacle.FEW_ZEROS, BLOCK: CandidateObstacle.FEW_ZEROS},
    ]
    assert [set(row.gains) for row in rows] == [set(), {FINE}, {DROPPED}]
    assert rows[0].reason == (
        "there is nothing that it may become; not fine-grained or block: all of its weights are zero; not"
        " channel-dropped: it has 2 groups"
    )
    report = sk.convert(model, x, decisions=[DROPPED])
    assert report.layers[1].reason == (
        "there is nothing that it may become; not channel-dropped: none of its filters and input channels is all zero"
    )
    value = json.loads(report.to_json())["layers"][0]
    assert value["ruled_out"] == {DROPPED: {"kind": "GROUPS", "operands": {"groups": 2}}}


@pytest.mark.parametrize(
    ("second", "stays"),
    [([1.3], True), ([1.01], False), ([1.1, 0.9, 1.1, 0.9, 1.1], False), ([1.1, 0.9, 1.1, 1.1, 1.1], True)],
)
def test_a_small_gain_is_measured_once_more(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch, second: list[float], stays: bool
) -> None:
    """By more than the first time, and has to be there in most of the rounds."""
    prefer(FINE, LAYERS)
    gains, asked, efforts = iter([[1.2], second]), [], []

    def fake(calls: Mapping[str, Callable[[], object]], effort: Any, *_: Any, **__: Any) -> Times:
        asked.append(list(calls))
        efforts.append(effort)
        gain = next(gains)
        times = {LAYERS: [1.0] * len(gain), "as before": gain}
        return Times({name: times.get(name, [2.0] * len(gain)) for name in calls})

    monkeypatch.setattr(attempt_module, "times_of", fake)
    model, x = make("sequential")
    report = sk.convert(model, x)
    assert asked[1] == ["as before", LAYERS]
    assert efforts[1].seconds > efforts[0].seconds
    assert efforts[1].least > efforts[0].least
    assert bool(report.converted) == stays
    if stays:
        assert report.speedup == pytest.approx(statistics.median(second))


def test_the_next_takes_the_place_of_a_gain_that_was_luck(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(FINE, LAYERS)
    asked: list[list[str]] = []

    def fake(calls: Mapping[str, Callable[[], object]], effort: Any, *_: Any, **__: Any) -> Times:
        asked.append(list(calls))
        others = list(calls)[1:]
        gains = dict.fromkeys(others, 0.5)
        if len(asked) == 1:
            gains |= {others[0]: 1.2, others[1]: 1.15}
        else:
            gains[others[0]] = 1.0 if len(asked) == 2 else 1.1
        return Times({name: [1 / gains.get(name, 1.0)] for name in calls})

    monkeypatch.setattr(attempt_module, "times_of", fake)
    model, x = make("sequential")
    report = sk.convert(model, x)
    assert report.converted
    assert report.speedup == pytest.approx(1.1)
    before, first, second, *_ = asked[0]
    assert asked[1:] == [[before, first], [before, second]]
