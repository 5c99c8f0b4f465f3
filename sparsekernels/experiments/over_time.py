# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The report of accuracy over the wall clock: a table, what was faster in words, a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ..bench.plot import STYLES
from ..bench.report import NothingToDraw, Table
from .densities import networks_of, text_of
from .intervals import interval
from .records import Record
from .runs import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "dense"

MARGINS = (0.0, 0.5, 1.0)
"""Percentage points below what the dense network has at its end, which are the levels that are to be reached."""

LEGEND = (
    "Seconds are wall clock of training alone, without evaluations, mean over the seeds. A level is reached at the"
    " first evaluation that has it; levels are the accuracy of dense at its end, and some points less. In parentheses:"
    " times faster than dense. '-': not every seed reached it."
)

Curve = list[tuple[float, float]]
"""(seconds, accuracy), point by point."""


def label(record: Record) -> str:
    """Method and density."""
    density = record.run.density
    return record.run.method if density is None else f"{record.run.method} {percent(density)}"


def curve(record: Record) -> Curve:
    """What a run reached, and when."""
    seconds = accumulate(point["seconds"] for point in record.points)
    return [(passed, point["accuracy"]) for passed, point in zip(seconds, record.points, strict=True)]


def seconds_to(record: Record, level: float) -> float | None:
    """When accuracy was at `level` or above for the first time; None: never."""
    return next((passed for passed, accuracy in curve(record) if accuracy >= level), None)


def groups(records: Sequence[Record], network: str) -> dict[str, list[Record]]:
    """By label: the runs of one network, one for each seed."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.run.network == network:
            found.setdefault(label(record), []).append(record)
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def levels(found: Mapping[str, Sequence[Record]]) -> list[float]:
    """What is to be reached, the highest first; none where there is no dense run."""
    dense = found.get(BASELINE)
    return [] if not dense else [_mean([one.accuracy for one in dense]) - margin for margin in MARGINS]


def time_to(records: Sequence[Record], level: float) -> float | None:
    """Mean over the seeds; None where one did not reach it."""
    times = [seconds_to(record, level) for record in records]
    reached = [one for one in times if one is not None]
    return _mean(reached) if reached and len(reached) == len(times) else None


def per_step(records: Sequence[Record]) -> float:
    """Mean milliseconds of a step, everything that training takes included."""
    return _mean([1e3 * record.seconds / record.points[-1]["step"] for record in records if record.points])


def tables(records: Sequence[Record]) -> list[Table]:
    """A table for each network: a row for each method and density."""
    result = []
    for network in networks_of(records):
        found = {name: runs for name, runs in groups(records, network).items() if all(run.points for run in runs)}
        wanted = levels(found)
        rows = []
        for name, runs in found.items():
            accuracy = text_of(interval([run.accuracy for run in runs]))
            dense = found.get(BASELINE, ())
            step = per_step(runs)
            texts = [f"{step:.1f}" + (f" ({per_step(dense) / step:.2f}x)" if dense else "")]
            for level in wanted:
                seconds, of_dense = time_to(runs, level), time_to(dense, level)
                if seconds is None:
                    texts.append("-")
                else:
                    texts.append(f"{seconds:.0f}" + (f" ({of_dense / seconds:.2f}x)" if of_dense and seconds else ""))
            rows.append((network, name, accuracy, *texts))
        header = ("network", "trained", "accuracy at the end", "ms a step", *(f"s to {one:.2f}%" for one in wanted))
        result.append(Table(f"Time to accuracy: {network}", header, tuple(rows), LEGEND))
    return result


def words(records: Sequence[Record]) -> list[str]:
    """What reached the level of dense first, a line for each network and level."""
    lines = []
    for network in networks_of(records):
        found = {name: runs for name, runs in groups(records, network).items() if all(run.points for run in runs)}
        for level in levels(found):
            times = {name: time_to(runs, level) for name, runs in found.items()}
            reached = sorted((seconds, name) for name, seconds in times.items() if seconds is not None)
            missed = [name for name, seconds in times.items() if seconds is None]
            first = ", ".join(f"{name} after {seconds:.0f} s" for seconds, name in reached) or "nothing"
            never = f"; not in every seed: {', '.join(missed)}" if missed else ""
            lines.append(f"{network}: {level:.2f}% was reached by {first}{never}")
    return lines


def draw(records: Sequence[Record], figure: Figure) -> None:
    """A panel for each network: accuracy over wall-clock seconds, a line for each run, a style for each method.

    Raises `NothingToDraw` where no run has a point.
    """
    drawn = [name for name in networks_of(records) if any(one.points for one in records if one.run.network == name)]
    if not drawn:
        raise NothingToDraw("nothing to draw: expected runs with points, got none")
    names = list(dict.fromkeys(label(record) for record in records))
    styles = dict(zip(names, (STYLES[place % len(STYLES)] for place in range(len(names))), strict=True))
    figure.set_size_inches(max(7.0, 5.6 * len(drawn)), 4.8)
    grid = figure.subplots(1, len(drawn), squeeze=False)
    handles = {}
    for axes, network in zip(grid[0], drawn, strict=True):
        for name, runs in groups(records, network).items():
            color, marker = styles[name]
            for run in runs:
                if run.points:
                    seconds, accuracy = zip(*curve(run), strict=True)
                    (handles[name],) = axes.plot(
                        seconds, accuracy, color=color, marker=marker, markersize=4, linewidth=1.2, label=name
                    )
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_title(network, fontsize=10)
        axes.set_xlabel("seconds of training (wall clock)", fontsize=9)
        axes.set_ylabel("test accuracy, percent", fontsize=9)
        axes.set_xlim(left=0)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
