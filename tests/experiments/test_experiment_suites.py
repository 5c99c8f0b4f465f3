# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Experiments as data: which runs they have, and what is said of files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsekernels.bench.machine import cores
from sparsekernels.experiments import suites
from sparsekernels.experiments.suites import Selection, parse

TEXT = """
task = "training"
report = "densities"
about = "For tests"
seeds = 2
densities = [5, 10]
epochs = 4
batch = 50

[[networks]]
name = "lenet-300-100"

[[networks]]
name = "lenet-5-caffe"
epochs = 3
densities = [1, 2]

[[methods]]
name = "dense"
densities = []

[[methods]]
name = "SET"
options = { prune_rate = 0.3 }
learning_rate = 0.2

[[methods]]
name = "RigL"
densities = [20]
networks = ["lenet-5-caffe"]

[quick]
seeds = 1
densities = [10]
networks = ["lenet-300-100"]
methods = ["dense", "SET"]
epochs = 1
"""


def described(**selection: Any) -> list[tuple[str, str, float | None, int, int]]:
    runs = parse("test", TEXT, "test.toml").runs(Selection(**selection), "sum")
    return [(run.network, run.method, run.density, run.seed, run.settings["epochs"]) for run in runs]


class TestRuns:
    def test_all(self) -> None:
        one_seed = [
            ("lenet-300-100", "dense", None, 4),
            ("lenet-300-100", "SET", 0.05, 4),
            ("lenet-300-100", "SET", 0.1, 4),
            ("lenet-5-caffe", "dense", None, 3),
            ("lenet-5-caffe", "SET", 0.01, 3),
            ("lenet-5-caffe", "SET", 0.02, 3),
            ("lenet-5-caffe", "RigL", 0.2, 3),
        ]
        expected = [(*row[:3], seed, row[3]) for seed in (0, 1) for row in one_seed]
        assert described() == expected

    def test_settings_and_options(self) -> None:
        runs = parse("test", TEXT, "test.toml").runs(Selection(), "sum")
        of_set = next(run for run in runs if run.method == "SET")
        assert of_set.settings["learning_rate"] == 0.2
        assert of_set.settings["batch"] == 50
        assert of_set.options == {"prune_rate": 0.3}
        assert (of_set.experiment, of_set.task, of_set.checksum) == ("test", "training", "sum")
        assert runs[0].settings["learning_rate"] == 0.1

    def test_quick(self) -> None:
        assert described(quick=True) == [("lenet-300-100", "dense", None, 0, 1), ("lenet-300-100", "SET", 0.1, 0, 1)]

    def test_options_come_before_quick(self) -> None:
        chosen = described(
            quick=True, seeds=2, densities=(1.0,), networks=("lenet-5-caffe",), methods=("SET",), settings={"epochs": 9}
        )
        assert chosen == [("lenet-5-caffe", "SET", 0.01, seed, 9) for seed in (0, 1)]

    def test_densities_replace_those_of_methods(self) -> None:
        chosen = described(densities=(2.5,), seeds=1, methods=("dense", "RigL"))
        assert [row[:3] for row in chosen] == [
            ("lenet-300-100", "dense", None), ("lenet-5-caffe", "dense", None), ("lenet-5-caffe", "RigL", 0.025),
        ]  # fmt: skip

    def test_all_cores(self) -> None:
        (run,) = parse("test", f"threads = 0\n{TEXT}", "test.toml").runs(
            Selection(quick=True, methods=("dense",)), "sum"
        )
        assert run.settings["threads"] == cores()

    @pytest.mark.parametrize(
        ("selection", "message"),
        [
            (
                {"networks": ("vgg16-d",)},
                "test: expected network to be 'lenet-300-100', 'lenet-5-caffe', got 'vgg16-d'",
            ),
            ({"methods": ("static",)}, "test: expected method to be 'dense', 'SET', 'RigL', got 'static'"),
            ({"networks": ("lenet-300-100",), "methods": ("RigL",)}, "test: no run matches these options"),
            ({"settings": {"epochs": 0}}, "expected epochs to be a whole number of 1 and more, got 0"),
        ],
    )
    def test_selections_that_are_none(self, selection: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            described(**selection)


class TestFiles:
    @pytest.mark.parametrize("name", suites.SUITES)
    def test_those_of_this_package(self, name: str) -> None:
        suite = suites.load(name)
        full, quick = (suite.runs(Selection(quick=one), "sum") for one in (False, True))
        assert len({run.key for run in full}) == len(full) > len(quick)
        assert {run.seed for run in full} == set(range(suite.seeds))
        assert suite.about
        assert not {run.key for run in full} & {run.key for run in quick}

    def test_sparse_momentum_has_what_it_is_compared_with(self) -> None:
        runs = suites.load("sparse-momentum").runs(Selection(), "sum")
        assert {run.method for run in runs} >= {"dense", "sparse momentum", "SET", "RigL", "static", "random growth"}
        assert {run.network for run in runs} == {"lenet-300-100", "lenet-5-caffe"}
        assert {run.density for run in runs} >= {None, 0.1, 0.2}
        assert {run.seed for run in runs} == set(range(5))

    def test_time_to_accuracy_has_what_it_is_compared_with(self) -> None:
        suite = suites.load("time-to-accuracy")
        runs = suite.runs(Selection(), "sum")
        assert suite.timed
        assert {run.method for run in runs} == {"dense", "dense-bf16", "sparse", "block-sparse"}
        assert {run.network for run in runs} == {"vgg16-d", "wrn-16-8"}

    def test_a_file_elsewhere(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(TEXT, encoding="utf-8")
        assert suites.load(str(path)).name == "mine"
        with pytest.raises(ValueError, match="absent.toml: .*No such file"):
            suites.load(str(tmp_path / "absent.toml"))

    def test_an_unknown_name(self) -> None:
        with pytest.raises(
            ValueError, match="expected experiment to be 'sparse-momentum', .* or a .toml file, got 'x'"
        ):
            suites.load("x")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("seeds = 2", "seeds =", "test.toml: .*Invalid value"),
            ('task = "training"', "", "expected task to be 'training'.*, got None"),
            ('"densities"', '"density"', "expected report to be 'densities', 'time'.*, got 'density'"),
            ("seeds = 2", "seeds = 0", "test.toml: expected seeds to be a whole number of 1 and more, got 0"),
            ("seeds = 2", "jobs = -1", "test.toml: expected jobs to be a whole number of 0 and more, got -1"),
            ("seeds = 2", "timed = 1", "test.toml: expected timed to be true or false, got 1"),
            ('about = "For tests"', "about = 1", "test.toml: expected about to be text, got 1"),
            ("[5, 10]", "[0, 10]", r"expected densities in percent, above 0 and up to 100, got \[0, 10\]"),
            ("[5, 10]", "5", "expected densities in percent, above 0 and up to 100, got 5"),
            ("densities = [1, 2]", "densities = [101]", r"networks 2: expected densities in percent, .*, got \[101\]"),
            ("densities = [20]", 'densities = ["a"]', r"methods 3: expected densities in percent, .*, got \['a'\]"),
            ("batch = 50", "bacth = 50", "test.toml: expected settings among dataset, .*, got 'bacth'"),
            ("epochs = 3", "epochs = 0", "networks 2: expected epochs to be a whole number of 1 and more, got 0"),
            ("epochs = 3", 'dataset = "idx"', "networks 2: expected dataset above the tables, for all runs"),
            ('"lenet-5-caffe"\nep', '"lenet"\nep', "networks 2: expected name to be 'lenet-300-100', .*, got 'lenet'"),
            ('"lenet-5-caffe"\nep', '"lenet-300-100"\nep', "expected networks of different names, got lenet-300-100, "),
            ('name = "RigL"', 'name = "rigl"', "methods 3: expected name to be 'dense', .*, got 'rigl'"),
            ('name = "RigL"', "name = 1", "methods 3: expected a name, got 1"),
            ("prune_rate", "rate", "methods 2: expected options among distribution, .*, got 'rate'"),
            ("options = { prune_rate = 0.3 }", "options = 1", "methods 2: expected options to be a table, got 1"),
            ('networks = ["lenet-5-caffe"]', 'networks = ["x"]', "methods 3: expected networks to be a list of"),
            ('["dense", "SET"]', '["static"]', "quick: expected methods to be a list of 'dense', 'SET', 'RigL', got"),
            ("epochs = 1\n", "epochs = 1.5\n", "quick: expected epochs to be a whole number of 1 and more, got 1.5"),
            ("[quick]\nseeds = 1", "[quick]\nseeds = 0", "quick: expected seeds to be a whole number of 1 and more"),
            ("densities = [5, 10]", "", "methods 2: expected densities there or above, got none"),
        ],
    )
    def test_files_that_are_none(self, old: str, new: str, message: str) -> None:
        assert old in TEXT
        with pytest.raises(ValueError, match=message):
            parse("test", TEXT.replace(old, new, 1), "test.toml")

    def test_no_tables(self) -> None:
        with pytest.raises(ValueError, match=r"test.toml: expected tables \[\[networks\]\], got None"):
            parse("test", 'task = "training"\nreport = "time"\n', "test.toml")
        with pytest.raises(ValueError, match="test.toml: expected quick to be a table, got 1"):
            parse("test", f"quick = 1\n{TEXT[: TEXT.index('[quick]')]}", "test.toml")
