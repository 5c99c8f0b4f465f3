# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings: the same bits for the same run, also when it was interrupted, by every method."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import make, run_of
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekernels.experiments import datasets, methods, networks, training
from sparsekernels.experiments.datasets import Dataset
from sparsekernels.experiments.loop import learning_rate
from sparsekernels.experiments.methods import METHODS
from sparsekernels.experiments.networks import NETWORKS, Network
from sparsekernels.experiments.runs import Run
from sparsekernels.experiments.training import Outcome, Session, Training, train

REPRODUCIBLE = [name for name in METHODS if name not in ("sparse", "block-sparse")]


class Tiny(nn.Module):
    """With dropout and BatchNorm; the parts of a training that have a state of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5, stride=4)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(288, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(F.relu(self.bn(self.conv(x))).flatten(1), 0.2, self.training))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", Network(Tiny, False, "small"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.load("idx", make(tmp_path_factory.mktemp("data")))


def run_with(method: str, **changes: Any) -> Run:
    density = 0.1 if METHODS[method].sparse else None
    return run_of(network="tiny", method=method, density=density, epochs=3, evaluations=2, **changes)


def found(outcome: Outcome) -> tuple[Any, ...]:
    """All but the times."""
    points = [{key: value for key, value in point.items() if key != "seconds"} for point in outcome.points]
    return points, outcome.nonzeros, outcome.weights, outcome.status, outcome.results


class TestTrain:
    @pytest.mark.parametrize("method", REPRODUCIBLE)
    def test_the_same_run_has_the_same_bits(self, method: str, data: Dataset) -> None:
        before = torch.get_rng_state(), torch.get_num_threads()
        outcome = train(run_with(method), data, Session())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.get_num_threads() == before[1]
        torch.manual_seed(123)
        assert found(train(run_with(method), data, Session())) == found(outcome)
        assert [point["step"] for point in outcome.points] == [5, 10, 15, 20, 25, 30]
        assert [point["epoch"] for point in outcome.points] == [0.5, 1, 1.5, 2, 2.5, 3]
        other = train(run_with(method, seed=1), data, Session())
        assert [one["loss"] for one in other.points] != [one["loss"] for one in outcome.points]

    @pytest.mark.parametrize("method", REPRODUCIBLE)
    def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(
        self, method: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        whole = train(run_with(method), data, Session())
        path = tmp_path / "new" / "run.pt"

        def interrupt(share: float, text: str) -> None:
            if share > 0.6 and path.exists():
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):  # at the evaluation after 20 of 30 steps, before its checkpoint
            train(run_with(method), data, Session(interrupt, path))
        assert torch.load(path, weights_only=True)["step"] == 15
        steps: list[float] = []
        again = train(run_with(method), data, Session(lambda share, text: steps.append(share), path))
        assert found(again) == found(whole)
        assert min(steps) == pytest.approx(20 / 30)  # 15 were not taken again
        assert not list(path.parent.glob("*.partial"))

    def test_a_checkpoint_of_another_run_is_refused(
        self, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        path = tmp_path / "run.pt"
        train(run_with("dense"), data, Session(checkpoint=path))
        with pytest.raises(ValueError, match="run.pt: expected the checkpoint of run [0-9a-f]{16}, got '[0-9a-f]{16}'"):
            train(run_with("dense", seed=1), data, Session(checkpoint=path))

    @pytest.mark.parametrize("left", [0, 100, 5000, None])
    def test_after_a_damaged_checkpoint_a_run_begins_anew(
        self, left: int | None, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        path = tmp_path / "run.pt"
        whole = train(run_with("SET"), data, Session(checkpoint=path))
        content = bytearray(path.read_bytes())[:left]
        if left is None:
            content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert found(train(run_with("SET"), data, Session(checkpoint=path))) == found(whole)

    @pytest.mark.parametrize("method", [name for name in REPRODUCIBLE if METHODS[name].sparse])
    def test_nonzeros_are_those_wanted(self, method: str, data: Dataset) -> None:
        outcome = train(run_with(method), data, Session())
        total = sum(outcome.weights.values())
        assert outcome.weights == {"conv.weight": 200, "fc.weight": 2880}
        kept = sum(outcome.nonzeros.values())
        if method == "SRigL":  # the same number in every row
            assert abs(kept - 308) <= 8 + 10
        else:
            assert kept == 308 == round(0.1 * total)
        changes = 0 if method == "static" else 2  # after each epoch but the last
        assert outcome.results["updates"] == changes

    def test_dense_has_all_weights_in_use(self, data: Dataset) -> None:
        outcome = train(run_with("dense"), data, Session())
        assert outcome.nonzeros == outcome.weights == {"conv.weight": 200, "fc.weight": 2880}

    @pytest.mark.parametrize(
        ("method", "optimizer", "rate"),
        [
            ("dense", "SGD", 0.05),
            ("dense-bf16", "AdamW", 0.005),
            ("sparse momentum", "SGD", 0.05),
            ("SET", "Adam", 0.01),
        ],
    )
    def test_it_learns(self, method: str, optimizer: str, rate: float, data: Dataset) -> None:
        run = run_with(method, optimizer=optimizer, learning_rate=rate)
        outcome = train(replace(run, settings={**run.settings, "epochs": 12}), data, Session())
        assert outcome.points[-1]["accuracy"] > 80
        assert outcome.points[-1]["loss"] < 0.5 * outcome.points[0]["loss"]

    @pytest.mark.parametrize("method", ["dense", "sparse momentum"])
    def test_a_run_that_diverges(self, method: str, data: Dataset) -> None:
        outcome = train(run_with(method, learning_rate=1e30), data, Session())
        assert outcome.status == "diverged"
        assert len(outcome.points) < 6

    def test_methods_of_one_seed_begin_with_the_same_weights_and_masks(self, data: Dataset) -> None:
        def start(method: str) -> Tensor:
            return Training(run_with(method), data, Session()).attached.model.fc.weight.detach()  # type: ignore[union-attr]

        dense, kept = start("dense"), start("static") != 0
        assert kept.any()
        assert torch.equal(start("static"), dense * kept)
        for method in ("sparse momentum", "SET", "RigL", "random growth"):
            assert torch.equal(start(method), dense * kept)

    @pytest.mark.parametrize("method", ["sparse", "block-sparse"])
    def test_on_sparse_kernels(self, method: str, data: Dataset) -> None:
        options = {"block": [4, 4]} if method == "block-sparse" else {}
        outcome = train(run_with(method, options=options), data, Session())
        assert outcome.status == "ok"
        assert outcome.results["updates"] == 2
        assert isinstance(outcome.results["kernels"], str)
        kept = sum(outcome.nonzeros.values())
        assert kept == 308 if method == "sparse" else 200 <= kept <= 400

    @pytest.mark.parametrize("method", ["sparse", "block-sparse"])
    def test_on_sparse_kernels_it_goes_on_too(
        self, method: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not with the same bits as another run: which layers run on kernels is measured once."""
        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        run = run_with(method, options={"block": [4, 4]} if method == "block-sparse" else {})
        path = tmp_path / "run.pt"

        def interrupt(share: float, text: str) -> None:
            if share > 0.6 and path.exists():
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(run, data, Session(interrupt, path))
        state = torch.load(path, weights_only=True)
        outcome = train(run, data, Session(checkpoint=path))
        assert outcome.points[:3] == state["points"]
        assert [point["step"] for point in outcome.points] == [5, 10, 15, 20, 25, 30]
        assert outcome.results["updates"] == 2
        again = train(run, data, Session(checkpoint=path))  # from the checkpoint after step 25
        assert found(again) == found(outcome)

    def test_progress_is_told(self, data: Dataset) -> None:
        told: list[tuple[float, str]] = []
        outcome = train(run_with("dense"), data, Session(lambda share, text: told.append((share, text))))
        assert [share for share, _ in told] == pytest.approx([n / 6 for n in range(1, 7)])
        assert told[-1][1] == f"{outcome.points[-1]['accuracy']:.2f}%"


class TestSettings:
    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            ("constant", [0.1, 0.1, 0.1, 0.1]),
            ("cosine", [0.1, 0.0853553, 0.05, 0.0146447]),
            ("step", [0.1, 0.1, 0.01, 0.001]),
        ],
    )
    def test_learning_rates(self, schedule: str, rates: list[float]) -> None:
        settings = {"schedule": schedule, "learning_rate": 0.1}
        assert [learning_rate(settings, step, 4) for step in range(4)] == pytest.approx(rates, rel=1e-5)

    def test_steps_have_the_rate_of_the_schedule(self, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        rates: list[float] = []
        step = torch.optim.SGD.step

        @functools.wraps(step)
        def spy(self: torch.optim.SGD, *args: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return step(self, *args)

        monkeypatch.setattr(torch.optim.SGD, "step", spy)
        run = run_with("dense")
        train(run, data, Session())
        assert rates == [learning_rate(run.settings, step, 30) for step in range(30)]

    def test_only_the_first_images(self, data: Dataset) -> None:
        outcome = train(run_with("dense", images=40, test_images=7), data, Session())
        assert outcome.points[-1]["step"] == 6
        for point in outcome.points:
            assert (point["accuracy"] * 7 / 100) == pytest.approx(round(point["accuracy"] * 7 / 100), abs=1e-5)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("dense", {"prune_rate": 0.5}, "here: expected options among none, got 'prune_rate'"),
            (
                "SET",
                {"rate": 0.5},
                "here: expected options among distribution, prune_rate, .*, scaled_init, got 'rate'",
            ),
            ("SET", {"prune_rate": 2}, "here: expected prune_rate to be a share from 0 to 1, got 2"),
            ("SET", {"distribution": "even"}, "expected distribution to be 'uniform', 'ERK', 'SET', got 'even'"),
            ("SET", {"block": [4]}, "expected block to be rows and columns from 1 to 128, got"),
            ("SET", {"updates_per_epoch": 0}, "expected updates_per_epoch to be a whole number of 1 and more, got 0"),
            (
                "SET",
                {"dense_grad_every": "no"},
                "expected dense_grad_every to be 'auto' or a number of steps, got 'no'",
            ),
            ("SET", {"scaled_init": 1}, "expected scaled_init to be true or false, got 1"),
            ("SET", {"ignore": "fc"}, "expected ignore to be names of layers, got 'fc'"),
        ],
    )
    def test_options_that_are_not_accepted(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            methods.check_options("here", name, options)

    def test_initial_weights_can_be_scaled(self, data: Dataset) -> None:
        """By what masks leave of a neuron's inputs, so that its sum has the deviation that it has in a dense layer."""
        plain, scaled = (
            Training(run_with("static", options={"scaled_init": one}), data, Session()).attached.model.state_dict()
            for one in (False, True)
        )
        for name, count in (("conv.weight", 200), ("fc.weight", 2880)):
            factor = (count / int((plain[name] != 0).sum())) ** 0.5
            torch.testing.assert_close(scaled[name], plain[name] * factor)
        assert torch.equal(scaled["fc.bias"], plain["fc.bias"])

    def test_options_are_used(self, data: Dataset) -> None:
        run = run_with("SET", options={"updates_per_epoch": 5, "ignore": ["conv"]})
        outcome = train(run, data, Session())
        assert outcome.results["updates"] == 10
        assert outcome.nonzeros == {"conv.weight": 200, "fc.weight": 288}


class TestNetworks:
    @pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5-caffe", "vgg16-d", "wrn-16-8"])
    def test_images_are_as_the_network_takes_them(self, name: str) -> None:
        network = networks.NETWORKS[name]
        images = torch.rand(2, 1, 28, 28)
        given = network.prepare(images, -0.8)
        if network.in_color:
            assert given.shape == (2, 3, 32, 32)
            for channel in range(3):
                assert torch.equal(given[:, channel, 2:30, 2:30], images[:, 0])
            assert (given.sum() - 3 * images.sum()) == pytest.approx(2 * 3 * (32**2 - 28**2) * -0.8, rel=1e-4)
        else:
            assert given is images
        with torch.device("meta"):
            assert network.build().eval()(given.to("meta")).shape == (2, 10)

    def test_the_seed_decides(self) -> None:
        one, same, other = (NETWORKS["tiny"].make(seed).state_dict() for seed in (3, 3, 4))
        assert torch.equal(one["fc.weight"], same["fc.weight"])
        assert not torch.equal(one["fc.weight"], other["fc.weight"])
