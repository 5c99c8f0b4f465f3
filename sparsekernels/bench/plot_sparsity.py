# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A panel of the plot: speedup over the dense baseline by sparsity, and where the two cross."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .record import Record
from .report import Layout, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Curve = list[tuple[float, float]]
"""Points (sparsity, speedup), by sparsity."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Of the masks; of Okabe & Ito's palette, as in `plot.py`."""


@dataclass(frozen=True)
class SparsityPanel:
    """How much faster than the baseline the subject is, over the sparsity.

    curves  by mask: a curve for each case; a case that has one pattern of its own is a single point
    rivals_speedup    by rival: its median speedup over the same baseline, a horizontal line
    """

    title: str
    subject: str
    baseline: str
    curves: dict[str, list[Curve]]
    rivals_speedup: dict[str, float]
    rivals: Sequence[str] = ()
    height: float = 4.2

    def draw(self, axes: Axes, styles: object) -> dict[str, Line2D]:
        """Fill `axes`; their legend is in them."""
        from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

        for (name, curves), color in zip(self.curves.items(), _cycle(len(self.curves)), strict=True):
            for curve in curves:
                size, alpha = (8, 0.8) if len(curve) == 1 else (3, 0.35)
                axes.plot(*_columns(curve), color=color, linewidth=0.7, alpha=alpha, marker=".", markersize=size)
            middle = median_curve(curves)
            if not middle:
                axes.plot([], [], color=color, marker=".", linestyle="", label=f"{self.subject}, {name}")
                continue
            label = f"{self.subject}, {name}: median"
            crossing = crossover(middle)
            if crossing is not None:
                label += f", level at {crossing:.0%}"
                axes.plot([1 / (1 - crossing)], [1.0], marker="o", color=color, fillstyle="none", markersize=9)
            axes.plot(*_columns(middle), color=color, linewidth=2.2, marker="o", markersize=4, label=label)
        sparsities = sorted({sparsity for curves in self.curves.values() for curve in curves for sparsity, _ in curve})
        ends = [1 / (1 - sparsity) for sparsity in (sparsities[0], sparsities[-1])]
        axes.plot(ends, ends, color="0.5", linestyle=":", linewidth=1, label="ideal: 1 / density")
        for (name, speedup), style in zip(self.rivals_speedup.items(), ("--", "-.", ":") * 9, strict=False):
            axes.axhline(speedup, color="black", linestyle=style, linewidth=1.2, label=f"{name}: median")
        axes.axhline(1, color="black", linewidth=1)
        axes.set_xlim(ends[0] / 1.1, ends[1] * 1.1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        shared = sorted({sparsity for curves in self.curves.values() for sparsity, _ in median_curve(curves)})
        axes.xaxis.set_major_locator(FixedLocator([1 / (1 - sparsity) for sparsity in shared or sparsities]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 1 / value):.3g}%"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_title(self.title, fontsize=10)
        axes.set_xlabel("sparsity (log of 1 / density)", fontsize=9)
        axes.set_ylabel(f"speedup over {self.baseline}", fontsize=9)
        axes.legend(fontsize=8, loc="upper left")
        return {}


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    """Where the points lie: 1 / density, and the speedup."""
    return [1 / (1 - sparsity) for sparsity, _ in curve], [speedup for _, speedup in curve]


def sparsity_panel(title: str, records: Sequence[Record], layout: Layout) -> SparsityPanel | None:
    """The panel of `records`, which are of one suite, device and pass; None where the subject has no speedup.

    The first of the layout's rivals is the baseline.
    """
    baseline, *others = layout.rivals
    curves: dict[str, dict[object, Curve]] = {}
    speedups: dict[str, dict[object, float]] = {}
    for (_, dtype), row in rows(records).items():
        for rival in others:
            if rival in row and (speedup := row[rival].speedup) is not None:
                speedups.setdefault(rival, {})[row[rival].key] = speedup
        one = row.get(layout.subject)
        if one is None or one.speedup is None or one.sparsity is None or one.sparsity >= 1:
            continue
        of_mask = curves.setdefault(mask_of(one.pattern), {})
        of_mask.setdefault((one.case, one.mode, dtype, one.threads), []).append((one.sparsity, one.speedup))
    if not curves:
        return None
    return SparsityPanel(
        title,
        layout.subject,
        baseline,
        {name: [sorted(curve) for curve in found.values()] for name, found in curves.items()},
        {name: statistics.median(found.values()) for name, found in speedups.items()},
    )


def mask_of(pattern: str) -> str:
    """The kind of a pattern: of "random-90", "random"; what ends in no percentage is a kind of its own."""
    kind, _, percent = pattern.rpartition("-")
    return kind if kind and percent.replace(".", "", 1).isdigit() else pattern


def median_curve(curves: Sequence[Curve]) -> Curve:
    """The median speedup at each sparsity that more than half of `curves` have; none where that is one or nothing."""
    found: dict[float, list[float]] = {}
    for curve in curves:
        for sparsity, speedup in curve:
            found.setdefault(sparsity, []).append(speedup)
    shared = {sparsity: speedups for sparsity, speedups in found.items() if 2 * len(speedups) > len(curves)}
    result = sorted((sparsity, statistics.median(speedups)) for sparsity, speedups in shared.items())
    return result if len(result) > 1 else []


def crossover(curve: Curve) -> float | None:
    """The sparsity from which on `curve` stays above 1, straight lines between its points in the plot's own axes.

    None where it never gets there, and where it is above 1 from its first point on.
    """
    result = None
    for (low, slow), (high, fast) in itertools.pairwise(curve):
        if slow < 1 <= fast:
            share = -math.log(slow) / math.log(fast / slow)
            result = 1 - (1 - low) ** (1 - share) * (1 - high) ** share
        elif fast < 1:
            result = None
    return result
