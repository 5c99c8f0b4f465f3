# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The report of lottery tickets: accuracy and speed of learning over what is left, beside the controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..bench.plot import STYLES
from ..bench.report import NothingToDraw, Table
from .densities import networks_of, over_shares, text_of, verdict
from .intervals import difference, interval
from .records import Record
from .runs import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("ticket", "one-shot", "reinit", "random mask")

MEASURES = {"accuracy": "accuracy at the end, percent", "best_step": "step of the least validation loss"}
"""What is reported of each training."""

LEGEND = (
    "Of the trainings with so many weights left: the ticket of the rounds, the whole network pruned at once, the"
    " ticket's mask with new weights, and a random mask. Mean over the seeds, and half the width of the 95% interval."
    " The step of the least validation loss is when an early stop would end: earlier is faster. Trainings that diverged"
    " count as chance, and have no such step."
)

Found = Mapping[tuple[str, int], Mapping[int, Mapping[str, Any]]]
"""By kind and round: the training of each seed; several draws are one, by their mean."""


def trainings(records: Sequence[Record], network: str) -> Found:
    """Those of one network."""
    draws: dict[tuple[str, int], dict[int, list[Mapping[str, Any]]]] = {}
    for record in records:
        if record.run.network == network:
            for one in record.results["trainings"]:
                draws.setdefault((one["kind"], one["round"]), {}).setdefault(record.run.seed, []).append(one)
    return {
        key: {seed: {**some[0], **{name: _mean(some, name) for name in MEASURES}} for seed, some in seeds.items()}
        for key, seeds in draws.items()
    }


def _mean(some: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """None: all diverged, and have no best step."""
    values = [one[name] for one in some if one[name] is not None]
    return sum(values) / len(values) if values else None


def _values(seeds: Mapping[int, Mapping[str, Any]], measure: str) -> list[float]:
    return [one[measure] for one in seeds.values() if one[measure] is not None]


def diverged(records: Sequence[Record], network: str, key: str, label: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """In words, by seed: which of the results called `key` count as chance."""
    lines = []
    for record in records:
        some = [label(one) for one in record.results.get(key, ()) if one.get("diverged")]
        if record.run.network == network and some:
            lines.append(f"{network}, seed {record.run.seed}: diverged, and count as chance: {', '.join(some)}")
    return lines


def _left(found: Found, round: int) -> float:
    return next(float(one["left"]) for one in found["ticket", round].values())


def tables(records: Sequence[Record]) -> list[Table]:
    """One for each measure: a row for each network and number of weights, a column for each kind."""
    result = []
    for measure, title in MEASURES.items():
        rows = []
        for network in networks_of(records):
            found = trainings(records, network)
            for round in sorted({number for _, number in found}):
                values = [found.get((kind, round)) for kind in KINDS]
                texts = ["-" if one is None else _text(one, measure) for one in values]
                rows.append((network, f"round {round}", percent(_left(found, round)), *texts))
        header = ("network", "round", "weights left", *KINDS)
        result.append(Table(f"Lottery tickets: {title}", header, tuple(rows), LEGEND))
    return result


def _text(seeds: Mapping[int, Mapping[str, Any]], measure: str) -> str:
    values = _values(seeds, measure)
    return text_of(interval(values)) if values else "-"


def words(records: Sequence[Record]) -> list[str]:
    """At each round with controls: whether the ticket is better, and in how many seeds."""
    lines = []
    for network in networks_of(records):
        found = trainings(records, network)
        for round in sorted({number for kind, number in found if kind != "ticket"}):
            mine = {seed: one["accuracy"] for seed, one in found["ticket", round].items()}
            for kind in KINDS[1:]:
                if (kind, round) in found:
                    theirs = {seed: one["accuracy"] for seed, one in found[kind, round].items()}
                    common = mine.keys() & theirs.keys()
                    better = sum(mine[seed] > theirs[seed] for seed in common)
                    lines.append(
                        f"{network}, {percent(_left(found, round))} left: ticket over {kind}: better in {better} of"
                        f" {len(common)} seeds; {verdict(difference(mine, theirs))}"
                    )
        lines += diverged(records, network, "trainings", lambda one: f"{one['kind']} at {percent(one['left'])}")
    return lines


def draw(records: Sequence[Record], figure: Figure) -> None:
    """For each network a panel for each measure, over the weights that are left.

    Raises `NothingToDraw` where no round pruned anything.
    """
    every = [(network, trainings(records, network)) for network in networks_of(records)]
    drawn = [(network, found) for network, found in every if len({number for _, number in found}) > 1]
    if not drawn:
        raise NothingToDraw("nothing to draw: expected more than one round, got none")
    figure.set_size_inches(11.2, 4.4 * len(drawn))
    grid = figure.subplots(len(drawn), len(MEASURES), squeeze=False)
    handles: dict[str, Any] = {}
    for line, (network, found) in zip(grid, drawn, strict=True):
        for axes, (measure, title) in zip(line, MEASURES.items(), strict=True):
            for kind, (color, marker) in zip(KINDS, STYLES, strict=False):
                rounds = sorted(n for name, n in found if name == kind and _values(found[name, n], measure))
                if rounds:
                    values = [interval(_values(found[kind, number], measure)) for number in rounds]
                    handles[kind] = axes.errorbar(
                        [100 * _left(found, number) for number in rounds],
                        [one.mean for one in values],
                        yerr=[one.half or 0.0 for one in values],
                        color=color, marker=marker, markersize=4, linewidth=1.3, capsize=3, label=kind,
                    )  # fmt: skip
            over_shares(axes, [_left(found, number) for number in sorted({n for _, n in found})][::3])
            axes.invert_xaxis()
            axes.set_title(f"{network}: {title.partition(',')[0]}", fontsize=10)
            axes.set_ylabel(title, fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
