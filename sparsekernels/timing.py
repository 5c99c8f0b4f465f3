# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The one timer: variants are interleaved, each sample is long enough for the clock, percentiles summarize them."""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .clocks import Clock as Clock
from .clocks import CpuClock as CpuClock
from .clocks import clock_of as clock_of
from .usage import SHORT, Disturbed, Usage, undisturbed

SLOW = 0.05
"""A call of more seconds than this fills its own caches, whatever it is."""

ENOUGH = 3
"""So many samples that were not disturbed tell what a variant takes."""

_ALIKE = 1.5
"""Two calls of one variant whose times differ by less than this factor: neither was stalled, or both alike."""


@dataclass(frozen=True)
class Effort:
    """How much time a case gets.

    Attributes:
        seconds: For the timed samples of all its variants together; a case whose calls are long takes `least` rounds.
        sample: The least length of one sample, in seconds: calls are repeated inside it until they fill it.
        least, most: Limits to the number of rounds, one sample of each variant in each.
        slow: A call of more seconds than this fills its own caches: no untimed call precedes its sample.
        hopeless: A variant that takes more than this many times as long as the fastest in the first round, and so long
            that `least` samples would take more than `seconds`, has no other round. A second sample has to confirm it,
            or an earlier call that took about as long: a stall does not decide. Infinite: all have all rounds.
        patience: Seconds after which half of `least` rounds are enough, at least one: calls so long have less of what
            disturbs short ones.
        disturbed: Seconds for which samples are taken where fewer than `ENOUGH` of a variant were not disturbed.

    Raises:
        ValueError: A number under which nothing, or not what it says, would be measured.
    """

    seconds: float
    sample: float = 1e-3
    least: int = 5
    most: int = 100
    slow: float = SLOW
    hopeless: float = math.inf
    patience: float = math.inf
    disturbed: float = 0.0

    def __post_init__(self) -> None:
        for name, expected, holds in (
            ("seconds", "at least 0", self.seconds >= 0),
            ("sample", "more than 0 and finite", 0 < self.sample < math.inf),
            ("least", "at least 1 and at most `most`", 1 <= self.least <= self.most),
            ("slow", "at least 0", self.slow >= 0),
            ("hopeless", "at least 1", self.hopeless >= 1),
            ("patience", "at least 0", self.patience >= 0),
            ("disturbed", "at least 0", self.disturbed >= 0),
        ):
            if not holds:
                raise ValueError(f"Effort: expected {name} to be {expected}, got {getattr(self, name)}")


Sampler = Callable[[int], float]
"""Runs a number of calls of one variant and returns the seconds per call."""


def repeats_of(sampler: Sampler, sample: float, seconds: float | None = None) -> int:
    """How many calls fill a sample.

    Args:
        sampler: Of the variant.
        sample: Seconds.
        seconds: What a call took just now. Without it the variant is warmed up: its first call does not count.

    Returns:
        The number of calls, at least 1.
    """
    if seconds is None:
        sampler(1)
        seconds = sampler(1)
    repeats = 1
    while seconds * repeats < sample / 2:
        repeats = _more(repeats, seconds, sample)
        seconds = sampler(repeats)
    return max(1, math.ceil(sample / seconds))


def _more(repeats: int, seconds: float, sample: float) -> int:
    """How many calls to try next, where `repeats` of `seconds` each are no half of a sample."""
    return max(2 * repeats, min(100 * repeats, math.ceil(sample / seconds) if seconds > 0 else 100 * repeats))


def are_enough(samples: Sequence[float]) -> bool:
    """Whether those of them that were not disturbed tell what a call takes: `ENOUGH`, or half of few.

    Args:
        samples: Of one variant.

    Returns:
        Whether they do.
    """
    return len(undisturbed(samples)) >= min(ENOUGH, (len(samples) + 1) // 2)


class _Variant:
    """One that is measured: its samples, seconds of a call, and how many calls fill one."""

    def __init__(self, sampler: Sampler, effort: Effort) -> None:
        self._sampler, self._effort = sampler, effort
        self._repeats = 1
        self.samples: list[float] = []

    @property
    def clear(self) -> bool:
        """Whether its samples tell what it takes."""
        return are_enough(self.samples)

    def sample(self) -> float:
        """Seconds of a call, by one sample more."""
        seconds = self._sample()
        if isinstance(seconds, Disturbed) and seconds * self._repeats < SHORT:
            return self._sample()
        return seconds

    def _sample(self) -> float:
        slow, least = self._effort.slow, self._effort.sample
        if not self.samples:
            seconds = self._sampler(1)
            self._repeats = repeats_of(self._sampler, least, seconds)
            if seconds >= max(slow, least):
                return seconds
        elif self.samples[-1] < slow:
            self._sampler(1)
        seconds = self._sampler(self._repeats)
        while seconds * self._repeats < least / 2:
            self._repeats = _more(self._repeats, seconds, least)
            seconds = self._sampler(self._repeats)
        return seconds


def interleave(
    samplers: Mapping[str, Sampler],
    effort: Effort,
    earlier: Mapping[str, float] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, list[float]]:
    """Seconds of a call of each variant, interleaved: one sample of each in every round. All are warm.

    The order within a round is random (from a fixed seed), so that what disturbs the machine for a while disturbs all
    of them, and none always runs in the caches that the same neighbor left. One untimed call precedes each sample,
    unless it would take longer than `effort.slow` seconds. How many calls fill a sample is found in the first round,
    where a call that fills one, and takes longer than `effort.slow`, is its own sample; and once more where they fill
    less than half of one, since a stall made them seem longer. A short sample that is `Disturbed` is taken once more.

    Args:
        samplers: How to sample each variant.
        effort: How many rounds.
        earlier: Seconds that a call of a variant took before, which are no sample but may confirm that it is hopeless.
        stop: Asked before each sample. Where it says so, no sample follows those of the first round.

    Returns:
        Seconds of one call, a number for each round; of a hopeless variant, for the first round. Where all others are
        hopeless, the one that is left has `effort.least` rounds.
    """
    variants = {name: _Variant(sampler, effort) for name, sampler in samplers.items()}
    order, shuffle = list(variants), random.Random(0).shuffle
    start = time.perf_counter()
    for done in range(effort.most):
        if done == 1 and variants and math.isfinite(effort.hopeless):
            order = _hopeful(variants, effort, earlier or {})
        alone = len(order) == 1 < len(variants)
        seconds = time.perf_counter() - start
        clear = seconds >= effort.disturbed or all(variants[name].clear for name in order)
        if clear and done >= effort.least and (alone or seconds >= effort.seconds):
            break
        if clear and done >= max(1, effort.least // 2) and seconds >= effort.patience:
            break
        shuffle(order)
        for name in order:
            if stop is not None and stop() and done > 0:
                break
            variants[name].samples.append(variants[name].sample())
        else:
            continue
        break
    return {name: one.samples for name, one in variants.items()}


def _hopeful(variants: Mapping[str, _Variant], effort: Effort, earlier: Mapping[str, float]) -> list[str]:
    """Those that are not hopeless after the first round. Of two samples the faster counts."""
    certain = {name for name, one in variants.items() if name in earlier and _are_alike(earlier[name], one.samples[0])}
    while True:
        limit = max(effort.hopeless * min(one.samples[0] for one in variants.values()), effort.seconds / effort.least)
        above = [
            name
            for name, one in variants.items()
            if one.samples[0] > limit and not (effort.disturbed and isinstance(one.samples[0], Disturbed))
        ]
        suspects = [name for name in above if name not in certain]
        if not suspects:
            return [name for name in variants if name not in above]
        for one in map(variants.__getitem__, suspects):
            one.samples[0] = min(one.samples[0], one.sample())
        certain.update(suspects)


def _are_alike(seconds: float, other: float) -> bool:
    return max(seconds, other) <= _ALIKE * min(seconds, other)


def samples_of(
    calls: Mapping[str, Callable[[], object]],
    effort: Effort,
    contexts: Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]] | None = None,
    warm: bool = False,
    earlier: Mapping[str, float] | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Clock | None = None,
) -> dict[str, list[float]]:
    """Seconds of calls, interleaved.

    Args:
        calls: The calls by name.
        effort: How many rounds.
        contexts: By name, the context that is entered around each sample, untimed.
        warm: Whether each of them was called before.
        earlier: Where they are warm, seconds that such a call took, see `interleave`; of any of them.
        stop: See `interleave`.
        clock: Without it, the CPU's.

    Returns:
        Seconds of one call, a number for each round; `Disturbed` where other programs interfered, which only the CPU's
        clock can tell.
    """
    timer = CpuClock() if clock is None else clock
    may_tell = isinstance(timer, CpuClock)

    def sampler(name: str, call: Callable[[], object]) -> Sampler:
        context = (contexts or {}).get(name, contextlib.nullcontext)

        def sample(repeats: int) -> float:
            with context():
                before = Usage.now()
                seconds = timer.seconds(call, repeats)
                disturbed = may_tell and Usage.now().disturbs(seconds, before)
            return Disturbed(seconds / repeats) if disturbed else seconds / repeats

        return sample

    samplers = {name: sampler(name, call) for name, call in calls.items()}
    if not warm:
        earlier = {name: one(1) for name, one in samplers.items()}
    return interleave(samplers, effort, earlier, stop)


def fastest(calls: Mapping[str, Callable[[], object]], effort: Effort) -> str:
    """The call whose fastest sample is the fastest.

    Args:
        calls: The calls by name.
        effort: How many rounds.

    Returns:
        Its name.
    """
    if len(calls) == 1:
        return next(iter(calls))
    samples = samples_of(calls, effort)
    return min(samples, key=lambda name: min(samples[name]))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile, linear between neighbors.

    Args:
        values: At least one.

    Returns:
        The three percentiles; of a single value, that value.
    """
    if len(values) == 1:  # which `quantiles` refuses before Python 3.13
        return values[0], values[0], values[0]
    low, _, _, high = statistics.quantiles(values, n=5, method="inclusive")
    return low, statistics.median(values), high


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median over the rounds of the ratio within a round: what slows a whole round down cancels.

    Args:
        numerators: A value for each round.
        denominators: A value for each round.

    Returns:
        The median ratio.
    """
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))
