# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `networks`: variants, the estimate, the check before the timing, the command line."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import one_line, run
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench import network_checks, networks, report, suite, worker
from sparsekernels.bench.defaults import MEMORY_FORMATS
from sparsekernels.bench.models import MODELS, Model
from sparsekernels.bench.network import Layer, Network, call_of
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.conversion.graph.attach import attach
from sparsekernels.conversion.graph.batch_norm import FusedNorm
from sparsekernels.conversion.graph.training import TrainingGraph
from sparsekernels.pruning import prunable
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Small(nn.Module):
    """Two convolutions, a depthwise one between them, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.middle, self.second = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(torch.relu(self.middle(x)))).mean((2, 3)))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network called small, and one thread."""
    monkeypatch.setitem(MODELS, "small", Model(Small, (3, 8, 8), 5, "for this test"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(pass_: str = "forward", batch: int = 6, **parameters: Any) -> Case:
    return Case("networks", "test/small", pass_, "float32", "cpu", batch, True, parameters, True)


def measure(case: Case, selection: Selection) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    found = worker.measure(networks.SUITE, case, networks.variants(case, selection), session)
    return {one.variant: one for one in found}, [note["text"] for note in notes]


@pytest.mark.parametrize("pass_", ["forward", "step"])
def test_records(pass_: str) -> None:
    records, notes = measure(make_case(pass_), Selection(sparsities=(50, 90), masks=("clustered",)))
    assert not notes
    fused = ["dense-fused", "dense-fused-bf16"] if pass_ == "forward" else ["dense-fused"]
    assert list(records) == ["dense", "dense-bf16", *fused] + [
        f"{kind}:clustered-{percent}" for percent in (50, 90) for kind in ("dropped", "converted")
    ]
    for record in records.values():
        assert record.status == "ok"
        assert record.details["batch"] == 6
    assert records["dense"].details["layout"] in MEMORY_FORMATS
    assert 0 <= records["dense"].details["not_layers"] < 1
    assert records["converted:clustered-90"].sparsity == 0.9
    assert records["converted:clustered-90"].details["estimated_speedup"] > 1
    assert records["converted:clustered-90"].details["layers"].endswith("/4")
    assert "wrong" not in report.markdown(list(records.values()), {"networks": networks.SUITE.layout})


def test_what_is_measured() -> None:
    def names(selection: Selection, **parameters: Any) -> list[str]:
        found = [variant.name for variant in networks.variants(make_case(**parameters), selection)]
        return [name for name in found if not name.startswith("dense")]

    assert len(names(Selection())) == 3 * 6 * 2
    quick = names(Selection(quick=True))
    assert quick == ["converted:random-80", "converted:random-90", "dropped:random-95", "converted:random-95"]
    assert names(Selection(quick=True), quick_sparsities=[90]) == ["converted:random-90"]
    assert names(Selection(sparsities=(97.5,)), masks=["magnitude"]) == [
        "dropped:magnitude-97.5",
        "converted:magnitude-97.5",
    ]
    assert names(Selection(sparsities=(97.5,), masks=("random",)), masks=["magnitude"])[0] == "dropped:random-97.5"


@pytest.mark.parametrize("pass_", ["forward", "step"])
def test_zeros_in_blocks(pass_: str) -> None:
    selection = Selection(sparsities=(75,), blocks=("4x2", "8x1"), variants=("dense", "dense-bf16", "converted*"))
    records, notes = measure(make_case(pass_), selection)
    assert not notes
    kinds = ("converted", "converted-bf16")
    expected = [f"{kind}:{block}-75" for block in ("4x2", "8x1") for kind in kinds]
    assert [name for name in records if ":" in name] == expected
    assert {one.status for one in records.values()} == {"ok"}
    assert {records[name].sparsity for name in expected} == {0.75}
    network = Network(make_case(pass_))
    last = dict(prunable(network.pruned("4x1", 0.75)))["last"].weight  # 5x4, of which 2 of 8 blocks are left
    rows = last.detach().ne(0)
    assert rows[:4].all(0).sum() + rows[4:].all(0).sum() == 2
    assert rows.sum() <= 8


def test_every_case_is_a_network() -> None:
    cases = suite.read_cases("networks")
    assert {case.name.partition("/")[2] for case in cases} == set(MODELS) - {"small"}
    assert {case.pass_ for case in cases} == {"forward", "step"}
    quick = [case for case in cases if case.quick]
    assert {case.pass_ for case in quick} == {"forward", "step"}


def test_the_short_benchmark_measures_what_is_asked_for() -> None:
    """By name, also what it would not measure otherwise; of a network that is part of it, those passes."""

    def passes(name: str) -> list[str]:
        return [case.pass_ for case in networks.SUITE.cases(Selection(cases=(name,), quick=True))]

    assert passes("vgg16-d") == ["forward"]
    assert passes("wrn-28-2") == ["forward", "step"]
    assert passes("nothing") == []


def test_the_estimate_is_sparse_momentums() -> None:
    """t * weight density * input density; t * (1 - empty channels) * (1 - empty maps)."""
    network = Network(make_case())
    model = network.pruned("random", 0.0)
    shares = {"first": (2.0, 0.5, 0.25), "second": (1.0, 0.4, 0.5), "last": (1.0, 1.0, 0.0)}
    network.layers = {name: Layer(*share) for name, share in shares.items()}
    with torch.no_grad():
        model.first.weight[:, 0] = 0  # a third of the channels, and of the weights
        model.second.weight[:3] = 0  # three quarters of the weights, no channel
    fine = 2 * 0.5 * 2 / 3 + 0.4 * 0.25 + 1
    channels = 2 * 0.75 * 2 / 3 + 0.5 + 1
    assert network.estimate("converted", model) == pytest.approx(4 / fine, rel=1e-3)
    assert network.estimate("dropped", model) == pytest.approx(4 / channels, rel=1e-3)


def test_layers_are_timed_on_what_they_are_given() -> None:
    network = Network(make_case())
    assert list(network.layers) == [name for name, _ in prunable(network.model)]
    assert network.layers["first"].input_density == 1
    assert 0 < network.layers["second"].input_density < 1
    assert all(layer.seconds > 0 for layer in network.layers.values())
    with torch.no_grad():
        network.model.middle.bias[2] = -1e6
    other = Network(make_case())
    other.model = network.model
    assert other.layers["second"].zero_maps >= 1 / 8


@pytest.mark.parametrize("pass_", ["forward", "step"])
def test_a_wrong_conversion_has_no_time(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: nn.Module, *args: Any, **kwargs: Any) -> sk.Report:
        result = sk.convert(model, *args, **kwargs)
        model.register_forward_hook(lambda _module, _args, scores: 1.01 * scores)
        return result

    monkeypatch.setattr(networks, "convert", spoil)
    records, notes = measure(make_case(pass_), Selection(sparsities=(90,), masks=("random",)))
    assert records["converted:random-90"].status == "wrong"
    assert records["converted:random-90"].p50_ms is None
    assert any("wrong, the largest error is" in note for note in notes)


@pytest.mark.parametrize("spoilt", [None, 0, 2, 3])
def test_a_small_batch_is_checked_by_several(spoilt: int | None) -> None:
    network = Network(make_case("forward", batch=1))
    dense, seen = network.pruned("random", 0.5), []

    def forward(images: Tensor) -> Tensor:
        seen.append(images)
        return dense(images) + (1e-3 if len(seen) - 1 == spoilt else 0)

    images = network.images.contiguous(memory_format=torch.channels_last)
    assert network_checks.check_forward(network, forward, dense, images).passed is (spoilt is None)
    assert len(seen) == network_checks.CHECKED_IMAGES
    assert torch.equal(seen[0], images)
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_a_wrong_training_graph_has_no_time(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that only training runs, and that only gradients show."""
    model = Network(make_case("step")).pruned("random", 0.5)
    dense = copy.deepcopy(model)
    engine = TrainingGraph(model, torch.float32, torch.device("cpu"))
    engine.prepare()
    attach(model, engine.recipe, engine)
    network = Network(make_case("step"))
    assert network_checks.check_step(network, model, dense).passed
    genuine = FusedNorm.forward

    def spoilt(self: FusedNorm, x: Tensor) -> Tensor:
        y = genuine(self, x)
        return y.detach() + factor * (y - y.detach())

    monkeypatch.setattr(FusedNorm, "forward", spoilt)
    assert not network_checks.check_step(network, model, dense).passed


@pytest.mark.parametrize(
    ("index", "error", "passed"),
    [(0, 0.15, True), (1, 0.15, False), (2, 0.45, True), (2, 0.55, False), (3, 7.0, True), (3, math.inf, False)],
)
def test_a_gradient_that_rounding_loses_excuses_no_other(
    index: int, error: float, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first parameter, the dense network gets a tenth wrong in one layout, of the fourth everything."""
    network = Network(make_case("step"))
    model = network.pruned("random", 0.5)
    errors = [torch.zeros(len(list(model.parameters()))) for _ in range(3)]
    errors[0][index], errors[1][0], errors[2][2], errors[2][3] = error, 0.1, 0.4, 8.7
    found = iter(errors)
    monkeypatch.setattr(network_checks.testing, "gradient_errors", lambda *_: next(found))
    verdict = network_checks.check_training(network, model, copy.deepcopy(model))
    assert verdict.passed is passed
    assert verdict.max_error == pytest.approx(error if index != 3 or error == math.inf else 0)
    assert next(found, None) is None


def test_a_step_moves_the_parameters_and_the_check_does_not() -> None:
    network = Network(make_case("step"))
    model = network.pruned("random", 0.5)
    dense = copy.deepcopy(model)
    state = copy.deepcopy(model.state_dict())
    assert network_checks.check_step(network, model, dense).passed
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert model.training
    call_of(network, model, network.images)()
    assert not torch.equal(model.first.weight, state["first.weight"])
    assert not torch.equal(model.norm.running_mean, state["norm.running_mean"])


def test_command_line(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    options = ("--sparsity", "90", "--mask", "magnitude", "--pass", "forward", "--batch", "2", "--threads", "1")
    result = run("bench", "--network", "lenet-300-100", *options, "--quick", "--json", str(file))
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert {record["case"] for record in records} == {"mnist/lenet-300-100@2"}
    assert {record["suite"] for record in records} == {"networks"}
    assert "converted:magnitude-90" in {record["variant"] for record in records}
    result = run("bench", "--network", "lenet-300-100", "--sparsity", "0.9")
    assert result.exit_code == 2
    assert "expected sparsity in percent, got 0.9; for that share of zeros give 90" in one_line(result.output)
    result = run("bench", "--network", "lenet")
    assert result.exit_code == 2
    assert "expected network to be 'lenet-300-100', " in one_line(result.output)
    assert ", got 'lenet'" in one_line(result.output)
    result = run("bench", "layers", "--network", "vgg16-d")
    assert result.exit_code == 2
    assert "expected a suite of networks with --network, such as 'networks', got 'layers'" in one_line(result.output)
