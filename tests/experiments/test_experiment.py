# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command, run as a user runs it: to the end, interrupted and resumed, and with what it cannot take."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from tiny_data import make
from typer.testing import CliRunner, Result

from sparsekernels.bench.machine import machine
from sparsekernels.experiments import cli, methods, pool, records

SUITE = """
task = "training"
report = "densities"
about = "For tests"
seeds = 2
densities = [10]
jobs = 2
dataset = "idx"
epochs = 2
batch = 20
learning_rate = 0.05

[[networks]]
name = "lenet-300-100"

[[methods]]
name = "dense"
densities = []

[[methods]]
name = "static"
"""

TICKETS = """
task = "lottery"
report = "lottery"
dataset = "idx"
batch = 20

[[networks]]
name = "lenet-300-100"

[[methods]]
name = "tickets"
densities = []
options = { validation = 60 }
"""

app = typer.Typer()
app.command()(cli.experiment)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite and images."""
    folder = tmp_path_factory.mktemp("experiment")
    make(folder / "images")
    (folder / "small.toml").write_text(SUITE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> Result:
    """One whole experiment."""
    return run(place / "small.toml", "--data", place / "images", "--folder", place / "out")


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*arguments: object) -> Iterator[pool.Event]:
        raise AssertionError("nothing is to be run")

    monkeypatch.setattr(pool, "_Child", unexpected)


class TestExperiment:
    def test_files(self, place: Path, done: Result) -> None:
        assert done.exit_code == 0, done.output
        found = records.read(place / "out" / "records.jsonl")
        runs = {(one.run.method, one.run.density, one.run.seed, one.status) for one in found}
        assert runs == {("dense", None, s, "ok") for s in (0, 1)} | {("static", 0.1, s, "ok") for s in (0, 1)}
        for one in found:
            assert one.machine == {**machine(), "allocator": one.machine["allocator"]}
            assert one.data["train_images"] == 200
            assert one.versions["torch"] == torch.__version__
            if one.run.method == "static":
                assert sum(one.nonzeros.values()) == round(0.1 * sum(one.weights.values()))
        report = (place / "out" / "report.md").read_text(encoding="utf-8")
        assert report.startswith("# small\n\nFor tests.\n\n- 4 runs: ")
        assert "![For tests](plot.png)" in report
        assert (place / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
        left = sorted(path.name for path in (place / "out").iterdir() if not path.name.startswith("."))
        assert left == ["plot.png", "records.jsonl", "report.md"]

    def test_output(self, place: Path, done: Result) -> None:
        for number in range(1, 5):
            assert f"{number}/4 lenet-300-100 " in done.stderr
        for text in ("Accuracy over density", "10% of the weights", "points from dense", "plot.png", "report.md"):
            assert text in done.stdout

    @pytest.mark.usefixtures("nothing_runs")
    def test_what_is_done_is_not_done_again(self, place: Path, done: Result) -> None:
        before = (place / "out" / "records.jsonl").read_bytes()
        again = run(place / "small.toml", "--data", place / "images", "--folder", place / "out")
        assert again.exit_code == 0, again.output
        assert again.stdout == done.stdout
        assert (place / "out" / "records.jsonl").read_bytes() == before

    @pytest.mark.usefixtures("nothing_runs")
    def test_list(self, place: Path, done: Result, tmp_path: Path) -> None:
        listed = run(place / "small.toml", "--data", place / "images", "--folder", place / "out", "--list")
        assert "lenet-300-100 static 10% seed 1, 2 epochs: " in listed.stdout
        assert "4 of 4 runs are done" in listed.stdout
        more = run(place / "small.toml", "--data", place / "images", "--folder", place / "out", "--list", "--seeds", 3)
        assert "lenet-300-100 dense seed 2, 2 epochs: missing\n" in more.stdout
        assert "4 of 6 runs are done" in more.stdout
        run(place / "small.toml", "--data", place / "images", "--folder", tmp_path / "new", "--list")
        assert not (tmp_path / "new").exists()

    @pytest.mark.usefixtures("nothing_runs")
    def test_what_takes_very_long_here_is_left_out_unless_it_is_named(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        suite = tmp_path / "times.toml"
        suite.write_text(SUITE + '\n[[methods]]\nname = "dense-bf16"\ndensities = []\n', encoding="utf-8")
        for has, count in ((True, 6), (False, 4)):
            monkeypatch.setattr(methods, "has_bfloat16_convolutions", lambda has=has: has)
            listed = run(suite, "--data", place / "images", "--folder", tmp_path, "--list").stdout
            assert f"0 of {count} runs are done" in listed
            assert ("dense-bf16 is left out: torch's convolutions" in listed) != has
            listed = run(suite, "--data", place / "images", "--folder", tmp_path, "--list", "--method", "dense-bf16")
            assert "0 of 2 runs are done" in listed.stdout
            assert "left out" not in listed.stdout
        only = tmp_path / "only.toml"
        only.write_text(SUITE.replace('"dense"', '"dense-bf16"').partition('[[methods]]\nname = "static')[0])
        refused = run(only, "--data", place / "images", "--folder", tmp_path, "--list")
        assert refused.exit_code == 2
        assert "dense-bf16 is left out" in one_line(refused.stderr)

    def test_it_goes_on_where_it_was_interrupted(self, place: Path, done: Result, tmp_path: Path) -> None:
        """With the same bits, also where one run is done at a time and not two."""
        arguments = [place / "small.toml", "--jobs", "1", "--data", place / "images", "--folder", tmp_path]
        command = [sys.executable, "-m", "sparsekernels", "experiment", *map(str, arguments)]
        file = tmp_path / "records.jsonl"
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while not (file.exists() and file.read_bytes().count(b"\n")) and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=120)
        kept = file.read_bytes()
        assert 1 <= kept.count(b"\n") < 4, errors
        assert process.returncode == 1
        assert "runs are missing; the same command goes on with them" in output
        again = run(*arguments)
        assert again.exit_code == 0, again.output
        assert "missing" not in again.stdout
        assert file.read_bytes().startswith(kept)

        def without_times(path: Path) -> dict[str, object]:
            found = records.read(path)
            return {one.key: ([{**point, "seconds": 0} for point in one.points], one.nonzeros) for one in found}

        assert without_times(file) == without_times(place / "out" / "records.jsonl")


class TestTimes:
    """Where times count, runs of another machine are not taken for done."""

    @pytest.mark.usefixtures("nothing_runs")
    @pytest.mark.parametrize("timed", [True, False])
    def test_other_machines(self, timed: bool, place: Path, done: Result, tmp_path: Path) -> None:
        suite = tmp_path / "small.toml"
        suite.write_text(f"timed = {str(timed).lower()}\n{SUITE}", encoding="utf-8")
        for one in records.read(place / "out" / "records.jsonl"):
            elsewhere = {**one.machine, "cpu": "another"}
            with records.File.opened(tmp_path / "out" / "records.jsonl") as file:
                file.append(records.Record(**{**vars(one), "machine": elsewhere}))
        listed = run(suite, "--data", place / "images", "--folder", tmp_path / "out", "--list")
        assert f"{0 if timed else 4} of 4 runs are done" in listed.stdout


@pytest.mark.usefixtures("nothing_runs")
class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["unknown"], "expected experiment to be 'sparse-momentum', 'time-to-accuracy'"),
            (["SUITE", "--densities", "5,a"], "--densities: expected percents with commas between, as 5,10,20, got"),
            (["SUITE", "--densities", "0"], "--densities: expected densities in percent, above 0 and up to 100"),
            (["SUITE", "--network", "vgg16-d"], "small: expected network to be 'lenet-300-100', got 'vgg16-d'"),
            (["SUITE", "--method", "SET"], "small: expected method to be 'dense', 'static', got 'SET'"),
            (["SUITE", "--dataset", "cifar"], "expected a data set of 'fashion-mnist', 'mnist', 'idx', got 'cifar'"),
            (["SUITE", "--dataset", "mnist"], "expected 60000 training and 10000 test images, got 200"),
            (["SUITE", "--images", "201"], "idx: expected 1 to 200 training images, got 201"),
            (["SUITE", "--images", "10"], "expected a batch of 1 to 10 images, got 20"),
            (["SUITE", "--method", "dense", "--densities", "5"], "expected no densities, for no run of these has one"),
            (["TICKETS", "--images", "60"], "expected more than the 60 images held back, got 60"),
            (["TICKETS", "--images", "70"], "expected a batch of 1 to 10 images, got 20"),
            (
                ["TICKETS", "--densities", "5,50"],
                "tickets: expected no densities, for no run of these has one, got 5, 50",
            ),
            (["SUITE", "--device", "tpu"], "expected device to be 'cpu', 'cuda', got 'tpu'"),
        ],
    )
    def test_what_it_cannot_take(self, arguments: list[str], message: str, place: Path, tmp_path: Path) -> None:
        (place / "tickets.toml").write_text(TICKETS, encoding="utf-8")
        files = {"SUITE": str(place / "small.toml"), "TICKETS": str(place / "tickets.toml")}
        given = [files.get(one, one) for one in arguments]
        result = run(*given, "--data", place / "images", "--folder", tmp_path / "out")
        assert result.exit_code == 2
        assert message in one_line(result.stderr)
        assert not (tmp_path / "out").exists()

    def test_no_images(self, place: Path, tmp_path: Path) -> None:
        result = run("sparse-momentum", "--data", tmp_path, "--folder", tmp_path / "out")
        assert result.exit_code == 2
        assert "apt install dataset-fashion-mnist" in one_line(result.stderr)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_no_gpu(self, place: Path, tmp_path: Path) -> None:
        result = run(place / "small.toml", "--data", place / "images", "--folder", tmp_path, "--device", "cuda")
        assert result.exit_code == 2
        assert "expected device to be 'cpu', got 'cuda': torch finds no CUDA device here" in one_line(result.stderr)

    def test_more_threads_than_cores(self, place: Path, tmp_path: Path) -> None:
        suite = tmp_path / "many.toml"
        suite.write_text(f"threads = 10000\n{SUITE}", encoding="utf-8")
        result = run(suite, "--data", place / "images", "--folder", tmp_path / "out")
        assert result.exit_code == 2
        assert "expected threads from 1 to" in one_line(result.stderr)

    def test_a_file_that_another_experiment_writes(self, place: Path, tmp_path: Path) -> None:
        with records.File.opened(tmp_path / "records.jsonl"):
            result = run(place / "small.toml", "--data", place / "images", "--folder", tmp_path)
        assert result.exit_code == 2
        assert "expected one experiment to write to it" in one_line(result.stderr)

    def test_a_file_of_something_else(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "records.jsonl").write_text("{}\n", encoding="utf-8")
        result = run(place / "small.toml", "--data", place / "images", "--folder", tmp_path)
        assert result.exit_code == 2
        assert "records.jsonl, line 1: expected a record of" in one_line(result.stderr)
        assert (tmp_path / "records.jsonl").read_text(encoding="utf-8") == "{}\n"


DIES = """
import json, os, sys
sys.stdin.readline()
for line in sys.stdin:
    if json.loads(line)["run"]["seed"] == 0:
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)
    print(json.dumps({"event": "failed", "text": "ValueError: no"}), flush=True)
"""


def test_failures_are_told_and_the_command_fails(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_CHILD", DIES)
    result = run(place / "small.toml", "--data", place / "images", "--folder", tmp_path, "--jobs", "1")
    assert result.exit_code == 1
    assert "lenet-300-100 dense seed 0 failed: its process died (exit code 3):" in result.stderr
    assert "lenet-300-100 dense seed 1 failed: ValueError: no" in result.stderr
    assert "4 of 4 runs are missing" in result.stdout
