# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The report of convert: facts, and the sentences made of them."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, convert_module
from torch import nn

import sparsekernels as sk
from sparsekernels import _library, usage
from sparsekernels.conversion.facts import CandidateObstacle, Fact, GraphObstacle, LayerObstacle, Note, Way
from sparsekernels.conversion.report import ExampleReport, Ground, LayerReport, Report
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_facts_become_sentences() -> None:
    assert str(LayerObstacle.NO_ZEROS.of()) == "it has no zeros"
    shared = LayerObstacle.SHARED.of(layers=("first", "second"))
    assert str(shared) == "its weight is shared with first, second"
    reason = GraphObstacle.TENSOR_BY_DEFAULT.of(argument="scale")
    because = "does not run as a graph: its argument scale is a tensor by default."
    assert str(Note.NO_GRAPH_OF_PART.of(part="body", reason=reason)) == f"body {because}"
    assert str(Note.NO_GRAPH.of(reason=reason)) == f"The model as a whole {because}"
    raised = Note.RAISED.of(way=Way.GRAPH, error="OSError: no")
    assert str(raised) == "Running as a graph was rejected: it raised OSError: no."


def test_the_report_holds_facts() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    report = sk.convert(nn.Sequential(first, second).eval(), torch.randn(2, 8))
    obstacles = [row.obstacle for row in report.layers]
    assert [fact and fact.kind for fact in obstacles] == [LayerObstacle.SHARED] * 2
    assert obstacles[0] is not None
    assert obstacles[0].operands == {"layers": ("1",)}
    assert [fact.kind for fact in report.facts] == [Note.NOT_PRUNED]
    value = json.loads(report.to_json())
    assert value["facts"] == [{"kind": "NOT_PRUNED", "operands": {"least": 0.3}}]
    assert value["notes"] == list(report.notes)
    assert value["layers"][0]["obstacle"] == {"kind": "SHARED", "operands": {"layers": ["1"]}}
    assert value["layers"][0]["reason"] == "its weight is shared with 1"


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        (LayerObstacle.NO_ZEROS.of(), {"kind": "NO_ZEROS", "operands": {}}),
        (
            LayerObstacle.LAYOUT.of(layout=torch.sparse_csr),
            {"kind": "LAYOUT", "operands": {"layout": "torch.sparse_csr"}},
        ),
        (
            Note.OTHER_RESULTS.of(way=Way.GRAPH, by=", in gradients"),
            {"kind": "OTHER_RESULTS", "operands": {"way": "graph", "by": ", in gradients"}},
        ),
        (Note.DISTURBED.of(per_second=12.5), {"kind": "DISTURBED", "operands": {"per_second": 12.5}}),
        (
            Note.NO_GRAPH_OF_PART.of(part="body", reason=GraphObstacle.TENSOR_BY_DEFAULT.of(argument="scale")),
            {
                "kind": "NO_GRAPH_OF_PART",
                "operands": {
                    "part": "body",
                    "reason": {"kind": "TENSOR_BY_DEFAULT", "operands": {"argument": "scale"}},
                },
            },
        ),
    ],
)
def test_facts_as_json(fact: Fact, expected: object) -> None:
    row = LayerReport("0", "Linear", (4, 4), None, 0.0, DENSE, obstacle=fact)
    value = json.loads(Report((row,), None, None, "eval", 1, (fact,)).to_json())
    assert value["facts"] == [expected]
    assert value["notes"] == [str(fact)]
    assert value["layers"][0]["obstacle"] == expected
    assert value["layers"][0]["reason"] == str(fact)


WRAPPED = """\
layer  weight     input        sparsity  decision      speedup  why
NAME   64x64x3x3  16x64x16x16  90.0%     fine-grained  2.00x    faster, channel-dropped would be 0.50x, measured on
                                                                first, which is alike; the graph leaves out 4 of its
                                                                outputs and 8 of its inputs
b      8x8        2x8          0.0%      dense                  it has no zeros
"""
BENEATH = """\
layer PAD  weight     input        sparsity  decision      speedup
    why
NAME  64x64x3x3  16x64x16x16  90.0%     fine-grained  2.00x
    faster, channel-dropped would be 0.50x, measured on first, which is alike; the graph leaves out 4 of its outputs and
    8 of its inputs
b     PAD  8x8        2x8          0.0%      dense
    it has no zeros
"""
AFTER = """\
In training mode, BatchNorm and what stands behind it are one step: the residual sum, ReLU, ReLU6 or Hardtanh, dropout.
1 of 2 layers are converted: a forward and backward pass takes 1 ms, before 2 ms (2.00x, on 1 thread)"""


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback=(80, 24): os.terminal_size(fallback))


@pytest.mark.parametrize(("name", "rows"), [("body", WRAPPED), ("n" * 40, BENEATH), ("n" * 60, BENEATH)])
def test_lines_are_120_wide(name: str, rows: str) -> None:
    """Reasons go on below where they begin; beside long names they stand beneath their rows."""
    gains = {FINE: 2.0, DROPPED: 0.5}
    row = LayerReport(
        name, "Conv2d", (64, 64, 3, 3), (16, 64, 16, 16), 0.9, FINE, 2.0, 1.0, gains, "first", omitted=(4, 8)
    )
    stays = LayerReport("b", "Linear", (8, 8), (2, 8), 0.0, DENSE, obstacle=LayerObstacle.NO_ZEROS.of())
    fused = Note.FUSED_IN_TRAINING.of(behind=("the residual sum", "ReLU", "ReLU6 or Hardtanh", "dropout"))
    report = Report((row, stays), 2.0, 1.0, "train", 1, (fused,), Way.GRAPH)
    pad = " " * (len(name) - len("layer"))
    assert str(report) == rows.replace("NAME ", f"{name} ").replace(" PAD", pad) + AFTER
    assert max(map(len, str(report).splitlines())) <= 120


def test_a_reason_begins_with_what_was_chosen() -> None:
    """Faster on the whole, another one may be slower in an example."""
    gains, slowest = {FINE: 1.2, DROPPED: 1.5}, {FINE: (0, 1.0), DROPPED: (1, 0.8)}
    row = LayerReport("a", "Linear", (8, 8), (2, 8), 0.9, FINE, 1.2, 1.0, gains, slowest=slowest)
    assert row.reason == "measured to be faster, channel-dropped would be 1.50x (but 0.80x with example_inputs[1])"


def _of_blocks() -> Report:
    """Twelve blocks of two layers, a head, and four layers of no order."""
    rows = []
    for block in range(12):
        for part, shape in (("attn.qkv", (1152, 384)), ("mlp.fc1", (1536, 384))):
            first = None if block == 0 else f"blocks.0.{part}"
            gains = {FINE: 2.0, DROPPED: 0.9}
            sparsity = 0.9 + block / 1000
            name = f"blocks.{block}.{part}"
            rows.append(LayerReport(name, "Linear", shape, (16, 197, 384), sparsity, FINE, 2.0, 1.0, gains, first))
    rows.append(LayerReport("head", "Linear", (9, 384), (16, 384), 0.5, DENSE, 1.0, 1.0, {FINE: 0.8}))
    obstacle = LayerObstacle.NO_ZEROS.of()
    rows += [LayerReport(f"aux{n}", "Linear", (9, 9), (1, 9), 0.0, DENSE, obstacle=obstacle) for n in (1, 4, 9, 16)]
    return Report(tuple(rows), 2.0, 1.0, "eval", 1, (Note.FUSED.of(),), Way.GRAPH)


ALIKE = """\
layer                 weight    input       sparsity    decision      speedup  why
blocks.0-11.attn.qkv  1152x384  16x197x384  90.0-91.1%  fine-grained  2.00x    measured to be faster, channel-dropped
                                                                               would be 0.90x
blocks.0-11.mlp.fc1   1536x384  16x197x384  90.0-91.1%  fine-grained  2.00x    measured to be faster, channel-dropped
                                                                               would be 0.90x
head                  9x384     16x384      50.0%       dense         1.00x    fine-grained would be 0.80x
aux1 and 3 alike      9x9       1x9         0.0%        dense                  it has no zeros
Fused for calls"""


def test_many_layers_that_are_alike_share_a_row() -> None:
    report = _of_blocks()
    assert str(report).startswith(ALIKE)
    assert len(report.layers) == 29
    few = Report(report.layers[-3:], None, None, "eval", 1)
    assert [line.split()[0] for line in str(few).splitlines()[1:4]] == ["aux4", "aux9", "aux16"]


def test_what_many_layers_were_measured_on() -> None:
    """Is named where it is none of them."""
    gains = {FINE: 0.5}
    rows = [
        LayerReport(f"{n}", "Linear", (9, 9), (1, 9), 0.9, DENSE, 1.0, 1.0, gains, "stem" if n < 4 else None)
        for n in range(8)
    ]
    lines = str(Report(tuple(rows[:4]), None, None, "eval", 1)).splitlines()
    assert "fine-grained would be 0.50x, measured on stem, which is alike" in lines[1]
    assert lines[1].startswith("0-3 ")
    lines = str(Report(tuple(rows), None, None, "eval", 1)).splitlines()
    assert lines[1].startswith("0-7 ")
    assert "measured on" not in lines[1]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", ["head", "decoder." * 9 + "out"])
def test_terminals_of_any_width(width: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is longer, and no word is folded, in plain text and by rich."""
    from rich.console import Console

    report = _of_blocks()
    report = replace(
        report, layers=tuple(replace(row, name=name) if row.name == "head" else row for row in report.layers)
    )
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback=(80, 24): os.terminal_size((width, 24)))
    console = Console(width=width, file=io.StringIO())
    console.print(report)
    for text in (str(report), console.file.getvalue()):
        assert max(map(len, text.splitlines())) <= min(width, 200)
        words = text.split()
        for word in ("blocks.0-11.attn.qkv", "fine-grained", "decision", "2.00x", "channel-dropped", "evaluation"):
            assert word in words, word
        assert ("1152x384" in words) == ("weight" in words)
        assert "head" in words or any("…" in word and word.endswith(".out") for word in words) or name in words


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"gains": {DROPPED: 0.52, FINE: 0.9}}, " (fine-grained would be 0.90x, channel-dropped would be 0.52x)"),
        (
            {"gains": {DROPPED: 0.52}, "measured_on": "0"},
            " (channel-dropped would be 0.52x, measured on 0, which is alike)",
        ),
        ({"obstacle": LayerObstacle.NO_ZEROS.of()}, " (it has no zeros)"),
        (
            {"ruled_out": {FINE: CandidateObstacle.FEW_ZEROS.of(least=0.3)}},
            " (not fine-grained: less than 30% of its weights are zero)",
        ),
        ({}, ""),
    ],
)
def test_reasons_of_what_only_the_graph_leaves_out(found: dict[str, Any], expected: str) -> None:
    """They do not say that it became faster by itself, nor that a preference wanted it."""
    row = LayerReport(
        "0", "Linear", (8, 8), (2, 8), 0.2, DROPPED, dense_ms=1.0, ground=Ground.GRAPH, omitted=(2, 0), **found
    )
    assert row.reason == f"dense by itself{expected}; the graph leaves out 2 of its outputs"
    assert row.speedup is None


@pytest.mark.parametrize(
    ("mode", "facts", "what"),
    [
        ("eval", (), "a forward pass"),
        ("train", (Note.TRAINING_MODE.of(),), "a forward and backward pass"),
        ("train", (Note.TRAINING_MODE.of(), Note.NO_GRADIENT.of()), "a forward pass"),
    ],
)
def test_the_pass_that_was_timed(mode: str, facts: tuple[Fact, ...], what: str) -> None:
    for times, verb in ((2.0, "takes 2 ms"), (None, "was not measured")):
        assert f"{what} {verb}" in Report((), times, times, mode, 1, facts, Way.LAYERS).summary()


def test_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, for once, whatever else the machine does."""
    monkeypatch.setattr(usage.Usage, "disturbs", lambda *_: False)
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


@pytest.mark.parametrize(
    ("runs", "disturbed", "words"),
    [
        (7, False, "takes 2.29 ms, before 104 ms (45.59x, on 1 thread)"),
        (7, True, "takes about 2.3 ms, before about 100 ms (about 46x, disturbed, on 1 thread)"),
        (1, False, "takes about 2.3 ms, before about 100 ms (about 46x, by one run, on 1 thread)"),
        (2, True, "takes about 2.3 ms, before about 100 ms (about 46x, disturbed, by 2 runs, on 1 thread)"),
    ],
)
def test_figures_have_the_digits_that_are_known(runs: int, disturbed: bool, words: str) -> None:
    report = Report((), 104.4, 2.29, "eval", 1, (), Way.LAYERS, runs=runs, disturbed=disturbed)
    assert report.summary() == f"0 of 0 layers are converted: a forward pass {words}"
    examples = tuple(ExampleReport(name, 104.4, 2.29) for name in "ab")
    report = replace(report, examples=examples)
    gain = words.partition("(")[2].partition(",")[0]
    assert f"layers are converted: {gain} by the geometric mean over 2 examples, " in report.summary()
    assert report.notes[0] == f"a: {words.partition(' ')[2].partition(' (')[0]} ({gain})"


def test_an_obstacle_of_several_layers_is_written_out_once() -> None:
    obstacle = LayerObstacle.MASKED.of(name="weight")
    short = LayerObstacle.NO_ZEROS.of()
    rows = tuple(
        LayerReport(name, "Conv2d", (place + 1, 1, 1, 1), None, 0.0, DENSE, obstacle=fact)
        for place, (name, fact) in enumerate(
            (("stem", obstacle), ("first", short), ("second", short), ("body", obstacle), ("head", obstacle))
        )
    )
    lines = str(Report(rows, None, None, "eval", 1)).splitlines()
    assert "its mask is applied in each call;" in lines[1]
    found = [line.split("dense")[-1].strip() for line in lines[2:] if "dense" in line]
    assert found == ["it has no zeros", "it has no zeros", "as for stem", "as for stem"]
    assert rows[-1].reason == str(obstacle)


def test_a_layer_that_is_the_whole_model_has_a_name() -> None:
    layer = nn.Linear(8, 8)
    prune_(layer, "random", 0.5)
    assert str(sk.convert(layer, torch.randn(2, 8))).splitlines()[1].startswith("(model)  8x8  ")


def test_names_of_the_public_surface() -> None:
    assert sk.convert is convert_module.convert
    assert isinstance(sk.convert(nn.Sequential(nn.ReLU()).eval(), torch.ones(2)), sk.Report)


def test_layers_that_a_part_has_converted_are_counted(prefer: Prefer) -> None:
    part = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    prune_(part, "random", 0.9)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(part, torch.randn(4, 16))
    model = nn.Sequential(part, nn.Linear(16, 4)).eval()
    report = sk.convert(model, torch.randn(4, 16))
    assert not report.converted
    assert report.notes[0].startswith("2 of 3 layers were converted before, with a part of the model, and stay")
    assert not any("can be exchanged" in note for note in report.notes)
    assert [row.verdict for row in report.layers] == ["as before", "as before", "dense"]
    sk.revert(model)
    prune_(model, "random", 0.9)
    assert len(sk.convert(model, torch.randn(4, 16)).converted) == 3


def test_weights_without_data() -> None:
    model = nn.Sequential(nn.Linear(16, 16, device="meta")).eval()
    report = sk.convert(model, torch.randn(4, 16, device="meta"))
    assert report.notes[0].startswith("The model's weights have no data")
