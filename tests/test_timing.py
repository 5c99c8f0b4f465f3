# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The timer: interleaved samples, calibration, and what it drops."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from sparsekernels import timing, usage
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

    def test_it_stops_after_the_first_round_where_it_is_told_to(self) -> None:
        asked: list[int] = []
        samplers = {name: lambda repeats: 1.0 for name in "ab"}
        samples = interleave(samplers, Effort(seconds=60, least=3), stop=lambda: asked.append(1) or True)
        assert {name: len(values) for name, values in samples.items()} == {"a": 1, "b": 1}
        assert len(asked) == 3
        samples = interleave(samplers, Effort(seconds=60, least=3), stop=lambda: asked.append(1) or len(asked) == 7)
        assert sorted(map(len, samples.values())) == [1, 2]

    @pytest.mark.parametrize(("least", "expected"), [(7, 3), (3, 1), (1, 1)])
    def test_long_calls_have_fewer_rounds(self, least: int, expected: int) -> None:
        samples = interleave({"a": lambda repeats: 1.0}, Effort(seconds=60, least=least, patience=0))
        assert len(samples["a"]) == expected

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
            ({"disturbed": -1.0}, "expected disturbed to be at least 0, got -1.0"),
        ],
    )
    def test_an_effort_under_which_nothing_is_measured_is_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            Effort(**{"seconds": 1.0, **changes})

    def test_interruptions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counts, times = iter([100, 130, 500, 520]), iter([0.0, 2.0, 100.0, 100.5])
        monkeypatch.setattr(usage.Interruptions, "_now", staticmethod(lambda: next(counts)))
        monkeypatch.setattr(time, "perf_counter", lambda: next(times))
        found = usage.Interruptions()
        assert found.per_second == 0
        for _ in range(2):
            with found.counted():
                pass
        assert found.per_second == 20.0

    def test_interruptions_are_those_of_this_process(self) -> None:
        found = usage.Interruptions()
        with found.counted():
            time.sleep(0.01)
        assert 0 <= found.per_second < 1e5

    def test_cpu_clock(self) -> None:
        calls = []
        seconds = CpuClock().seconds(lambda: calls.append(time.sleep(2e-3)), 3)
        assert len(calls) == 3
        assert 6e-3 <= seconds < 1


class FakeProcess:
    """A clock and a usage. Other programs take the processor for 2 ms after each `turn` seconds that this one ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turn: float) -> None:
        self.now, self.ran, self.preemptions, self._turn = 0.0, 0.0, 0, turn
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(usage.Usage, "now", lambda: usage.Usage(self.ran, self.preemptions, 0))

    def call(self, seconds: float) -> None:
        self.ran += seconds
        stalls = int(self.ran / self._turn) - self.preemptions
        self.preemptions += stalls
        self.now += seconds + 2e-3 * stalls

    def samples(self, effort: Effort, **seconds: float) -> dict[str, list[float]]:
        return samples_of({name: functools.partial(self.call, one) for name, one in seconds.items()}, effort)


class TestDisturbances:
    @pytest.mark.parametrize(
        ("wall", "ran", "preemptions", "waits", "expected"),
        [
            (5e-4, 5e-4, 0, 0, False),
            (5e-4, 5e-4, 1, 0, True),  # a worker, for which the calling thread spins
            (0.1, 0.099, 5, 0, False),  # a long sample, in which that is common and short
            (0.1, 0.06, 5, 0, True),
            (0.1, 0.06, 0, 0, True),  # the machine itself was taken away
            (0.1, 0.06, 0, 1, False),  # it waited for something of its own
            (0.1, 0.06, 1, 1, True),
        ],
    )
    def test_what_disturbs(self, wall: float, ran: float, preemptions: int, waits: int, expected: bool) -> None:
        before = usage.Usage(1.0, 10, 20)
        after = usage.Usage(1.0 + ran, 10 + preemptions, 20 + waits)
        assert after.disturbs(wall, before) is expected

    def test_the_usage_is_that_of_this_process(self) -> None:
        before = usage.Usage.now()
        for _ in range(3):
            time.sleep(1e-3)
        after = usage.Usage.now()
        assert after.waits >= before.waits + 3
        assert not after.disturbs(3e-3, usage.Usage(before.seconds, after.preemptions, before.waits))

    def test_a_short_sample_is_taken_once_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where every fourth is disturbed, no two follow each other, and none remains."""
        process = FakeProcess(monkeypatch, 2e-3)
        samples = process.samples(Effort(seconds=0.2, sample=5e-4, least=3, disturbed=1.0), a=2e-5, b=3e-5)
        for name, seconds in (("a", 2e-5), ("b", 3e-5)):
            assert usage.undisturbed(samples[name]) == samples[name] == [pytest.approx(seconds)] * len(samples[name])

    def test_rounds_go_on_until_there_are_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where nearly all are disturbed."""
        process = FakeProcess(monkeypatch, 5.7e-4)
        effort = Effort(seconds=0.0, sample=5e-4, least=3, most=1000, disturbed=10.0)
        found = process.samples(effort, a=2e-5)["a"]
        assert usage.undisturbed(found) == [pytest.approx(2e-5)] * timing.ENOUGH
        assert len(found) > timing.ENOUGH
        assert process.now < 10.0

    def test_what_is_always_disturbed_has_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        process = FakeProcess(monkeypatch, 1e-5)
        samples = process.samples(Effort(seconds=0.02, sample=5e-4, least=3, most=1000, disturbed=0.5), a=2e-5)
        assert usage.undisturbed(samples["a"]) == []
        assert all(isinstance(one, usage.Disturbed) for one in samples["a"])
        assert 0.5 < process.now < 1.0

    def test_a_quiet_machine_takes_no_longer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        short = Effort(seconds=0.02, sample=5e-4, least=3, most=1000)
        long = Effort(seconds=0.02, sample=5e-4, least=3, most=1000, disturbed=0.5)
        counts = [len(FakeProcess(monkeypatch, math.inf).samples(one, a=2e-5)["a"]) for one in (short, long)]
        assert counts[0] == counts[1]
