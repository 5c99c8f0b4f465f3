# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark: the timer, and the process that measures."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekernels
from sparsekernels import timing
from sparsekernels.bench import machine, rmsnorm, runner, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Prepared, Selection, Suite, Unavailable, Variant, Verdict
from sparsekernels.timing import CpuClock, Effort, interleave, median_ratio, repeats_of, samples_of, spread

BRIEF = Effort(seconds=0, sample=1e-5, least=3, most=3)


class FakeMachine:
    """Variants whose calls take the same every time, but where the machine stalls: `stalls`, by variant and turn."""

    def __init__(self, seconds: dict[str, float], stalls: dict[tuple[str, int], float] | None = None) -> None:
        self._seconds, self.stalls = seconds, dict(stalls or {})
        self.repeats: dict[str, list[int]] = {name: [] for name in seconds}

    @property
    def calls(self) -> dict[str, int]:
        return {name: sum(repeats) for name, repeats in self.repeats.items()}

    def samplers(self) -> dict[str, Callable[[int], float]]:
        return {name: functools.partial(self._sample, name) for name in self._seconds}

    def _sample(self, name: str, repeats: int) -> float:
        turn = len(self.repeats[name])
        self.repeats[name].append(repeats)
        return self._seconds[name] + self.stalls.get((name, turn), 0.0) / repeats


class TestTimer:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([5.0], (5.0, 5.0, 5.0)),
            ([3.0, 1.0, 2.0], (1.4, 2.0, 2.6)),
            ([1.0, 2.0], (1.2, 1.5, 1.8)),
            ([float(i) for i in range(11)], (2.0, 5.0, 8.0)),
        ],
    )
    def test_spread(self, values: list[float], expected: tuple[float, float, float]) -> None:
        assert spread(values) == pytest.approx(expected)

    def test_spread_needs_a_value(self) -> None:
        with pytest.raises(ValueError, match="must have at least"):
            spread([])

    def test_nothing_to_interleave(self) -> None:
        assert interleave({}, BRIEF) == {}

    def test_median_ratio_cancels_what_slows_a_round(self) -> None:
        assert median_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 4.0]) == 2.0

    @pytest.mark.parametrize("call", [1e-7, 3e-6, 0.02])
    def test_repeats_fill_a_sample(self, call: float) -> None:
        first = itertools.chain([1.0], itertools.repeat(0.0))  # the first call of all compiles something
        reading = 5e-7  # what reading the clock adds to a sample
        repeats = repeats_of(lambda n: next(first) + call + reading / n, sample=1e-3)
        assert repeats * call >= 0.5e-3
        assert repeats == 1 or repeats * call <= 2e-3

    def test_repeats_survive_a_clock_that_stands_still(self) -> None:
        assert repeats_of(lambda n: 0.0 if n < 1000 else 2**-20, sample=2**-10) == 1024

    def test_variants_take_turns(self) -> None:
        calls: list[tuple[str, int]] = []

        def sampler_of(name: str) -> Callable[[int], float]:
            def sample(repeats: int) -> float:
                calls.append((name, repeats))
                return 1e-6

            return sample

        effort = Effort(seconds=60, sample=7e-6, least=2, most=8)
        samples = interleave({name: sampler_of(name) for name in "abc"}, effort)
        assert {name: len(values) for name, values in samples.items()} == {"a": 8, "b": 8, "c": 8}
        assert [repeats for _, repeats in calls[:9]] == [1, 7, 7] * 3  # a call, how many fill a sample, the sample
        del calls[1:9:3]
        timed, untimed = calls[1::2], calls[::2]
        assert [name for name, _ in timed] == [name for name, _ in untimed]
        assert {repeats for _, repeats in timed} == {7}
        assert {repeats for _, repeats in untimed} == {1}
        rounds = ["".join(name for name, _ in timed[at : at + 3]) for at in range(0, 24, 3)]
        assert {"".join(sorted(order)) for order in rounds} == {"abc"}
        assert len(set(rounds)) > 1

    def test_time_is_bounded(self) -> None:
        samples = interleave({"a": lambda repeats: 1e-6}, Effort(seconds=0, least=3, most=100))
        assert len(samples["a"]) == 3

    def test_slow_calls_are_not_warmed_up_each_time(self) -> None:
        calls = []
        interleave({"a": lambda repeats: calls.append(repeats) or 1.0}, Effort(seconds=0, least=4))
        assert len(calls) == 4

    def test_a_call_that_fills_its_sample_is_a_round_once_it_is_warm(self) -> None:
        calls: list[str] = []
        slow = {name: lambda name=name: calls.append(name) or time.sleep(2e-3) for name in "ab"}
        samples = samples_of(slow, Effort(seconds=0, sample=1e-3, least=3, slow=1e-3))
        assert calls.count("a") == calls.count("b") == 4
        assert {len(values) for values in samples.values()} == {3}
        del calls[:]
        samples = samples_of(slow, Effort(seconds=0, sample=1e-3, least=3, slow=1.0), warm=True)
        assert calls.count("a") > 4
        assert {len(values) for values in samples.values()} == {3}

    @pytest.mark.parametrize(
        ("seconds", "counts"),
        [
            ({"a": 1.0, "b": 3.9, "c": 4.1}, {"a": 5, "b": 5, "c": 1}),
            ({"a": 1.0, "b": 4.1, "c": 9.0}, {"a": 3, "b": 1, "c": 1}),
            ({"a": 1e-3, "b": 4e-3, "c": 0.09}, {"a": 5, "b": 5, "c": 5}),
            ({"a": 1e-3, "b": 4e-3, "c": 0.11}, {"a": 5, "b": 5, "c": 1}),
        ],
    )
    def test_what_is_hopeless_and_long_has_one_sample(self, seconds: dict[str, float], counts: dict[str, int]) -> None:
        samplers = {name: (lambda repeats, taken=taken: taken) for name, taken in seconds.items()}
        samples = interleave(samplers, Effort(seconds=0.3, least=3, most=5, hopeless=4.0))
        assert {name: len(values) for name, values in samples.items()} == counts

    @pytest.mark.parametrize("stalled", ["first", "second", "both"])
    @pytest.mark.parametrize("turn", [0, 1, 2])
    def test_a_stall_does_not_make_hopeless(self, stalled: str, turn: int) -> None:
        """In the first round, of the fastest, of the second, or of both at once; neither is rid of its later rounds."""
        machine = FakeMachine({"first": 0.010, "second": 0.025, "third": 0.026})
        for name in ("first", "second") if stalled == "both" else (stalled,):
            machine.stalls[name, turn] = 0.3
        samples = interleave(machine.samplers(), Effort(seconds=0.06, sample=5e-4, least=3, most=30, hopeless=3.0))
        assert {name: len(values) for name, values in samples.items()} == {"first": 30, "second": 30, "third": 30}
        assert median_ratio(samples["second"], samples["first"]) == pytest.approx(2.5)

    def test_a_shorter_second_sample_makes_others_hopeless(self) -> None:
        machine = FakeMachine({"first": 0.010, "second": 0.035, "third": 0.2})
        machine.stalls["first", 0] = 0.3
        samples = interleave(machine.samplers(), Effort(seconds=0.06, sample=5e-4, least=3, most=30, hopeless=3.0))
        assert {name: len(values) for name, values in samples.items()} == {"first": 3, "second": 1, "third": 1}
        assert samples["first"][0] == pytest.approx(0.010)
        assert machine.calls["third"] == 2

    @pytest.mark.parametrize(("earlier", "calls"), [(0.29, 1), (0.21, 1), (0.31, 2), (0.1, 2), (0.01, 2)])
    def test_an_earlier_call_that_took_about_as_long_confirms(self, earlier: float, calls: int) -> None:
        machine = FakeMachine({"first": 0.010, "second": 0.2})
        effort = Effort(seconds=0.06, sample=5e-4, least=3, most=30, hopeless=3.0)
        samples = interleave(machine.samplers(), effort, {"first": 0.5, "second": earlier})
        assert machine.calls["second"] == calls
        assert samples["second"] == [pytest.approx(0.2)]

    def test_the_untimed_call_confirms(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So what is hopeless costs no more than that one and its sample."""
        now = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        called: list[str] = []

        def call(name: str, seconds: float) -> None:
            called.append(name)
            now[0] += seconds

        effort = Effort(seconds=0.06, sample=5e-4, least=3, most=30, hopeless=3.0)
        calls = {"a": lambda: call("a", 0.01), "b": lambda: call("b", 0.2)}
        samples = samples_of(calls, effort)
        assert (len(samples["b"]), called.count("b")) == (1, 2)
        called.clear()
        samples = samples_of(calls, effort, warm=True, earlier={"b": 0.2})
        assert (len(samples["b"]), called.count("b")) == (1, 1)

    @pytest.mark.parametrize("length", [1e-4, 0.02, 5.0])
    @pytest.mark.parametrize("turn", range(4))
    def test_a_stall_while_calls_are_counted_does_not_last(self, length: float, turn: int) -> None:
        """Each later sample is half as long as it should be, at least."""
        machine = FakeMachine({"first": 1e-6}, stalls={("first", turn): length})
        effort = Effort(seconds=60, sample=1e-3, least=3, most=10)
        samples = interleave(machine.samplers(), effort)
        assert len(samples["first"]) == 10
        assert all(seconds == pytest.approx(1e-6) for seconds in samples["first"][2:])
        assert all(repeats >= 500 for repeats in machine.repeats["first"][-1:-15:-2])

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"seconds": -1.0}, "expected seconds to be at least 0, got -1.0"),
            ({"seconds": math.nan}, "expected seconds"),
            ({"sample": 0.0}, "expected sample to be more than 0 and finite, got 0.0"),
            ({"sample": math.inf}, "expected sample"),
            ({"least": 0}, "expected least to be at least 1 and at most `most`, got 0"),
            ({"least": 101}, "expected least"),
            ({"most": 4}, "expected least"),
            ({"slow": -1.0}, "expected slow to be at least 0, got -1.0"),
            ({"slow": math.nan}, "expected slow"),
            ({"hopeless": 0.5}, "expected hopeless to be at least 1, got 0.5"),
            ({"hopeless": math.nan}, "expected hopeless"),
        ],
    )
    def test_an_effort_under_which_nothing_is_measured_is_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            Effort(**{"seconds": 1.0, **changes})

    def test_interruptions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counts, times = iter([100, 130, 500, 520]), iter([0.0, 2.0, 100.0, 100.5])
        monkeypatch.setattr(timing.Interruptions, "_now", staticmethod(lambda: next(counts)))
        monkeypatch.setattr(time, "perf_counter", lambda: next(times))
        found = timing.Interruptions()
        assert found.per_second == 0
        for _ in range(2):
            with found.counted():
                pass
        assert found.per_second == 20.0

    def test_interruptions_are_those_of_this_process(self) -> None:
        found = timing.Interruptions()
        with found.counted():
            time.sleep(0.01)
        assert 0 <= found.per_second < 1e5

    def test_cpu_clock(self) -> None:
        calls = []
        seconds = CpuClock().seconds(lambda: calls.append(time.sleep(2e-3)), 3)
        assert len(calls) == 3
        assert 6e-3 <= seconds < 1


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
        monkeypatch.setattr(timing.Interruptions, "_now", staticmethod(lambda: next(counts)))
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
