# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Times of layers and models, interleaved, by the benchmarks' timer; or a preference in the place of the clock."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clocks import SynchronizedClock, clock_on
from ..timing import ENOUGH, Effort, are_enough, median_ratio, samples_of
from ..usage import Disturbed, undisturbed
from .candidates import decisions
from .facts import Way

LAYER = Effort(seconds=0.06, sample=5e-4, least=3, most=30, slow=5e-3, hopeless=3.0, patience=0.3, disturbed=0.5)
MODEL = Effort(seconds=0.8, sample=1e-3, least=3, most=50, hopeless=4.0, disturbed=3.0)
CLOSE = Effort(seconds=2.5, sample=1e-3, least=7, most=50, patience=8.0, disturbed=5.0)
"""How long the ways to compute a layer, and the whole model, are measured; and the model where it is a close thing."""

SAME = 1.03
"""So much two measurements of the same differ."""

LEAST_OF_FREED = 0.9
"""Where dense weights are let go of, what a way may be in one of several examples: memory falls for it."""

_PLAIN, _PLAIN_OF_FEW = 1.5, 2.0
"""By so much, and in `_MOST_ROUNDS` of the rounds, one has to be faster where the samples were disturbed; and where
there are fewer rounds than `_FEW`."""
_MOST_ROUNDS, _FEW = 0.75, 5

Contexts = Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]]


@dataclass(frozen=True)
class Times:
    """Seconds of a call of each of some ways to compute the same, one number a round.

    What was hopeless in the first round has that one only. Where a preference took the place of the clock there are no
    times: `order` has the preferred names, the first before all others, and what it does not name is not preferred.
    """

    rounds: Mapping[str, list[float]]
    order: tuple[str, ...] | None = None

    @property
    def measured(self) -> bool:
        """Whether these are times."""
        return self.order is None

    def faster(self, names: Collection[str], over: str, least: float) -> list[str]:
        """Those of `names` that are for certain at least `least` times as fast as `over`, the fastest first.

        Of a preference: those of `names` that it has before `over`.
        """
        if self.order is not None:
            preferred = itertools.takewhile(lambda name: name != over, self.order)
            return [name for name in preferred if name in names]
        gains = {name: self.speedup(name, over) for name in names if self.is_certain(name, over)}
        return sorted((name for name in gains if gains[name] >= least), key=lambda name: gains[name], reverse=True)

    def is_certain(self, name: str, over: str) -> bool:
        """Whether it is known which of the two is faster: there are enough samples that were not disturbed, or one is
        so much faster that it does not matter."""
        if self.is_clear([name, over]):
            return True
        rounds = min(len(self.rounds[name]), len(self.rounds[over]))
        plain = _PLAIN if rounds >= _FEW else _PLAIN_OF_FEW
        gain, share = self.speedup(name, over), self.share_faster(name, over)
        return (gain >= plain and share >= _MOST_ROUNDS) or (gain <= 1 / plain and share <= 1 - _MOST_ROUNDS)

    def is_clear(self, names: Collection[str]) -> bool:
        """Whether enough samples of these were not disturbed, so that it is known what they take."""
        return self.order is not None or all(map(self._is_clear, names))

    def milliseconds(self, name: str) -> float:
        """The median; where nearly all samples were disturbed, the least, which was so the least."""
        return 1e3 * self._typical(name)

    def speedup(self, name: str, over: str) -> float:
        """Median over the rounds of the time of `over` over that of `name`; where one has fewer, the medians' ratio.

        Without samples that were disturbed; where there are too few others, of the least of all.
        """
        pairs = self._pairs(name, over)
        return self._typical(over) / self._typical(name) if pairs is None else median_ratio(pairs[1], pairs[0])

    def share_faster(self, name: str, over: str) -> float:
        """In what share of the rounds `name` took less time than `over`: half of them where both take the same."""
        mine, theirs = self._pairs(name, over) or (self.rounds[name], self.rounds[over])
        return statistics.mean(seconds < other for seconds, other in zip(mine, theirs, strict=False))

    def _is_clear(self, name: str) -> bool:
        return are_enough(self.rounds[name])

    def _typical(self, name: str) -> float:
        samples = self.rounds[name]
        return statistics.median(undisturbed(samples)) if self._is_clear(name) else min(samples)

    def _pairs(self, name: str, over: str) -> tuple[list[float], list[float]] | None:
        """The samples of the rounds in which neither was disturbed; None where these are too few."""
        both = zip(self.rounds[name], self.rounds[over], strict=False)
        pairs = [pair for pair in both if not any(isinstance(one, Disturbed) for one in pair)]
        same = len(self.rounds[name]) == len(self.rounds[over])
        if not same or len(pairs) < min(ENOUGH, len(self.rounds[name])):
            return None
        return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


@dataclass(frozen=True)
class AllTimes:
    """The times of the same ways in several examples. A way is as fast as by the geometric mean of its speedups, and
    no way is faster that is slower in one of them: by more than two measurements of the same differ.

    freeing: the ways without dense weights, which may be slower in one of them, down to `LEAST_OF_FREED`.
    """

    each: tuple[Times, ...]
    freeing: frozenset[str] = frozenset()

    @property
    def measured(self) -> bool:
        """Whether these are times."""
        return self.each[0].measured

    @property
    def order(self) -> tuple[str, ...] | None:
        """Of a preference, as `Times` has it."""
        return self.each[0].order

    def least(self, name: str) -> float:
        """What a way has to exceed in each example."""
        return LEAST_OF_FREED if name in self.freeing else 1 / SAME

    def faster(self, names: Collection[str], over: str, least: float, slowest: float = 1 / SAME) -> list[str]:
        """As of `Times`, and in no example slower than a way may be.

        slowest: what every way may be in each, where that is less.
        """
        if len(self.each) == 1 or not self.measured:
            return self.each[0].faster(names, over, least)
        certain = [name for name in names if self.is_certain(name, over)]
        gains = {
            name: self.speedup(name, over)
            for name in certain
            if self.slowest(name, over)[1] > min(slowest, self.least(name))
        }
        return sorted((name for name in gains if gains[name] >= least), key=lambda name: gains[name], reverse=True)

    def is_certain(self, name: str, over: str) -> bool:
        """As of `Times`, in all examples; or it is for certain slower in one of them."""
        certain = [times for times in self.each if times.is_certain(name, over)]
        return len(certain) == len(self.each) or any(times.speedup(name, over) <= self.least(name) for times in certain)

    def is_clear(self, names: Collection[str]) -> bool:
        """As of `Times`, in all examples."""
        return all(times.is_clear(names) for times in self.each)

    def samples(self, names: Collection[str]) -> int:
        """How many there are of each of these in each example, at least."""
        return min(len(times.rounds[name]) for times in self.each for name in names)

    def milliseconds(self, name: str) -> float:
        """The sum of the medians."""
        return sum(times.milliseconds(name) for times in self.each)

    def speedup(self, name: str, over: str) -> float:
        """The geometric mean over the examples."""
        return statistics.geometric_mean(times.speedup(name, over) for times in self.each)

    def slowest(self, name: str, over: str) -> tuple[int, float]:
        """The place of the example that gains the least, and its speedup."""
        gains = [times.speedup(name, over) for times in self.each]
        return gains.index(min(gains)), min(gains)


_preferred: tuple[str, ...] | None = None
"""What takes the place of the clock: the first of these that is there is the fastest."""

NORMS = "norms"
"""The name by which `preferred` knows that norms run as `rms_norm`."""

_SAME = {Way.GRAPH.value: (Way.GRAPH.value, Way.GRAPH_IN_CHANNELS_LAST.value, Way.GRAPH_IN_INPUT_LAYOUT.value)}
"""Names that stand for several."""


def preferable() -> tuple[str, ...]:
    """The names that `preferred` takes, each once where one stands for several.

    What a layer becomes for the sake of a chain only times can tell.
    """
    stood_for = [name for several in _SAME.values() for name in several if name not in _SAME]
    ways = [way.value for way in Way if way not in (Way.BEFORE, Way.CHAINS_OF_ALL)]
    return (*decisions(), NORMS, *(name for name in ways if name not in stood_for))


def is_preferable(name: str) -> bool:
    """Whether `preferred` takes it."""
    return name in preferable() or any(name in several for several in _SAME.values())


def prefers() -> bool:
    """Whether a preference takes the place of the clock."""
    return _preferred is not None


def rules_out(name: str) -> bool:
    """Whether a preference takes the place of the clock, and does not name it."""
    return _preferred is not None and name not in _preferred


@contextlib.contextmanager
def preferred(names: tuple[str, ...]) -> Iterator[None]:
    """Inside, `times_of` looks at no clock: see `sparsekernels.testing.prefer`."""
    global _preferred
    previous, _preferred = _preferred, names
    try:
        yield
    finally:
        _preferred = previous


_of_layers: Mapping[str, str] | None = None
"""Beside `_preferred`, what each layer becomes; those that it does not name stay dense."""


@contextlib.contextmanager
def decided_by_layer(layers: Mapping[str, str], names: tuple[str, ...]) -> Iterator[None]:
    """Inside, `times_of` looks at no clock.

    layers: what each becomes, by its name; others stay dense. names: for norms and the whole model, as of `preferred`.
    """
    global _of_layers
    previous, _of_layers = _of_layers, layers
    try:
        with preferred(names):
            yield
    finally:
        _of_layers = previous


@contextlib.contextmanager
def of_layer(name: str) -> Iterator[tuple[str, ...] | None]:
    """Inside, a preference is the one of that layer. Gives it."""
    if _of_layers is None:
        yield _preferred
        return
    names = (_of_layers[name],) if name in _of_layers else ()
    with preferred(names):
        yield names


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Inside, torch's operators use one thread: for many small ones that nobody times.

    Where another program has a core, each of them would wait for the thread there: some milliseconds, a thousand times.
    """
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


_gpus: tuple[torch.device, ...] = ()
"""Which `times_of` and `now` are about, beside the host."""


@contextlib.contextmanager
def timed_on(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, `times_of` measures what the GPUs do that these are on: by their own clock, on the current stream."""
    global _gpus
    previous, _gpus = _gpus, tuple(dict.fromkeys(one.device for one in tensors if one.is_cuda))
    try:
        yield
    finally:
        _gpus = previous


def now() -> float:
    """Seconds by the host's clock, once all that was launched on the GPUs is done."""
    return SynchronizedClock(_gpus).now()


_stop: Callable[[], bool] | None = None
"""What `times_of` asks before each sample, see `interleave`."""


@contextlib.contextmanager
def stopped_by(stop: Callable[[], bool]) -> Iterator[None]:
    """Inside, `times_of` asks `stop` before each sample whether there is no time for more; it may raise."""
    global _stop
    previous, _stop = _stop, stop
    try:
        yield
    finally:
        _stop = previous


def is_time_up() -> bool:
    """Whether `stopped_by` says so; it may raise."""
    return _stop is not None and _stop()


def times_of(
    calls: Mapping[str, Callable[[], object]],
    effort: Effort,
    contexts: Contexts | None = None,
    warm: bool = False,
    earlier: Mapping[str, float] | None = None,
) -> Times:
    """Measure `calls`, interleaved, by the clock of `timed_on`.

    contexts: what is entered around each sample of a call, and not timed. warm: whether each was called before.
    earlier: seconds that took, where somebody looked.
    """
    if _preferred is None:
        return Times(samples_of(calls, effort, contexts, warm, earlier, _stop, clock_on(_gpus)))
    for name, call in calls.items():  # each once, as when it is measured
        if _stop is not None:
            _stop()
        with (contexts or {}).get(name, contextlib.nullcontext)():
            call()
    order = itertools.chain.from_iterable(_SAME.get(name, (name,)) for name in _preferred)
    return Times({}, tuple(dict.fromkeys(order)))
