# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Lottery tickets and what they are taken apart into, as runs: what is trained, how much is left, how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tiny_data import make, record_of, run_of
from torch import nn

from sparsekernels.experiments import criteria_report, datasets, lottery_report
from sparsekernels.experiments.datasets import Dataset
from sparsekernels.experiments.networks import NETWORKS, Network
from sparsekernels.experiments.records import Record
from sparsekernels.experiments.runs import Run
from sparsekernels.experiments.tasks import TASKS
from sparsekernels.experiments.tickets import Trainer
from sparsekernels.experiments.training import Outcome, Session
from sparsekernels.experiments.worker import perform
from sparsekernels.training import CRITERIA, LearnedSupermask, Lottery, kept_after


def tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10))


SIZES = {"1.weight": 784 * 12, "3.weight": 120}


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", Network(tiny, False, "small"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.load("idx", make(tmp_path_factory.mktemp("data")))


def lottery_run(**options: Any) -> Run:
    given = {"rounds": 3, "controls": [1, 3], "validation": 40, **options}
    return _run("lottery", "tickets", given)


def criteria_run(**options: Any) -> Run:
    given = {
        "rounds": [2],
        "criteria": ["large_final", "random"],
        "kept": ["reinit", "signed_constant"],
        "pruned": ["freeze"],
        "supermasks_left": [0.1, 0.5],
        "learned_epochs": 2,
        "validation": 40,
    }
    return _run("criteria", "criteria", {**given, **options})


def _run(task: str, method: str, options: dict[str, Any]) -> Run:
    return run_of(
        task=task, method=method, network="tiny", options=options, batch=16, optimizer="Adam", learning_rate=0.003,
        weight_decay=0.0, schedule="constant", evaluations=2,
    )  # fmt: skip


def done(run: Run, data: Dataset, session: Session | None = None) -> Outcome:
    return TASKS[run.task].perform(run, data, session or Session())


def without_times(value: Any) -> Any:
    """All but what the clock says."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key != "seconds"}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def found(outcome: Outcome) -> Any:
    return without_times([outcome.points, outcome.results]), outcome.nonzeros, outcome.weights


class TestTickets:
    def test_what_is_trained_and_what_is_left(self, data: Dataset) -> None:
        outcome = done(lottery_run(draws=2), data)
        trainings = outcome.results["trainings"]
        controls = ["reinit", "random mask"] * 2 + ["one-shot"]
        kinds = ["ticket", "ticket", *controls, "ticket", "ticket", *controls]
        assert [one["kind"] for one in trainings] == kinds
        assert [one.get("draw") for one in trainings if one["round"] == 3] == [None, 0, 0, 1, 1, None]
        for one in trainings:
            counts = [
                kept_after(SIZES["1.weight"], 0.2, one["round"]),
                kept_after(SIZES["3.weight"], 0.1, one["round"]),
            ]
            assert one["weights"] == sum(counts)
            assert one["left"] == sum(counts) / sum(SIZES.values())
            evaluations = one["evaluations"]
            assert evaluations["step"] == [5, 10, 15, 20]  # 160 images in batches of 16, half an epoch each
            best = min(range(4), key=evaluations["validation_loss"].__getitem__)
            assert (one["best_step"], one["best_accuracy"]) == (5 * best + 5, evaluations["accuracy"][best])
            assert one["accuracy"] == evaluations["accuracy"][-1]
        assert outcome.weights == SIZES
        assert sum(outcome.nonzeros.values()) == trainings[-1]["weights"]
        assert outcome.points[-1]["accuracy"] == trainings[0]["accuracy"]
        assert outcome.points[-1]["epoch"] == 2

    def test_it_is_a_record(self, data: Dataset) -> None:
        run = lottery_run(rounds=1, controls=[])
        record = perform(Run(**{**vars(run), "checksum": data.checksum}), data, Session())
        assert Record.from_json(record.to_json()).results == record.results
        with pytest.raises(ValueError, match="expected data of checksum 0badf00d, got"):
            perform(Run(**{**vars(run), "checksum": "0badf00d"}), data, Session())

    def test_files_that_are_damaged_are_made_again(self, data: Dataset, tmp_path: Path) -> None:
        run = lottery_run(rounds=2, controls=[])
        whole = done(run, data, Session(checkpoint=tmp_path))
        for name in ("experiment.pt", "round-01.pt", "round-02.pt"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:500])
        assert found(done(run, data, Session(checkpoint=tmp_path))) == found(whole)

    def test_rewinding_later(self, data: Dataset) -> None:
        outcome = done(lottery_run(rounds=1, controls=[1], rewind_step=7), data)
        whole, ticket, reinit, *_ = outcome.results["trainings"]
        assert whole["evaluations"]["step"] == [5, 10, 15, 20]
        assert ticket["evaluations"]["step"] == [10, 15, 20]
        assert reinit["evaluations"]["step"] == [5, 10, 15, 20]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rate": 2}, "here: expected rate to be a share from 0 to 1, got 2"),
            ({"rounds": 0}, "here: expected rounds to be a whole number of 1 and more, got 0"),
            ({"controls": [0]}, r"here: expected controls to be a list of whole numbers of 1 and more, got \[0\]"),
            ({"controls": [19]}, r"here: expected controls up to round 18, got \[19\]"),
            ({"draw": 1}, "here: expected options among rate, output_rate, .*, draws, got 'draw'"),
        ],
    )
    def test_options_that_are_not_accepted(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TASKS["lottery"].check_options("here", "tickets", options)

    def test_a_run_that_diverges(self, data: Dataset) -> None:
        """It is a record like any other, and counts as chance."""
        outcome = done(faster(lottery_run(), 1e30), data)
        assert (outcome.status, outcome.points, outcome.weights) == ("diverged", [], SIZES)
        trainings = outcome.results["trainings"]
        assert [(one["kind"], one["round"]) for one in trainings] == [
            ("ticket", 0), ("ticket", 1), ("one-shot", 1), ("ticket", 2), ("ticket", 3), ("one-shot", 3),
        ]  # fmt: skip
        assert all((one["accuracy"], one["best_step"], one["diverged"]) == (10, None, True) for one in trainings)
        assert trainings[-1]["weights"] == sum(outcome.nonzeros.values()) == kept_after(9408, 0.2, 3) + 87
        record = recorded(lottery_run(), outcome)
        assert lottery_report.words([record])[-1].startswith(
            "tiny, seed 0: diverged, and count as chance: ticket at 100"
        )
        assert all(text == "-" for row in lottery_report.tables([record])[1].rows for text in row[3:])

    @pytest.mark.parametrize("lost", ["round-02", "reinit-01-0", "one-shot-03"])
    def test_one_training_that_diverges(self, lost: str, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        """What does not follow from it is as it is without."""
        trained = Lottery._trained

        def lose(self: Lottery, name: str, *arguments: Any) -> Any:
            if name.startswith(lost):
                raise FloatingPointError(name)
            return trained(self, name, *arguments)

        whole = {name_of(one): one for one in done(lottery_run(), data).results["trainings"]}
        monkeypatch.setattr(Lottery, "_trained", lose)
        outcome = done(lottery_run(), data)
        assert outcome.status == "ok"
        found = {name_of(one): one for one in outcome.results["trainings"]}
        diverged = {name for name, one in found.items() if one.get("diverged")}
        assert (
            diverged
            == {
                "round-02": {("ticket", 2), ("ticket", 3)},
                "reinit-01-0": {("reinit", 1)},
                "one-shot-03": {("one-shot", 3)},
            }[lost]
        )
        missing = {("reinit", 3), ("random mask", 3)} if lost == "round-02" else set()
        assert whole.keys() - found.keys() == missing
        for name, one in found.items():
            if name not in diverged:
                assert without_times(one) == without_times(whole[name])
            assert one["left"] == whole[name]["left"]
        lottery_report.draw([recorded(lottery_run(), outcome)], Figure())


def name_of(training: dict[str, Any]) -> tuple[str, int]:
    return training["kind"], training["round"]


def faster(run: Run, rate: float) -> Run:
    return Run(**{**vars(run), "settings": {**run.settings, "optimizer": "SGD", "learning_rate": rate}})


def recorded(run: Run, outcome: Outcome) -> Record:
    """As it is read again."""
    return Record.from_json(record_of(run, [], **vars(outcome)).to_json())


class TestCriteria:
    def test_what_is_measured(self, data: Dataset) -> None:
        outcome = done(criteria_run(), data)
        ways = [(one["criterion"], one["kept"], one["pruned"]) for one in outcome.results["trainings"]]
        assert ways == [
            ("large_final", "rewind", "zero"),
            ("random", "rewind", "zero"),
            ("large_final", "reinit", "zero"),
            ("large_final", "signed_constant", "zero"),
            ("large_final", "rewind", "freeze"),
        ]
        left = (kept_after(SIZES["1.weight"], 0.2, 2) + kept_after(120, 0.1, 2)) / sum(SIZES.values())
        assert {one["left"] for one in outcome.results["trainings"]} == {left}
        masks = [one for one in outcome.results["supermasks"] if one["kind"] == "one-shot"]
        plain = [one for one in masks if not one["criterion"].endswith("_sign")]
        assert len(plain) == 9 * 2 * 2
        assert {one["criterion"] for one in masks} <= set(CRITERIA)
        assert {round(one["left"], 3) for one in masks} == {0.1, 0.5}
        learned = [one for one in outcome.results["supermasks"] if one["kind"] == "learned"]
        assert [(one["weights"], one["rescale"]) for one in learned] == [
            ("rewind", False), ("rewind", True), ("signed_constant", False), ("signed_constant", True),
        ]  # fmt: skip
        assert all(0.2 < one["left"] < 0.8 for one in learned)

    def test_masks_for_which_too_few_weights_have_the_sign_are_left_out(self, data: Dataset) -> None:
        """After few steps hardly a weight has another sign."""
        outcome = done(criteria_run(rounds=[], learned_epochs=1, supermasks_left=[0.5, 0.999]), data)
        shares = {
            sign: {round(one["left"], 3) for one in outcome.results["supermasks"] if one.get("criterion") == sign}
            for sign in ("large_final", "large_final_same_sign", "large_final_diff_sign")
        }
        assert shares["large_final"] == {0.5, 0.999}
        assert shares["large_final_same_sign"] == {0.5}
        assert shares["large_final_diff_sign"] == set()

    def test_a_run_that_diverges(self, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        fit = Trainer.fit

        def lose(self: Trainer, model: nn.Module, *arguments: Any, **changes: Any) -> Any:
            if isinstance(model, LearnedSupermask) and model.rescale:
                raise FloatingPointError
            return fit(self, model, *arguments, **changes)

        monkeypatch.setattr(Trainer, "fit", lose)
        run = faster(criteria_run(), 1e30)
        outcome = done(run, data)
        assert (outcome.status, outcome.points, outcome.weights) == ("diverged", [], SIZES)
        trainings, masks = outcome.results["trainings"], outcome.results["supermasks"]
        assert len(trainings) == 5
        assert all((one["accuracy"], one["diverged"]) == (10, True) for one in trainings)
        assert {one["kind"] for one in masks} == {"learned"}
        assert [one.get("diverged", False) for one in masks] == [False, True, False, True]
        assert all((one["accuracy"], one["left"]) == (10, None) for one in masks[1::2])
        record = recorded(run, outcome)
        assert "tiny, seed 0: diverged, and count as chance: large_final, kept rewind" in str(
            criteria_report.words([record])
        )
        assert criteria_report.tables([record])

    def test_learned_masks_beat_random_ones(self, data: Dataset) -> None:
        outcome = done(criteria_run(rounds=[], learned_epochs=20, supermasks=["random"]), data)
        masks = outcome.results["supermasks"]
        random = [one["accuracy"] for one in masks if one.get("criterion") == "random"]
        learned = [one["accuracy"] for one in masks if one["kind"] == "learned" and one["rescale"]]
        assert min(learned) > max(random) + 20

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"criteria": ["largest"]},
                r"here: expected criteria to be a list of 'large_final', .*, got \['largest'\]",
            ),
            ({"kept": ["zero"]}, "here: expected kept to be a list of 'rewind', .*, got"),
            (
                {"supermasks_left": [0]},
                r"here: expected supermasks_left to be a list of shares above 0 and up to 1, got",
            ),
            ({"learned_rate": 0}, "here: expected learned_rate to be a number above 0, got 0"),
        ],
    )
    def test_options_that_are_not_accepted(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TASKS["criteria"].check_options("here", "criteria", options)


@pytest.mark.parametrize("make_run", [lottery_run, criteria_run])
class TestBits:
    def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(
        self, make_run: Callable[..., Run], data: Dataset, tmp_path: Path
    ) -> None:
        run = make_run()
        whole = done(run, data)
        state = torch.get_rng_state()
        assert found(done(run, data)) == found(whole)
        assert torch.equal(torch.get_rng_state(), state)
        told: list[float] = []

        def interrupt(share: float, text: str) -> None:
            if share > 0.7:
                raise KeyboardInterrupt

        folder = tmp_path / "checkpoint"
        with pytest.raises(KeyboardInterrupt):
            done(run, data, Session(interrupt, folder))
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert len(before) > 3
        again = done(run, data, Session(lambda share, text: told.append(share), folder))
        assert found(again) == found(whole)
        assert told == sorted(told)
        assert told[-1] == 1
        after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert {name: after[name] for name in before} == before  # nothing was trained twice
        assert len(after) > len(before)

    def test_another_seed_is_another_result(self, make_run: Callable[..., Run], data: Dataset) -> None:
        run = make_run(
            rounds=1 if make_run is lottery_run else [1], **({"controls": []} if make_run is lottery_run else {})
        )
        other = Run(**{**vars(run), "seed": 1})
        assert found(done(run, data)) != found(done(other, data))
