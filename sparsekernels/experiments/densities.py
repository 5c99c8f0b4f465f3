# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The report of accuracy over density: a table, the order of the methods in words, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..bench.plot import STYLES
from ..bench.report import NothingToDraw, Table
from .intervals import Interval, difference, interval
from .records import Record
from .runs import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATED = (
    ("sparse momentum", "SET", "Dettmers & Zettlemoyer 2019"),
    ("sparse momentum", "random growth", "Dettmers & Zettlemoyer 2019"),
    ("sparse momentum", "static", "Dettmers & Zettlemoyer 2019"),
    ("sparse momentum, 10th steps", "SET", "Dettmers & Zettlemoyer 2019, with all steps"),
    ("RigL", "SET", "Evci et al. 2020"),
    ("SET", "static", "Evci et al. 2020"),
)
"""Which method is above which, and who says so."""

LEGEND = (
    "Percent of the test images that are classified right at the end of the run: mean over the seeds, and half the"
    " width of Student's 95% interval of the mean."
)

Cells = Mapping[tuple[str, float | None], Mapping[int, float]]
"""By method and density: the accuracy of each seed."""


def cells(records: Sequence[Record], network: str) -> dict[tuple[str, float | None], dict[int, float]]:
    """The accuracies of one network."""
    found: dict[tuple[str, float | None], dict[int, float]] = {}
    for record in records:
        run = record.run
        if run.network == network:
            found.setdefault((run.method, run.density), {})[run.seed] = record.accuracy
    return found


def networks_of(records: Sequence[Record]) -> list[str]:
    """The networks, in the order of the records."""
    return list(dict.fromkeys(record.run.network for record in records))


def methods_of(records: Sequence[Record]) -> list[str]:
    """The methods, in the order of the records."""
    return list(dict.fromkeys(record.run.method for record in records))


def _densities(found: Cells) -> list[float]:
    return sorted({density for _, density in found if density is not None})


def text_of(one: Interval) -> str:
    """ "89.12 ± 0.21 (5)": the last is how many seeds, where there is more than one."""
    return f"{one.mean:.2f}" if one.half is None else f"{one.mean:.2f} ± {one.half:.2f} ({one.count})"


def tables(records: Sequence[Record]) -> list[Table]:
    """A row for each network and method, a column for each density; what has none stands in the last column."""
    densities = sorted({one.run.density for one in records if one.run.density is not None})
    rows = []
    for network in networks_of(records):
        found = cells(records, network)
        for method in methods_of(records):
            if any(name == method for name, _ in found):
                columns = [found.get((method, density)) for density in (*densities, None)]
                texts = ["-" if seeds is None else text_of(interval(list(seeds.values()))) for seeds in columns]
                rows.append((network, method, *texts))
    header = ("network", "method", *(f"{percent(density)} of the weights" for density in densities), "all weights")
    return [Table("Accuracy over density", header, tuple(rows), LEGEND)]


def words(records: Sequence[Record]) -> list[str]:
    """The order that was found, beside the one that is stated, and the distance to dense; a line for each."""
    lines = []
    for network in networks_of(records):
        found = cells(records, network)
        for density in _densities(found):
            lines += _order(network, density, found)
        lines += _to_dense(network, found)
    return lines


def _order(network: str, density: float, found: Cells) -> list[str]:
    seeds = {method: values for (method, own), values in found.items() if own == density}
    means = {method: interval(list(values.values())).mean for method, values in seeds.items()}
    where = f"{network}, {percent(density)} of the weights"
    lines = []
    if len(means) > 1:
        ranked = sorted(means, key=lambda method: -means[method])
        lines.append(f"{where}: best first, {', '.join(f'{method} {means[method]:.2f}' for method in ranked)}")
    for better, worse, source in STATED:
        if better in seeds and worse in seeds:
            gap = difference(seeds[better], seeds[worse])
            lines.append(f"{where}: {better} over {worse} ({source}): {verdict(gap)}")
    return lines


def verdict(gap: Interval | None) -> str:
    """Whether a stated order was found, of the difference over the seeds."""
    if gap is None:
        return "no seed has both"
    if gap.half is None:
        return f"{gap.mean:+.2f} points with one seed, which says nothing of the order"
    text = f"{gap.mean:+.2f} points, 95% interval {gap.low:+.2f} to {gap.high:+.2f}, {gap.count} seeds"
    if gap.low > 0:
        return f"as stated: {text}"
    if gap.high < 0:
        return f"the other way round: {text}"
    return f"no difference was found: {text}"


def _to_dense(network: str, found: Cells) -> list[str]:
    """How far below dense each method is."""
    dense = found.get(("dense", None))
    if dense is None:
        return []
    lines = []
    for (method, density), seeds in found.items():
        gap = None if density is None else difference(seeds, dense)
        if gap is not None:
            width = "" if gap.half is None else f" ± {gap.half:.2f}"
            lines.append(f"{network}, {method} with {percent(density or 0)}: {gap.mean:+.2f}{width} points from dense")
    return lines


def draw(records: Sequence[Record], figure: Figure) -> None:
    """A panel for each network: accuracy over the density, a line for each method, dense as a level with its band.

    Raises `NothingToDraw` where no run has a density.
    """
    drawn = [network for network in networks_of(records) if _densities(cells(records, network))]
    if not drawn:
        raise NothingToDraw("nothing to draw: expected runs with a density, got none")
    methods = methods_of(records)
    figure.set_size_inches(max(7.0, 5.6 * len(drawn)), 4.8)
    grid = figure.subplots(1, len(drawn), squeeze=False)
    for axes, network in zip(grid[0], drawn, strict=True):
        _panel(axes, network, cells(records, network), methods)
    handles = dict(zip(*reversed(_legend(grid[0])), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)


def _legend(panels: Sequence[Axes]) -> tuple[list[object], list[str]]:
    """Handles and labels of all panels."""
    pairs = [axes.get_legend_handles_labels() for axes in panels]
    return [one for handles, _ in pairs for one in handles], [one for _, labels in pairs for one in labels]


def _panel(axes: Axes, network: str, found: Cells, methods: Sequence[str]) -> None:
    densities = _densities(found)
    for method, (color, marker) in zip(methods, STYLES, strict=False):
        points = [
            (density, interval(list(found[method, density].values())))
            for density in densities
            if (method, density) in found
        ]
        if points:
            axes.errorbar(
                [100 * density for density, _ in points],
                [one.mean for _, one in points],
                yerr=[one.half or 0.0 for _, one in points],
                color=color, marker=marker, markersize=5, linewidth=1.3, capsize=3, label=method,
            )  # fmt: skip
        elif (method, None) in found:
            level = interval(list(found[method, None].values()))
            axes.axhline(level.mean, color=color, linestyle="--", linewidth=1.3, label=method)
            axes.axhspan(level.low, level.high, color=color, alpha=0.12, linewidth=0)
    over_shares(axes, densities)
    axes.set_title(network, fontsize=10)
    axes.set_ylabel("test accuracy, percent", fontsize=9)


def over_shares(axes: Axes, shares: Sequence[float]) -> None:
    """A logarithmic axis of the weights that are left, with a label at each of `shares`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([100 * share for share in shares]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}%"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("weights that are left", fontsize=9)
