# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark: the timer, and the process that measures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekernels
from sparsekernels import usage
from sparsekernels.bench import machine, rmsnorm, runner, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Prepared, Selection, Suite, Unavailable, Variant, Verdict
from sparsekernels.timing import Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=3, most=3)


def make_suite(variants: list[Variant]) -> Suite:
    return dataclasses.replace(rmsnorm.SUITE, variants=lambda case, selection: variants, baseline="base", ideal="best")


CASE = Case("rmsnorm", "rows/4x64", "forward", "float32", "cpu", 4, True, {"shape": (4, 64)})


class SetClock:
    """A clock on which a call takes the time that it returns."""

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        seconds = call()
        assert isinstance(seconds, float)
        return seconds * repeats


def measure(variants: list[Variant], **of_suite: Any) -> tuple[dict[str, Record], list[str]]:
    events: list[dict[str, Any]] = []
    session = worker.Session(SetClock(), BRIEF, events.append)
    found = worker.measure(dataclasses.replace(make_suite(variants), **of_suite), CASE, variants, session)
    return {one.variant: one for one in found}, [event["text"] for event in events]


def taking(seconds: float, **other: Any) -> Callable[[], Prepared]:
    return lambda: Prepared(lambda: seconds, **other)


class TestMeasuring:
    def test_figures(self) -> None:
        records, notes = measure(
            [
                Variant("base", taking(8e-3)),
                Variant("best", taking(1e-3)),
                Variant("ours", taking(2e-3, check=lambda: Verdict(1e-7, True))),
            ]
        )
        ours = records["ours"]
        assert notes == []
        assert (ours.p20_ms, ours.p50_ms, ours.p80_ms) == (2.0, 2.0, 2.0)
        assert (ours.speedup, ours.ideal_fraction, ours.max_error, ours.status) == (4.0, 0.5, 1e-7, "ok")
        assert (ours.case, ours.pass_, ours.threads) == ("rows/4x64", "forward", torch.get_num_threads())
        assert (records["base"].speedup, records["best"].ideal_fraction) == (1.0, 1.0)
        assert Record.from_json(ours.to_json()) == ours

    def test_with_a_sparsity_the_ideal_is_the_baseline_by_density(self) -> None:
        details = {"gflop": 3.0}
        records, _ = measure(
            [
                Variant("base", taking(8e-3)),
                Variant("ours:random-75", taking(4e-3, details=details), sparsity=0.75),
                Variant("ours:random-50", taking(4e-3, check=lambda: Verdict(1.0, False)), sparsity=0.5),
            ]
        )
        ours = records["ours:random-75"]
        assert (ours.sparsity, ours.speedup, ours.ideal_fraction, ours.details) == (0.75, 2.0, 0.5, details)
        assert (records["ours:random-50"].sparsity, records["ours:random-50"].ideal_fraction) == (0.5, None)
        assert (records["base"].sparsity, records["base"].details) == (None, {})
        assert Record.from_json(ours.to_json()) == ours

    def test_records_say_what_interrupted_their_case(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counts = itertools.count(0, 1000)
        monkeypatch.setattr(usage.Interruptions, "_now", staticmethod(lambda: next(counts)))
        records, _ = measure([Variant("base", taking(1e-3)), Variant("ours", taking(1e-3))])
        assert records["ours"].interruptions == records["base"].interruptions
        assert records["ours"].interruptions > 1000
        assert Record.from_json(records["ours"].to_json()) == records["ours"]

    def test_a_mode_is_compared_within_itself(self) -> None:
        records, _ = measure(
            [
                Variant("base", taking(8e-3)),
                Variant("base/graph", taking(20e-3, calls=10)),
                Variant("ours", taking(2e-3)),
                Variant("ours/graph", taking(10e-3, calls=10)),
            ]
        )
        assert (records["ours"].speedup, records["ours/graph"].speedup) == (4.0, 2.0)
        assert records["ours/graph"].p50_ms == 1.0
        assert records["ours"].ideal_fraction is None

    @pytest.mark.parametrize(("error", "recorded"), [(0.5, 0.5), (float("nan"), None)])
    def test_a_wrong_result_has_no_time(self, error: float, recorded: float | None) -> None:
        calls = []
        prepared = Prepared(lambda: calls.append(1) or 1e-3, check=lambda: Verdict(error, False))
        records, notes = measure([Variant("base", taking(1e-3)), Variant("ours", lambda: prepared)])
        ours = records["ours"]
        assert (ours.status, ours.max_error) == ("wrong", recorded)
        assert (ours.p20_ms, ours.p50_ms, ours.p80_ms, ours.speedup) == (None, None, None, None)
        assert calls == []
        assert "ours: wrong, the largest error is" in notes[0]
        assert records["base"].status == "ok"

    def test_a_variant_in_another_process_is_sampled_there(self) -> None:
        asked: list[int] = []
        there = Prepared(lambda: None, sampler=lambda n: asked.append(n) or 4e-3, versions={"engine": "1.2"})
        records, _ = measure(
            [
                Variant("base:random-50", taking(8e-3), sparsity=0.5),
                Variant("ours:random-50", lambda: there, sparsity=0.5),
            ],
            rival="ours",
        )
        ours, base = records["ours:random-50"], records["base:random-50"]
        assert asked[0] == 1
        assert (ours.p50_ms, ours.speedup, ours.details) == (4.0, 2.0, {"over_ours": 1.0})
        assert base.details == {"over_ours": 2.0}
        assert base.versions["engine"] == "1.2"

    def test_what_fails_while_it_is_timed_has_no_time(self) -> None:
        lives = iter([4e-3] * 3)
        records, notes = measure(
            [Variant("mortal", lambda: Prepared(lambda: next(lives))), Variant("base", taking(1e-3))]
        )
        assert (records["mortal"].status, records["mortal"].p50_ms, records["mortal"].speedup) == ("error", None, None)
        assert records["base"].status == "ok"
        assert len(notes) == 1
        assert "mortal: StopIteration" in notes[0]

    def test_what_fails_is_reported_and_the_others_go_on(self) -> None:
        def missing() -> Prepared:
            raise Unavailable("no compiler")

        def broken() -> Prepared:
            raise RuntimeError("at preparing")

        def call() -> float:
            raise MemoryError("at running")

        records, notes = measure(
            [
                Variant("missing", missing),
                Variant("broken", broken),
                Variant("fails", lambda: Prepared(call)),
                Variant("base", taking(1e-3)),
            ]
        )
        assert {name: one.status for name, one in records.items()} == {
            "missing": "unavailable",
            "broken": "error",
            "fails": "error",
            "base": "ok",
        }
        assert [note.partition(", ")[2] for note in notes] == [
            "missing: unavailable, no compiler",
            "broken: RuntimeError: at preparing",
            "fails: MemoryError: at running",
        ]


class TestRunner:
    def test_events_of_a_real_run(self) -> None:
        selection = Selection(cases=("8x64",), dtypes=("float32",), quick=True, threads=1, variants=("ours", "copy"))
        events = list(runner.run("rmsnorm", selection))
        assert events[0] == runner.Started(2)
        assert [event.text for event in events if isinstance(event, runner.CaseStarted)] == [
            "rows/8x64 float32 forward",
            "rows/8x64 float32 forward+backward",
        ]
        records = [event for event in events if isinstance(event, Record)]
        assert [(one.variant, one.pass_) for one in records] == [
            ("ours", "forward"),
            ("copy", "forward"),
            ("ours", "forward+backward"),
            ("copy", "forward+backward"),
        ]
        for one in records:
            assert (one.status, one.threads, one.speedup) == ("ok", 1, None)
            assert one.machine["allocator"] == machine.ALLOCATOR
            assert one.commit == machine.commit()

    def test_a_death_is_told(self) -> None:
        with pytest.raises(runner.RunnerError, match=r"(?s)suite 'nonsense' died \(exit code 1\) at start.*expected"):
            list(runner.run("nonsense", Selection()))

    def test_a_crash_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        with pytest.raises(runner.RunnerError, match=r"(?s)died \(signal 11\) at start.*Segmentation fault"):
            list(runner.run("rmsnorm", Selection()))

    def test_leaving_ends_the_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[subprocess.Popen[str]] = []

        class Popen(subprocess.Popen):  # type: ignore[type-arg]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                started.append(self)

        monkeypatch.setattr(subprocess, "Popen", Popen)
        events: Iterator[runner.Event] = runner.run("rmsnorm", Selection(quick=True, cases=("rows",)))
        assert isinstance(next(events), runner.Started)
        events.close()  # type: ignore[attr-defined]
        assert [child.poll() is not None for child in started] == [True]


class TestMachine:
    def test_the_same_every_time_and_fit_for_a_file(self) -> None:
        machine.machine.cache_clear()
        first = machine.machine()
        machine.machine.cache_clear()
        assert json.loads(json.dumps(first)) == machine.machine() == first
        assert first["cores"] >= 1
        assert first["memory_gib"] >= 1
        assert machine.versions()["torch"] == torch.__version__

    @pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
    def test_commit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def git(*arguments: str) -> str:
            identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
            command = ["git", "-C", str(tmp_path), *identity, *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

        monkeypatch.delenv("SPARSEKERNELS_COMMIT", raising=False)
        source = tmp_path / "sparsekernels" / "__init__.py"
        source.parent.mkdir()
        source.write_text("")
        assert machine.commit(tmp_path) == f"v{sparsekernels.__version__}"
        monkeypatch.setenv("SPARSEKERNELS_COMMIT", "0123abc")
        machine.commit.cache_clear()
        assert machine.commit(tmp_path) == "0123abc"
        git("init")
        git("add", ".")
        git("commit", "-m", "first", "--no-verify")
        (tmp_path / "notes.txt").write_text("not a source")
        machine.commit.cache_clear()
        assert machine.commit(tmp_path) == git("rev-parse", "--short=12", "HEAD")
        source.write_text("changed = True\n")
        machine.commit.cache_clear()
        assert machine.commit(tmp_path) == git("rev-parse", "--short=12", "HEAD") + "+dirty"


def test_the_package_itself_needs_none_of_it() -> None:
    code = "import sys, sparsekernels; print(sorted({'typer', 'rich', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
