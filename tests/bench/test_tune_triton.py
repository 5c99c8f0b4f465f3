# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/tune_triton.py, with a kernel that takes as long as its configuration says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sparsekernels.bench import rmsnorm
from sparsekernels.bench.modules import import_file
from sparsekernels.bench.suite import Case, Prepared, Selection, Suite, Variant, Verdict
from sparsekernels.ops import _triton_table as table
from sparsekernels.timing import Effort


@dataclasses.dataclass(frozen=True)
class Config:
    warps: int
    stages: int


class Clock:
    """A call returns its own time."""

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        return sum(call() for _ in range(repeats))


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = import_file(Path(__file__).parents[2] / "benchmarks" / "tune_triton.py")
    monkeypatch.setattr(table, "TUNED", {})
    monkeypatch.setattr(module, "EFFORT", Effort(seconds=0, sample=1e-6, least=3, most=3))
    monkeypatch.setattr(module, "clock_of", lambda _: Clock())
    return module


def suite_of(seconds: Callable[[Config], float], wrong: Callable[[Config], bool] = lambda _: False) -> Suite:
    """A case and a variant whose kernel takes `seconds` by its configuration; it raises where that is negative."""

    @table.from_table("test.kernel", tunes=("warps", "stages"))
    def config(cols: int) -> Config:
        return Config(4, 3)

    def prepare() -> Prepared:
        chosen = config(64)
        time = seconds(chosen)
        if time < 0:
            raise RuntimeError("out of resources: shared memory")
        return Prepared(lambda: time, check=lambda: Verdict(0.0, not wrong(chosen)))

    class One(Suite):
        def cases(self, selection: Selection) -> list[Case]:
            return [Case("test", "a/b", "forward", "float32", "cpu", 1, True)]

    fields = {field.name: getattr(rmsnorm.SUITE, field.name) for field in dataclasses.fields(rmsnorm.SUITE)}
    return One(**{**fields, "variants": lambda case, selection: [Variant("ours", prepare), Variant("other", prepare)]})


SELECTION = Selection(variants=("ours",))


def found_by(tuner: ModuleType, suite: Suite, folder: Path) -> tuple[Any, Any]:
    file = folder / "table.json"
    file.write_text("{}")
    found = tuner.work(suite, SELECTION, file, 60.0)
    return found, json.loads(file.read_text())


def test_the_fastest_right_neighbor_is_kept(tuner: ModuleType, tmp_path: Path) -> None:
    """Eight warps are faster; 2 stages are faster, too, but wrong, and 4 do not fit."""

    def seconds(config: Config) -> float:
        return -1.0 if config.stages == 4 else 8.0 / config.warps - (0.1 if config.stages == 2 else 0)

    found, document = found_by(tuner, suite_of(seconds, lambda config: config.stages == 2), tmp_path)
    assert found == {("test.kernel", "64"): {"warps": 8}}
    assert document["0.0"]["kernels"] == {"test.kernel": {"64": {"warps": 8}}}
    assert document["0.0"]["measured"].startswith("no GPU, triton ")
    assert table.read(json.dumps(document), "it")


def test_both_fields(tuner: ModuleType, tmp_path: Path) -> None:
    found, _ = found_by(tuner, suite_of(lambda config: config.warps + config.stages), tmp_path)
    assert found == {("test.kernel", "64"): {"warps": 2, "stages": 2}}


def test_what_is_hardly_better_is_left(tuner: ModuleType, tmp_path: Path) -> None:
    found, document = found_by(tuner, suite_of(lambda config: 1.0 if config == Config(4, 3) else 0.98), tmp_path)
    assert (found, document) == ({}, {})


def test_other_entries_stay(tuner: ModuleType) -> None:
    before = {"8.0": {"measured": "x", "kernels": {"a": {"1": {"warps": 2}}}}}
    before["9.0"] = {"measured": "old", "kernels": {"a": {"1": {"warps": 2}, "2": {"warps": 2}}}}
    text = tuner.merged(json.dumps(before), (9, 0), "new", {("a", "1"): {"warps": 4}, ("b", "3"): {"stages": 2}})
    after = json.loads(text)
    assert after["8.0"] == before["8.0"]
    assert after["9.0"] == {
        "measured": "new",
        "kernels": {"a": {"1": {"warps": 4}, "2": {"warps": 2}}, "b": {"3": {"stages": 2}}},
    }


def test_nothing_is_begun_without_time(tuner: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text("{}")
    assert tuner.work(suite_of(lambda config: 1.0 / config.warps), SELECTION, file, -1.0) == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense", "--variant", "x"), "expected suite to be networks, layers, blocks, "),
        (("blocks", "--variant", "x", "--device", "tpu"), "expected device to be 'cpu', 'cuda', got 'tpu'"),
        (("blocks", "--variant", "x", "--case", "none"), "no case of suite blocks on cuda matches these options"),
        (("blocks", "--variant", "block"), "expected a GPU to measure on: torch finds no CUDA device here"),
    ],
)
def test_what_it_cannot_do(
    tuner: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: Any, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        tuner.main(arguments)
    assert f"error: {said}" in capsys.readouterr().err


def test_the_help_says_what_to_give(tuner: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        tuner.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "`sparsekernels bench SUITE --device cuda --list` has its cases and variants" in said
    assert "whose cases are run: networks, layers, blocks, " in said


def test_neighbors(tuner: ModuleType) -> None:
    assert tuner.neighbors("num_warps", 4) == [2, 8]
    assert tuner.neighbors("num_warps", 1) == [2]
    assert tuner.neighbors("num_stages", 3) == [2, 4]
    assert tuner.neighbors("stages", 1) == [2]
