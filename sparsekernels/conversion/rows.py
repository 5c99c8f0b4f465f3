# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""For which numbers of rows a linear layer is faster dense, as measured at some of them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..timing import Effort
from .measure import SAME, Times, is_time_up, times_of
from .report import DENSE
from .survey import Given

ROWS = (1, 2, 4, 8, 16, 64, 512)
"""Where it is measured: from a step of a language model to a prompt."""

_ENOUGH = 1.25
"""At that gain twice in a row, and with the most rows, those between gain as well."""

_EFFORT = Effort(seconds=0.02, sample=1e-6, least=5, most=9, slow=0.0, hopeless=2.0, disturbed=0.04)
"""A single call is a sample: the one before it would leave the weight in the cache."""

_CLOSE = 1.06
"""A gain of up to this beyond `SAME` is measured once more, and the lesser of the two counts: dense is never slower."""
_LONGER = Effort(seconds=0.1, sample=1e-6, least=9, most=15, slow=0.0, disturbed=0.1)

UNKNOWN = 0.0
"""The gain where other programs kept it from being measured: dense then."""

_MOST_READ = 64 << 20
"""On the CPU: more than a processor's last cache shares among its cores."""

COLD = "cold"
"""The way of what has no dense weight to go to: its gains are by caches as the model leaves them."""

GainsOfWays = Mapping[str, Mapping[int, float]]
"""Of a candidate of a Linear over dense, by numbers of rows: what makes its `dense_rows`, and, of what a graph makes of
it, its `packed_dense_rows`."""

Gains = Mapping[str, GainsOfWays]
"""Of each of them."""

Layers = Mapping[str, Callable[[Tensor], Tensor]]


def gains_of(
    dense: nn.Module, others: Layers, given: Given, parameters: int, also: Collection[int] = ()
) -> dict[str, dict[int, float]]:
    """For each of `others`, ways to compute the same as `dense`, its speedup over that one by numbers of rows.

    Caches are as cold as they are in a model of so many bytes of `parameters`. also: numbers of rows that the layer is
    called with, which come first: where time is limited, the rest is not measured.
    """
    gains: dict[str, dict[int, float]] = {name: {} for name in others}
    between = emptied(parameters, given.device)

    def measure(rows: int, names: Collection[str]) -> None:
        for name, gain in _gains_at(rows, dense, {name: others[name] for name in names}, given, between).items():
            gains[name][rows] = gain

    for rows in dict.fromkeys((*sorted(also), ROWS[-1], *ROWS)):
        left = [name for name in others if rows not in gains[name] and not _is_certain(gains[name], rows)]
        if left and not (any(gains.values()) and is_time_up()):
            measure(rows, left)
    for name in others:
        while (between_two := _undecided(gains[name])) is not None and not is_time_up():
            measure(between_two, [name])
    return gains


def gains_at(
    dense: nn.Module, other: Callable[[Tensor], Tensor], given: Given, parameters: int, rows: Collection[int]
) -> dict[int, float]:
    """The same of one other way, for these numbers of rows alone."""
    between = emptied(parameters, given.device)
    return {one: _gains_at(one, dense, {"": other}, given, between)[""] for one in sorted(rows)}


def _gains_at(
    rows: int,
    dense: nn.Module,
    others: Layers,
    given: Given,
    between: Callable[[], contextlib.AbstractContextManager[None]],
) -> dict[str, float]:
    input = Given((rows, given.shape[-1]), given.dtype, given.device, False, False).make()
    calls = {name: functools.partial(other, input) for name, other in others.items()}
    calls[DENSE] = functools.partial(dense, input)
    times = times_of(calls, _EFFORT, dict.fromkeys(calls, between))
    gains = {name: times.speedup(name, DENSE) if times.is_certain(name, DENSE) else UNKNOWN for name in others}
    close = [name for name in others if SAME <= gains[name] < SAME * _CLOSE]
    if close and not is_time_up():
        calls = {name: calls[name] for name in (*close, DENSE)}
        times = times_of(calls, _LONGER, dict.fromkeys(calls, between))
        for name in close:
            gains[name] = min(gains[name], times.speedup(name, DENSE))
    return gains


def _is_certain(gains: Mapping[int, float], rows: int) -> bool:
    """Whether so many rows gain, as fewer and more do: dense work grows with the rows, reading the weight does not."""
    fewer = sorted(number for number in gains if number < rows)[-2:]
    return len(fewer) == 2 and max(gains) > rows and min(map(gains.__getitem__, (*fewer, max(gains)))) >= _ENOUGH


def _undecided(gains: Mapping[int, float]) -> int | None:
    """Where to measure once more: between two that differ, and are far from each other."""
    for few, many in itertools.pairwise(sorted(gains)):
        if many > 2 * few and (gains[few] < SAME) != (gains[many] < SAME):
            return round(math.sqrt(few * many))
    return None


def gain_at(gains: Mapping[int, float], rows: int) -> float:
    """What is known of so many rows: the gain there, or the lesser one of the nearest that were measured."""
    fewer, more = ([n for n in gains if n <= rows], [n for n in gains if n >= rows])
    return min(gains[n] for n in (*sorted(fewer)[-1:], *sorted(more)[:1]))


def table_of(gains: Mapping[int, float]) -> tuple[int, ...]:
    """For which numbers of rows a layer is faster dense, as `SparseLinear.dense_rows`, by its gains at some of them.

    Between two of those it is dense where it is so at one of them, below the first it is dense, beyond the last as
    there.
    """
    table, is_dense, last = [1], True, 0
    for rows, gain in sorted(gains.items()):
        if is_dense != (gain < SAME):
            table.append(rows if is_dense else last + 1)
            is_dense = not is_dense
        last = rows
    return tuple(table) if table[1:2] != [1] else tuple(table[2:])


def _most_read(device: torch.device) -> int:
    """Bytes that are read between two calls, at most."""
    if device.type != "cuda":
        return _MOST_READ
    return 2 * int(torch.cuda.get_device_properties(device).L2_cache_size)


def emptied(parameters: int, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context that is entered with caches as a model leaves them that has read so many bytes of `parameters`."""
    buffer = torch.zeros(min(parameters, _most_read(device)) // 4, device=device)

    @contextlib.contextmanager
    def read() -> Iterator[None]:
        buffer.sum()
        yield

    return read


def with_tables(gains: Gains) -> Gains:
    """Without those that have no dense weight to go to."""
    return {name: ways for name, ways in gains.items() if COLD not in ways}


def by_cold_caches(times: Times, example: Sequence[Given], gains: Gains) -> Times:
    """Where it was measured with caches as the model leaves them, that counts for what has no dense weight: of a layer
    that is called again and again the dense one is in a cache, and the other one gains less."""
    rounds = dict(times.rounds)
    for name, found in ((name, ways[COLD]) for name, ways in gains.items() if COLD in ways):
        called_with = [math.prod(one.shape[:-1]) for one in example]
        each = [found.get(rows, UNKNOWN) for rows in called_with if rows]
        if each and UNKNOWN not in each and times.is_clear([name, DENSE]):
            gain = statistics.harmonic_mean(each)
            rounds[name] = [seconds / gain for seconds in times.rounds[DENSE]]
    return replace(times, rounds=rounds)
