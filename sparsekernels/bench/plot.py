# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The plot of a report: how much faster the subject is than each rival, case by case or over the sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .plot_sparsity import sparsity_panel
from .record import Record
from .report import SHORT_DTYPES, Layout, NothingToDraw, machine_line, rows, time_ratio, versions_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Okabe & Ito's palette, which stays apart for color-blind eyes, and a shape for each, which stays apart in print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "os^DvPX*"
STYLES = tuple((color, _MARKERS[(place + turn) % 8]) for turn in range(8) for place, color in enumerate(_COLORS))
"""Colors that color-blind readers tell apart, each with a marker of its own; from the ninth on with another one."""

ACROSS = 2
"""Panels in a row: more would be too small to read on a page."""

Points = dict[str, list[tuple[int, float]]]
"""By rival: the line that a case is on, and the rival's time over the subject's."""


Styles = Mapping[str, tuple[str, str]]
"""Color and shape of each rival."""


class Panel(Protocol):
    """One set of axes."""

    @property
    def rivals(self) -> Sequence[str]:
        """What takes a style that is the same in all panels, and a place in the figure's legend."""

    @property
    def height(self) -> float:
        """In inches."""

    def draw(self, axes: Axes, styles: Styles) -> dict[str, Line2D]:
        """Fill `axes`. Returns what the figure's legend shows for each rival."""


@dataclass(frozen=True)
class _Cases:
    """A line for each case, and on it how much faster the subject is than each rival."""

    title: str
    subject: str
    names: Sequence[str]
    points: Points

    @property
    def rivals(self) -> Sequence[str]:
        return list(self.points)

    @property
    def height(self) -> float:
        return 0.9 + 0.26 * len(self.names)

    def draw(self, axes: Axes, styles: Styles) -> dict[str, Line2D]:
        return _draw(axes, self, styles)


def _cases(title: str, records: Sequence[Record], layout: Layout) -> Panel | None:
    names, found = points(records, layout)
    return _Cases(title, layout.subject, names, found) if names else None


CHARTS: Mapping[str, Callable[[str, Sequence[Record], Layout], Panel | None]] = {
    "cases": _cases,
    "sparsity": sparsity_panel,
}
"""What makes a panel of a title and the records of one suite, device and pass; None where there is nothing to draw."""


def _panel(title: str, records: Sequence[Record], layout: Layout) -> Panel | None:
    """As the layout has it; where all have one sparsity, there is nothing to draw over it, and each case has a line."""
    sparsities = {record.sparsity for record in records if record.kind == layout.subject}
    return CHARTS[layout.chart if len(sparsities) > 1 else "cases"](title, records, layout)


def points(records: Sequence[Record], layout: Layout) -> tuple[list[str], Points]:
    """The lines of one panel, from the top, and what stands on them. `records` are of one suite and pass."""
    names: list[str] = []
    result: Points = {rival: [] for rival in layout.rivals}
    for (name, dtype), row in rows(records).items():
        ratios = {rival: time_ratio(row.get(rival), row.get(layout.subject)) for rival in layout.rivals}
        if any(ratio is not None for ratio in ratios.values()):
            for rival, ratio in ratios.items():
                if ratio is not None:
                    result[rival].append((len(names), ratio))
            names.append(f"{name}  {SHORT_DTYPES.get(dtype, dtype)}")
    return names, {rival: found for rival, found in result.items() if found}


def plot(records: Sequence[Record], layouts: Mapping[str, Layout], path: Path) -> None:
    """Draw `records` to `path`; the ending of its name says in which format.

    A panel for each pass, at most `ACROSS` in a row, and new rows for each suite and device. Raises `NothingToDraw`
    where there is nothing to draw: no case has a time of the subject and of a rival.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Panel]] = {}
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.suite, record.device, record.pass_), []).append(record)
    for (suite, device, pass_), group in groups.items():
        panel = _panel(f"{suite}, {pass_} ({device})", group, layouts[suite])
        if panel is not None:
            panels.setdefault((suite, device), []).append(panel)
    if not panels:
        raise NothingToDraw("nothing to draw: expected a case with times of ours and of a rival, got none")

    lines = [row[start : start + ACROSS] for row in panels.values() for start in range(0, len(row), ACROSS)]
    heights = [max(panel.height for panel in line) for line in lines]
    width = max(map(len, lines))
    figure = Figure(figsize=(max(8.0, 6.4 * width), 1.1 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(lines), width, height_ratios=heights)
    everyone = dict.fromkeys(rival for line in lines for panel in line for rival in panel.rivals)
    styles = {rival: STYLES[index % len(STYLES)] for index, rival in enumerate(everyone)}
    handles: dict[str, Line2D] = {}
    for number, line in enumerate(lines):
        for column, panel in enumerate(line):
            last = column == len(line) - 1  # takes what is left of the line
            axes = figure.add_subplot(grid[number, column:] if last else grid[number, column])
            handles |= panel.draw(axes, styles)
    figure.suptitle(f"{machine_line(records[0].machine)}\n{versions_line(records[0].versions)}", fontsize=9)
    if handles:
        figure.legend(handles.values(), [f"than {rival}" for rival in handles], loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, panel: _Cases, styles: Styles) -> dict[str, Line2D]:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    handles = {}
    for rival, found in panel.points.items():
        color, marker = styles[rival]
        ratios, lines = [ratio for _, ratio in found], [line for line, _ in found]
        (handles[rival],) = axes.plot(ratios, lines, linestyle="", color=color, marker=marker, markersize=6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    low, high = _limits([ratio for found in panel.points.values() for _, ratio in found])
    axes.set_xlim(low, high)
    # Below a factor of 2 a logarithmic axis has too few round numbers; evenly spaced ones serve.
    narrow = high / low < 2
    axes.xaxis.set_major_locator(MaxNLocator(8) if narrow else LogLocator(base=10, subs=_ticks(low, high)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.set_yticks(range(len(panel.names)), panel.names)
    axes.set_ylim(len(panel.names) - 0.5, -0.5)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(f"times faster {panel.subject} is (right of 1: faster)", fontsize=9)
    return handles


def _limits(ratios: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis: every ratio and the 1, with some air."""
    low, high = min(0.95, *ratios), max(1.05, *ratios)
    air = (high / low) ** 0.04
    return low / air, high * air


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Which multiples of each power of ten have a label: as many as there is room for."""
    decades = math.log10(high / low)
    return (
        (1, 1.2, 1.5, 2, 3, 5, 7)
        if decades < 0.7
        else (1, 2, 3, 5)
        if decades < 1.5
        else (1, 3)
        if decades < 3
        else (1,)
    )
