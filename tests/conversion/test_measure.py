# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is made of measured times."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE
from torch import nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import measure
from sparsekernels.conversion.facts import Note, Way
from sparsekernels.conversion.measure import AllTimes, Times, times_of
from sparsekernels.conversion.report import Ground
from sparsekernels.conversion.table import as_text
from sparsekernels.pruning import prune_
from sparsekernels.usage import Disturbed

needs_kernels = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_a_slow_round_cancels() -> None:
    assert Times({"before": [2.0, 20.0, 3.0], "after": [1.0, 10.0, 1.0]}).speedup("after", "before") == 2.0


@pytest.mark.parametrize(
    ("before", "after", "expected"), [([8.0], [1.0, 2.0, 3.0], 4.0), ([1.0, 2.0, 3.0], [8.0], 0.25)]
)
def test_one_sample_is_compared_with_all_of_the_other(before: list[float], after: list[float], expected: float) -> None:
    times = Times({"before": before, "after": after})
    assert times.speedup("after", "before") == expected
    assert times.milliseconds("before") / times.speedup("after", "before") == times.milliseconds("after")


def test_times_take_turns() -> None:
    from sparsekernels.timing import Effort

    order: list[str] = []
    times = times_of({name: lambda name=name: order.append(name) for name in "ab"}, Effort(0.01, 1e-6, 3, 3))
    assert set(times.rounds) == {"a", "b"}
    assert all(len(rounds) == 3 for rounds in times.rounds.values())
    assert {"a", "b"} == set(order)
    assert Times({"a": [2.0, 4.0], "b": [1.0, 1.0]}).speedup("b", "a") == 3.0


def test_the_faster_ones_in_order() -> None:
    times = Times({"dense": [6.0, 6.0], "a": [3.0, 3.0], "b": [2.0], "c": [6.0, 6.0]})
    assert times.measured
    assert times.faster("abc", "dense", 1.03) == ["b", "a"]
    assert times.faster("abc", "dense", 0.5) == ["b", "a", "c"]
    assert times.faster("", "dense", 0.5) == []


def _disturbed(*seconds: float) -> list[float]:
    return list(map(Disturbed, seconds))


def test_disturbed_samples_do_not_count_where_there_are_others() -> None:
    times = Times({"dense": [6.0, 6.0, 6.0, *_disturbed(50.0)], "a": [*_disturbed(1.0), 3.0, 3.0, 3.0]})
    assert times.speedup("a", "dense") == 2.0  # the medians' ratio: two rounds alone have both
    assert times.milliseconds("dense") == 6e3
    times = Times({"dense": [6.0, 6.0, 6.0, *_disturbed(50.0)], "a": [3.0, 2.0, 3.0, *_disturbed(1.0)]})
    assert times.speedup("a", "dense") == times.milliseconds("dense") / times.milliseconds("a") == 2.0
    assert times.share_faster("a", "dense") == 1.0
    assert times.is_certain("a", "dense")


@pytest.mark.parametrize(
    ("dense", "a", "certain"),
    [
        ([6.0, 6.1, 6.2], [5.0, 5.1, 5.2], True),
        ([6.0], [5.0], True),  # long calls have few rounds
        (_disturbed(6.0, 8.0, 7.0), _disturbed(5.0, 5.1, 4.0), False),
        (_disturbed(6.0, 8.0, 7.0), _disturbed(3.0, 3.5, 3.0), True),
        (_disturbed(6.0, 8.0, 7.0), _disturbed(13.0, 19.0, 15.0), True),
        (_disturbed(6.0, 8.0, 7.0, 6.0, 6.0), _disturbed(4.0, 4.5, 5.0, 4.0, 7.0), True),
        (_disturbed(6.0, 8.0, 7.0, 6.0, 6.0), _disturbed(4.0, 4.5, 9.0, 4.0, 7.0), False),
        (_disturbed(20.0), [1.0, 2.0, 3.0, 1.0], True),
        ([6.0, 6.0, 6.0, *_disturbed(9.0)], [*_disturbed(7.0), 5.0, *_disturbed(8.0, 9.0)], False),
        ([6.0, 6.0, 6.0, *_disturbed(9.0)], [*_disturbed(7.0), 5.0, 5.0, *_disturbed(9.0)], True),
    ],
)
def test_what_is_certain(dense: list[float], a: list[float], certain: bool) -> None:
    times = Times({"dense": dense, "a": a})
    assert times.is_certain("a", "dense") is certain
    faster = times.speedup("a", "dense") >= 1.03
    assert times.faster(["a"], "dense", 1.03) == (["a"] if certain and faster else [])
    assert AllTimes((times, times)).is_certain("a", "dense") is certain
    slower = Times({"dense": [1.0] * 3, "a": [2.0] * 3})
    assert AllTimes((times, slower)).is_certain("a", "dense")
    assert AllTimes((times, slower)).faster(["a"], "dense", 0.1) == []
    assert AllTimes((slower, times)).samples(["a", "dense"]) == min(3, len(dense), len(a))


def _pruned() -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))).eval()
    prune_(model, "random", 0.9)
    return model


def _clock(monkeypatch: pytest.MonkeyPatch, speeds: Mapping[str, list[float]]) -> None:
    """The samples of ways are these, for any number of rows; 1.0 of what is not named."""
    known = {way: speeds[FINE] for way in ("dense_rows", "packed_dense_rows") if FINE in speeds} | speeds

    def samples(calls: Mapping[str, Callable[[], object]], *_: object) -> dict[str, list[float]]:
        return {name: known.get(name, [1.0, 1.0, 1.0]) for name in calls}

    monkeypatch.setattr(measure, "samples_of", samples)


@needs_kernels
def test_undecided_layers_stay_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _clock(monkeypatch, {FINE: _disturbed(0.3, 2.0, 0.3)})
    report = sk.convert(_pruned(), torch.randn(4, 64), decisions=[FINE])
    assert [fact.kind for fact in report.facts if fact.kind is not Note.DISTURBED] == [Note.UNDECIDED]
    assert report.notes[0].startswith("3 of 3 layers are undecided and stay as they are: other programs disturbed")
    assert "Convert again when the machine is quiet." in report.notes[0]
    assert report.converted == ()
    for row, line in zip(report.layers, as_text(report, 120).splitlines()[1:], strict=False):
        assert (row.decision, row.ground, row.speedup, row.gains) == (DENSE, Ground.UNDECIDED, None, {})
        assert "90.0%     undecided" in line
        assert row.reason == "it stays dense, since other programs disturbed the measurement"


@needs_kernels
@pytest.mark.parametrize(
    ("fine", "whole", "decision", "words"),
    [
        (_disturbed(0.1, 0.2, 0.3), 0.5, FINE, "plainly faster; by how much, other programs kept from being measured"),
        (_disturbed(9.0, 4.0, 9.0), 0.5, DENSE, "plainly slower otherwise; by how much, other programs kept"),
        (
            _disturbed(0.1, 0.2, 0.3),
            2.0,
            DENSE,
            "alone, it would be faster otherwise; see the notes on the whole model",
        ),
    ],
)
def test_what_is_plain_has_no_speedup(
    fine: list[float], whole: float, decision: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {one.value: [whole] * 3 for one in Way if one is not Way.BEFORE}
    _clock(monkeypatch, {FINE: fine, **ways})
    report = sk.convert(_pruned(), torch.randn(4, 64), decisions=[FINE])
    for row in report.layers:
        assert (row.decision, row.speedup, row.gains) == (decision, None, {})
        assert row.reason.startswith(words)
        assert words.split(";")[0] in str(report)


@needs_kernels
@pytest.mark.parametrize(
    ("after", "way", "note"),
    [
        (_disturbed(0.3, 0.3, 2.0), Way.BEFORE, Note.MODEL_UNDECIDED),
        (_disturbed(0.3, 0.3, 0.4), Way.LAYERS, None),
        ([2.0, 2.0, 2.0], Way.BEFORE, Note.MODEL_NOT_FASTER),
    ],
)
def test_an_undecided_model_stays(
    after: list[float], way: Way, note: Note | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {one.value: [3.0, 3.0, 3.0] for one in Way if one not in (Way.BEFORE, Way.LAYERS)}
    _clock(monkeypatch, {FINE: [0.5, 0.5, 0.5], Way.LAYERS.value: after, **slow})
    report = sk.convert(_pruned(), torch.randn(4, 64), decisions=[FINE])
    assert report.way is way
    kinds = {fact.kind for fact in report.facts}
    assert kinds & {Note.MODEL_UNDECIDED, Note.MODEL_NOT_FASTER} == ({note} if note else set())
    assert ("is faster with the faster layers" in str(report)) == (note is Note.MODEL_UNDECIDED)
    assert report.disturbed == (way is Way.LAYERS)
    assert ("about 3.3x, disturbed, on" in report.summary()) == (way is Way.LAYERS)


def _rows_of(call: Any) -> int | None:
    """Of the input that a call of a layer is given; None of calls of the whole model."""
    while isinstance(call, functools.partial):
        given = call.args[-1] if call.args else None
        input = given[0] if isinstance(given, list) else given
        if isinstance(input, torch.Tensor):
            return input.numel() // input.shape[-1]
        call = call.func
    return None


@needs_kernels
@pytest.mark.parametrize(("at_prompt", "taken"), [(0.93, True), (0.87, False)])
@pytest.mark.parametrize("frozen", [True, False])
def test_what_frees_memory_may_be_a_tenth_slower_in_one_example(
    at_prompt: float, taken: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But no way that does not."""
    passes: list[int] = []

    def samples(calls: Mapping[str, Callable[[], object]], *_: object) -> dict[str, list[float]]:
        rows = _rows_of(next(iter(calls.values())))
        if rows is None:
            passes.append(1)
            rows = 1 if len(passes) % 2 else 40
        fast = 1 / (3.0 if rows == 1 else at_prompt)
        kept = {DENSE, Way.BEFORE.value}
        return {name: [1.0 if name in kept else fast] * 5 for name in calls}

    monkeypatch.setattr(measure, "samples_of", samples)
    examples = [((torch.randn(rows, 64),), {}) for rows in (1, 40)]
    decision = "packed" if frozen else DROPPED
    model = _pruned()
    with torch.no_grad():
        for layer in model:
            layer.weight[:, :8] = 0
    report = sk.convert(model, example_inputs=examples, decisions=[decision], frozen=frozen)
    assert {row.decision for row in report.layers} == {decision if taken and frozen else DENSE}
    if frozen:
        assert all(row.slowest[decision] == (1, pytest.approx(at_prompt)) for row in report.layers)
    else:  # its layers go to their dense weights there, and the model is slower
        assert Note.SLOWER_IN_EXAMPLE in {fact.kind for fact in report.facts}


@needs_kernels
def test_a_graph_that_is_not_faster_has_no_faster_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _pruned()
    with torch.no_grad():
        model[0].weight[:8] = 0  # empty filters, which a graph leaves out
    _clock(monkeypatch, {name: [2.0, 2.0, 2.0] for name in (FINE, DROPPED, *(one.value for one in Way))})
    report = sk.convert(model, torch.randn(4, 64))
    assert report.converted == ()
    assert "The whole model was not reliably faster as a graph." in report.notes
