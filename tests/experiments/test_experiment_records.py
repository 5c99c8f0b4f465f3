# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Runs and their keys, records and the file that grows by them, intervals over seeds."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from tiny_data import record_of, run_of

from sparsekernels.experiments import records
from sparsekernels.experiments.intervals import difference, interval, t_quantile
from sparsekernels.experiments.records import File, Record
from sparsekernels.experiments.runs import SETTINGS, Run


class TestRun:
    @pytest.mark.parametrize(
        "change",
        [
            {"experiment": "other"},
            {"task": "lottery"},
            {"network": "lenet-5-caffe"},
            {"method": "SET"},
            {"density": 0.1},
            {"seed": 1},
            {"checksum": "c0ffee00"},
            {"options": {"prune_rate": 0.3}},
            {"epochs": 3},
            {"threads": 2},
            {"images": 100},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_the_key_tells_runs_apart(self, change: dict[str, Any]) -> None:
        assert run_of(**change).key != run_of().key

    def test_the_key_is_the_same_for_the_same_run(self) -> None:
        run = run_of(density=0.1, options={"a": 1, "b": 2})
        again = Run.from_dict(json.loads(json.dumps(run.to_dict())))
        assert again == run
        other_order = run_of(density=0.1, options={"b": 2, "a": 1})
        assert run.key == again.key == other_order.key
        assert len(run.key) == 16

    def test_names(self) -> None:
        assert run_of().name == "lenet-300-100 dense seed 0"
        assert run_of(method="SET", density=0.025, seed=3).name == "lenet-300-100 SET 2.5% seed 3"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"density": 1.5}, "expected a density from 0 to 1, got 1.5"),
            ({"settings": {}}, "expected all settings, got none for dataset, images, test_images, epochs"),
            ({"epochs": 0}, "expected epochs to be a whole number of 1 and more, got 0"),
            ({"epochs": True}, "expected epochs to be a whole number of 1 and more, got True"),
            ({"batch": 1}, "expected batch to be a whole number of 2 and more, got 1"),
            ({"images": 0}, "expected images to be a whole number of 1 and more, or none, got 0"),
            ({"optimizer": "Adagrad"}, "expected optimizer to be 'SGD', 'Adam', 'AdamW', got 'Adagrad'"),
            ({"schedule": "linear"}, "expected schedule to be 'constant', 'cosine', 'step', got 'linear'"),
            ({"learning_rate": 0}, "expected learning_rate to be a number above 0, got 0"),
            ({"learning_rate": math.inf}, "expected learning_rate to be a number above 0, got inf"),
            ({"momentum": 1}, "expected momentum to be a number from 0 to below 1, got 1"),
            ({"weight_decay": -1}, "expected weight_decay to be a number of 0 and more, got -1"),
            ({"device": "tpu"}, "expected device to be 'cpu', 'cuda', got 'tpu'"),
        ],
    )
    def test_bad_values(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run_of(**change)

    def test_a_setting_that_there_is_not(self) -> None:
        settings = {name: default for name, (default, _, _) in SETTINGS.items()} | {"rate": 1}
        with pytest.raises(ValueError, match="expected settings among dataset, .*, device, got 'rate'"):
            run_of(settings=settings)

    @pytest.mark.parametrize("value", [[], {"seed": 1}])
    def test_what_is_no_run(self, value: Any) -> None:
        with pytest.raises(ValueError, match="expected a run of checksum, density, .*task, got"):
            Run.from_dict(value)


class TestRecord:
    def test_round_trip(self) -> None:
        record = record_of(run_of(method="SET", density=0.1), [80.0, 85.0], results={"a": [1, 2]})
        assert Record.from_json(record.to_json()) == record
        assert (record.accuracy, record.seconds, record.density) == (85.0, 2.0, 0.1)

    def test_a_run_that_diverged_counts_as_chance(self) -> None:
        assert record_of(run_of(), [80.0], status="diverged").accuracy == 10.0
        assert record_of(run_of(), [], status="diverged").seconds == 0.0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"status": "error"}, "expected status to be 'ok', 'diverged', got 'error'"),
            ({"key": "0" * 16}, "expected key [0-9a-f]{16} of its run, got '0000000000000000'"),
            ({"points": []}, "expected points of a run that is ok, got none"),
            ({"points": [{"step": 1}]}, "expected points with numbers for accuracy, epoch, loss, seconds, step, got"),
        ],
    )
    def test_bad_records(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            record_of(run_of(), [80.0], **change)

    def test_points_that_are_not_finite(self) -> None:
        with pytest.raises(ValueError, match="expected points with numbers"):
            record_of(run_of(), [math.nan])


class TestFile:
    def test_it_grows_by_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "records.jsonl"
        some = [record_of(run_of(seed=seed), [80.0 + seed]) for seed in range(3)]
        with File.opened(path) as file:
            assert file.records == []
            file.append(some[0])
            assert records.read(path) == some[:1]  # at once, not when the file is closed
            file.append(some[1])
        with File.opened(path) as file:
            assert file.records == some[:2]
            file.append(some[2])
        assert records.read(path) == some

    def test_a_line_that_was_cut_off_does_not_count(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        one, other = (record_of(run_of(seed=seed), [80.0]) for seed in range(2))
        path.write_text(f"{one.to_json()}\n{other.to_json()[:100]}", encoding="utf-8")
        assert records.read(path) == [one]
        with File.opened(path) as file:
            file.append(other)
        assert records.read(path) == [one, other]

    def test_one_process_has_it(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        message = "expected one experiment to write to it, got another that is running"
        with File.opened(path), pytest.raises(ValueError, match=message), File.opened(path):
            pass
        with File.opened(path):
            pass

    def test_the_line_at_fault_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        path.write_text(f"{record_of(run_of(), [80.0]).to_json()}\n{{}}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"records.jsonl, line 2: expected a record of commit, .*, got "):
            records.read(path)

    def test_a_run_counts_once_on_each_machine(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        here = record_of(run_of(), [80.0])
        there = record_of(run_of(), [81.0], machine={**here.machine, "cpu": "b"})
        path.write_text("".join(f"{one.to_json()}\n" for one in (here, here, there)), encoding="utf-8")
        assert records.read(path) == [here, there]

    def test_no_file_has_no_records(self, tmp_path: Path) -> None:
        assert records.read(tmp_path / "none.jsonl") == []
        assert not list(tmp_path.iterdir())


class TestIntervals:
    @pytest.mark.parametrize(
        ("freedom", "quantile"),
        [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423), (120, 1.9799)],
    )
    def test_quantiles(self, freedom: int, quantile: float) -> None:
        """Of tables: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2."""
        assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)

    def test_mean_and_half_width(self) -> None:
        values = [88.1, 88.5, 87.9, 88.3, 88.2]
        found = interval(values)
        assert found.mean == pytest.approx(statistics.mean(values))
        assert found.half == pytest.approx(2.776445 * statistics.stdev(values) / math.sqrt(5), rel=1e-6)
        assert found.low == pytest.approx(found.mean - (found.half or 0))
        assert found.high == pytest.approx(found.mean + (found.half or 0))

    def test_one_value_has_no_width(self) -> None:
        found = interval([88.0])
        assert (found.mean, found.half, found.low, found.high) == (88.0, None, 88.0, 88.0)

    def test_no_value(self) -> None:
        with pytest.raises(ValueError, match="interval: expected at least one value, got none"):
            interval([])

    def test_differences_are_of_the_same_seed(self) -> None:
        found = difference({0: 80.0, 1: 90.0, 2: 70.0}, {0: 79.0, 1: 89.0, 3: 10.0})
        assert found is not None
        assert (found.mean, found.half, found.count) == (1.0, 0.0, 2)
        assert difference({0: 1.0}, {1: 1.0}) is None
