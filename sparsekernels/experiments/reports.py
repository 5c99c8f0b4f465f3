# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The reports by name, and the files that an experiment leaves: `report.md` and `plot.png` beside its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.report import Table, machine_line, markdown_table, versions_line
from . import criteria_report, densities, lottery_report, over_time
from .records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """What is made of the records of an experiment.

    tables  of figures
    words   what the figures say, computed from them
    draw    fills a figure; raises `bench.report.NothingToDraw` where there is nothing to draw
    """

    tables: Callable[[Sequence[Record]], list[Table]]
    words: Callable[[Sequence[Record]], list[str]]
    draw: Callable[[Sequence[Record], Figure], None]


REPORTS: Mapping[str, Report] = {
    "densities": Report(densities.tables, densities.words, densities.draw),
    "time": Report(over_time.tables, over_time.words, over_time.draw),
    "lottery": Report(lottery_report.tables, lottery_report.words, lottery_report.draw),
    "criteria": Report(criteria_report.tables, criteria_report.words, criteria_report.draw),
}
"""The reports by name."""


def provenance(records: Sequence[Record]) -> list[str]:
    """What ran the records, a line for each combination that occurs, with the number of runs."""
    lines = Counter(
        f"{machine_line(one.machine)}; {one.run.settings['threads']} threads a run; {versions_line(one.versions)};"
        f" commit {one.commit}"
        for one in records
    )
    found = [f"{count} runs: {line}" for line, count in lines.items()]
    if len({(*sorted(one.versions.items()), one.commit) for one in records}) > 1:
        found.append(
            "Caution: these runs are of different versions or commits. What differs between them may come from that:"
            " another folder does all of them anew"
        )
    return found


def data_lines(records: Sequence[Record]) -> list[str]:
    """The data sets, a line for each."""
    found = dict.fromkeys(
        f"{one.data['name']}: {one.run.settings['images'] or one.data['train_images']} of"
        f" {one.data['train_images']} training images, {one.run.settings['test_images'] or one.data['test_images']} of"
        f" {one.data['test_images']} test images, normalized by mean"
        f" {one.data['mean']:.4f} and standard deviation {one.data['std']:.4f}, CRC-32 {one.data['checksum']}"
        for one in records
    )
    return list(found)


def markdown(
    name: str, about: str, records: Sequence[Record], report: Report, picture: str | None, notes: Sequence[str]
) -> str:
    """The report of an experiment as markdown. picture: the address of the plot."""
    lines = [*provenance(records), *data_lines(records), *notes]
    parts = [f"# {name}", "", f"{about}.", "", *(f"- {line}" for line in lines)]
    if picture is not None:
        parts += ["", f"![{about}]({picture})"]
    for table in report.tables(records):
        parts += ["", f"## {table.title}", "", markdown_table(table.header, table.rows), "", table.legend]
    if said := report.words(records):
        parts += ["", "## In words", "", *(f"- {line}" for line in said)]
    return "\n".join(parts) + "\n"


def plot(records: Sequence[Record], report: Report, path: Path) -> None:
    """Draw to `path`, whole or not at all; the ending of its name says in which format."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    report.draw(records, figure)
    figure.suptitle(f"{machine_line(records[0].machine)}\n{versions_line(records[0].versions)}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        figure.savefig(partial, dpi=150)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
