# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The report of tickets taken apart: supermasks by criterion, tickets by criterion and treatment, learned masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..bench.plot import STYLES
from ..bench.report import NothingToDraw, Table
from .densities import networks_of, over_shares, text_of, verdict
from .intervals import difference, interval
from .lottery_report import diverged
from .records import Record
from .runs import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = "Test accuracy in percent: mean over the seeds, and half the width of Student's 95% interval of the mean."

DRAWN = ("large_final", "large_final_same_sign", "large_final_diff_sign", "magnitude_increase_same_sign", "random")
"""The criteria of supermasks that the plot shows; all are in the table."""

Values = dict[str, dict[float, dict[int, float]]]
"""By label and share of the weights: the accuracy of each seed."""


def _collect(records: Iterable[Record], network: str, key: str, label: Callable[[Mapping[str, Any]], str]) -> Values:
    found: Values = {}
    for record in records:
        if record.run.network == network:
            for one in record.results[key]:
                if name := label(one):
                    shares = found.setdefault(name, {})
                    shares.setdefault(round(one["left"], 4), {})[record.run.seed] = one["accuracy"]
    return found


def supermasks(records: Sequence[Record], network: str) -> Values:
    """One-shot supermasks, by criterion and what is under the mask."""
    return _collect(
        records,
        network,
        "supermasks",
        lambda one: f"{one['criterion']}, {one['weights']}" if "criterion" in one else "",
    )


def tickets(records: Sequence[Record], network: str) -> Values:
    """Networks that were pruned once and trained again, by criterion and treatments."""
    return _collect(
        records, network, "trainings", lambda one: f"{one['criterion']}, kept {one['kept']}, pruned {one['pruned']}"
    )


def learned(records: Sequence[Record], network: str) -> dict[str, list[tuple[int, float | None, float]]]:
    """Learned supermasks, by what is under them: seed, share of the weights (None where it diverged) and accuracy."""
    found: dict[str, list[tuple[int, float | None, float]]] = {}
    for record in records:
        if record.run.network == network:
            for one in record.results["supermasks"]:
                if one["kind"] == "learned":
                    name = f"{one['weights']}{', rescaled' if one['rescale'] else ''}"
                    found.setdefault(name, []).append((record.run.seed, one["left"], one["accuracy"]))
    return found


def tables(records: Sequence[Record]) -> list[Table]:
    """For each network: supermasks, learned ones, tickets."""
    result = []
    for network in networks_of(records):
        for title, found in (
            ("masks over the untrained network", supermasks(records, network)),
            ("pruned once and trained again", tickets(records, network)),
        ):
            shares = sorted({share for values in found.values() for share in values})
            rows = [(network, name, *(_text(values.get(share)) for share in shares)) for name, values in found.items()]
            header = ("network", "mask", *(f"{percent(share)} left" for share in shares))
            if rows:
                result.append(Table(f"{network}: {title}", header, tuple(rows), LEGEND))
        rows = [
            (network, name, _shares(some),
             text_of(interval([accuracy for _, _, accuracy in some])))
            for name, some in learned(records, network).items()
        ]  # fmt: skip
        if rows:
            header = ("network", "learned over", "weights left, percent", "accuracy")
            result.append(Table(f"{network}: learned masks over the untrained network", header, tuple(rows), LEGEND))
    return result


def _shares(some: Sequence[tuple[int, float | None, float]]) -> str:
    values = [100 * left for _, left, _ in some if left is not None]
    return text_of(interval(values)) if values else "-"


def _text(seeds: Mapping[int, float] | None) -> str:
    return "-" if seeds is None else text_of(interval(list(seeds.values())))


def _mean(seeds: Mapping[int, float]) -> float:
    return interval(list(seeds.values())).mean


def _best(values: Mapping[float, Mapping[int, float]], seeds: set[int]) -> tuple[float, Mapping[int, float]] | None:
    """Of the shares with all seeds: where the mean over them is highest, and the accuracies there."""
    whole = [item for item in values.items() if item[1].keys() >= seeds]
    return max(whole, key=lambda item: _mean(item[1])) if whole else None


def words(records: Sequence[Record]) -> list[str]:
    """Whether same-sign masks are above others, and learned ones above these; the ranking of what is trained."""
    lines = []
    for network in networks_of(records):
        masks = supermasks(records, network)
        seeds = {seed for values in masks.values() for found in values.values() for seed in found}
        same_sign: Mapping[int, float] = {}
        for under in ("rewind", "signed_constant"):
            names = [f"large_final{sign}, {under}" for sign in ("_same_sign", "")]
            same, plain = (_best(masks.get(name, {}), seeds) for name in names)
            if same and (not same_sign or _mean(same[1]) > _mean(same_sign)):
                same_sign = same[1]
            where = f"{network}, untrained, {under}: large_final_same_sign"
            if same and plain:
                at, against = (f"{_mean(values):.2f}% at {percent(share)} left" for share, values in (same, plain))
                gap = verdict(difference(same[1], plain[1]))
                lines.append(f"{where} ({at}) over large_final ({against}), each at its best: {gap}")
            elif any(name in masks for name in names):
                lines.append(f"{where} over large_final: no share at which both have masks of all seeds")
        for name, some in learned(records, network).items():
            accuracies = {seed: accuracy for seed, _, accuracy in some}
            if same_sign:
                gap = verdict(difference(accuracies, same_sign))
                lines.append(f"{network}, untrained: masks learned over {name} over the best same-sign ones: {gap}")
        found = tickets(records, network)
        for share in sorted({share for values in found.values() for share in values}, reverse=True):
            means = {name: _mean(values[share]) for name, values in found.items() if share in values}
            ranked = sorted(means, key=lambda name: -means[name])
            text = "; ".join(f"{name} {means[name]:.2f}" for name in ranked)
            lines.append(f"{network}, trained with {percent(share)} left, best first: {text}")
        lines += diverged(records, network, "trainings", lambda one: f"{one['criterion']}, kept {one['kept']}")
        lines += diverged(records, network, "supermasks", lambda one: f"masks learned over {one['weights']}")
    return lines


def draw(records: Sequence[Record], figure: Figure) -> None:
    """For each network: supermasks over what is left, and tickets of all criteria with kept weights rewound.

    Raises `NothingToDraw` where there is neither.
    """
    drawn = [one for one in networks_of(records) if supermasks(records, one) or tickets(records, one)]
    if not drawn:
        raise NothingToDraw("nothing to draw: expected masks or trainings, got none")
    figure.set_size_inches(11.2, 5.2 * len(drawn))
    grid = figure.subplots(len(drawn), 2, squeeze=False)
    for line, network in zip(grid, drawn, strict=True):
        masks = supermasks(records, network)
        chosen = {name: masks[key] for name in DRAWN if (key := f"{name}, rewind") in masks}
        _panel(line[0], chosen, f"{network}: masks over initial weights, untrained")
        ending = ", kept rewind, pruned zero"
        found = tickets(records, network)
        rewound = {name.removesuffix(ending): values for name, values in found.items() if name.endswith(ending)}
        _panel(line[1], rewound, f"{network}: rewound and trained again")


def _panel(axes: Any, found: Values, title: str) -> None:
    for (name, values), place in zip(found.items(), range(len(found)), strict=True):
        color, marker = STYLES[place % len(STYLES)]
        shares = sorted(values)
        means = [interval(list(values[share].values())) for share in shares]
        axes.errorbar(
            [100 * share for share in shares],
            [one.mean for one in means],
            yerr=[one.half or 0.0 for one in means],
            color=color, marker=marker, markersize=4, linewidth=1.2, capsize=2, label=name,
        )  # fmt: skip
    over_shares(axes, sorted({share for values in found.values() for share in values}))
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("test accuracy, percent", fontsize=9)
    if found:
        axes.legend(fontsize=7)
