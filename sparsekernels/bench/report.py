# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of records: pure functions from records to rows of text, and from those to the terminal and to markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .record import Record

if TYPE_CHECKING:
    from rich.table import Table as RichTable

SPACE = 2
"""Characters between the columns of a table in the terminal."""

SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


class NothingToDraw(ValueError):
    """No case has what a plot shows."""


Row = Mapping[str, Record]
"""The records of one row of a table by variant; pattern (":random-90") and mode ("/graph") are the row's."""


@dataclass(frozen=True)
class Column:
    """A column of a report: its title, and its text in a row."""

    title: str
    text: Callable[[Row], str]


@dataclass(frozen=True)
class Layout:
    """How the reports lay out the records of a suite.

    columns  of the table, after the case and the dtype
    legend   a sentence or two under the table: what the columns mean
    subject  the variant that the plot is about
    rivals   the variants whose time over the subject's the plot shows
    chart    how it shows them, one of `plot.CHARTS`: "cases", or "sparsity" for a speedup that depends on it
    also     what follows a table of records: of its title and these, other tables
    """

    columns: tuple[Column, ...]
    legend: str
    subject: str
    rivals: tuple[str, ...]
    chart: str = "cases"
    also: Callable[[str, Sequence[Record]], Sequence[Table]] = lambda title, records: ()


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered. The first two columns are text, the others figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: str


def time_column(variant: str) -> Column:
    """The median time of `variant`; where it has none, the reason in a word."""
    return Column(variant, lambda row: _time(row.get(variant)))


def ratio_column(variant: str, other: str) -> Column:
    """The median time of `variant` over that of `other`."""

    def text(row: Row) -> str:
        ratio = time_ratio(row.get(variant), row.get(other))
        return "" if ratio is None else f"{ratio:.2f}"

    return Column(f"{variant} / {other}", text)


def speedup_column(variant: str, title: str) -> Column:
    """How many times faster than the suite's baseline `variant` is."""
    return number_column(variant, title, lambda record: record.speedup)


def rate_column(variant: str, unit: str, amount: Callable[[Record], float | None]) -> Column:
    """What `variant` gets done in a second. `unit` is "GB/s": `amount` is then the GB of one call, or None."""

    def text(row: Row) -> str:
        record = row.get(variant)
        done = None if record is None else amount(record)
        if done is None or record is None or record.p50_ms is None:
            return ""
        return three_digits(done / (record.p50_ms * 1e-3))

    return Column(f"{variant} {unit}", text)


def share_column(variant: str, title: str, share: Callable[[Record], float | None]) -> Column:
    """A share of something that `variant` reaches, in percent."""
    return _value_column(variant, title, share, "{:.0%}")


def number_column(variant: str, title: str, number: Callable[[Record], float | None]) -> Column:
    """A factor that belongs to `variant`."""
    return _value_column(variant, title, number, "{:.2f}x")


def _value_column(variant: str, title: str, value_of: Callable[[Record], float | None], form: str) -> Column:
    def text(row: Row) -> str:
        record = row.get(variant)
        value = None if record is None else value_of(record)
        return "" if value is None else form.format(value)

    return Column(title, text)


def detail_column(variant: str, key: str, title: str) -> Column:
    """What the record of `variant` has under `key` in its details."""

    def text(row: Row) -> str:
        value = row[variant].details.get(key) if variant in row else None
        return "" if value is None else str(value)

    return Column(title, text)


def time_ratio(record: Record | None, other: Record | None) -> float | None:
    """The median time of `record` over that of `other`; None where either has none."""
    if record is None or other is None or record.p50_ms is None or other.p50_ms is None:
        return None
    return record.p50_ms / other.p50_ms


def three_digits(value: float) -> str:
    """`value` to three significant digits: 4.21, 42.1, 421, 4210."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def milliseconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("us", 1e-3), ("ms", 1.0)):
        if value < 999.5 * size:
            return f"{three_digits(value / size)} {unit}"
    return f"{three_digits(value * 1e-3)} s"


def _time(record: Record | None) -> str:
    if record is None:
        return ""
    return record.status if record.p50_ms is None else milliseconds(record.p50_ms)


def label(case: str, pattern: str, mode: str) -> str:
    """The name of a case, with the pattern and the mode of what its row shows."""
    return f"{case} ({', '.join(filter(None, (pattern, mode)))})" if pattern or mode else case


def rows(records: Sequence[Record]) -> dict[tuple[str, str], Row]:
    """`records` by row, (label, dtype), and in each by variant. What has no pattern is in every row of its case."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.case, record.mode, record.dtype), []).append(record)
    result: dict[tuple[str, str], Row] = {}
    for (case, mode, dtype), group in groups.items():
        for pattern in list(dict.fromkeys(one.pattern for one in group if one.pattern)) or [""]:
            row = {one.kind: one for one in group if one.pattern in ("", pattern)}
            result[label(case, pattern, mode), dtype] = row
    return result


def tables(records: Sequence[Record], layouts: Mapping[str, Layout]) -> list[Table]:
    """One table for each suite, pass, device and number of threads, in the order of `records`, and the suite's others.

    Columns in which no row has any text are left out.
    """
    groups: dict[tuple[str, str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.suite, record.pass_, record.device, record.threads), []).append(record)
    result = []
    for (suite, pass_, device, threads), group in groups.items():
        layout = layouts[suite]
        texts = {key: [column.text(row) for column in layout.columns] for key, row in rows(group).items()}
        used = [index for index in range(len(layout.columns)) if any(text[index] for text in texts.values())]
        where = device if device != "cpu" else f"{device}, {threads} thread{'s' if threads != 1 else ''}"
        title = f"{suite}, {pass_} ({where})"
        result.append(
            Table(
                title=title,
                header=("case", "dtype", *(layout.columns[index].title for index in used)),
                rows=tuple(
                    (name, SHORT_DTYPES.get(dtype, dtype), *(text[index] for index in used))
                    for (name, dtype), text in texts.items()
                ),
                legend=layout.legend,
            )
        )
        result += layout.also(title, group)
    return result


def provenance(records: Sequence[Record]) -> list[str]:
    """What ran `records`: machine, versions, commit and allocator, a line for each combination that occurs."""
    lines = []
    for record in records:
        line = "; ".join((machine_line(record.machine), versions_line(record.versions), f"commit {record.commit}"))
        if record.device == "cpu":
            line += f"; allocator: {allocator_line(record.machine)}"
        if line not in lines:
            lines.append(line)
    return lines


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, kernels {machine['isa'] or 'none'}"
    return f"{machine['gpu']} on {cpu}" if machine.get("gpu") else cpu


def versions_line(versions: Mapping[str, str]) -> str:
    """The versions in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def allocator_line(machine: Mapping[str, Any]) -> str:
    """The allocator's settings in words."""
    settings = machine.get("allocator") or {}
    return (
        " ".join(f"{name}={value}" for name, value in settings.items() if value is not None) or "as the system has it"
    )


def markdown(
    records: Sequence[Record], layouts: Mapping[str, Layout], plot: str | None = None, notes: Sequence[str] = ()
) -> str:
    """The report as markdown. plot: the address of the picture to show. notes: what to know of the run."""
    parts = ["# Benchmark", "", *(f"- {line}" for line in (*provenance(records), *notes))]
    if plot is not None:
        parts += ["", f"![speedup by case]({plot})"]
    for table in tables(records, layouts):
        parts += ["", f"## {table.title}", "", markdown_table(table.header, table.rows), "", table.legend]
    return "\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], text_columns: int = 2) -> str:
    """A markdown table: the first `text_columns` to the left, figures to the right."""
    rule = ["---" if index < text_columns else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *body))


def rich_tables(
    title: str, header: Sequence[str], body: Sequence[Sequence[str]], width: int, text_columns: int = 2
) -> list[RichTable]:
    """The same for a terminal of `width` characters; where that is too narrow, several that all begin with the text."""
    narrow = [
        max(map(len, (*name.split(), *(line[index] for line in body)))) + SPACE for index, name in enumerate(header)
    ]
    texts = range(text_columns)
    pieces: list[list[int]] = [[]]
    for index in range(text_columns, len(header)):
        if pieces[-1] and sum(narrow[one] for one in (*texts, *pieces[-1], index)) - SPACE > width:
            pieces.append([])
        pieces[-1].append(index)
    tables = []
    for number, piece in enumerate(pieces):
        columns = (*texts, *piece)
        wide = sum(max(narrow[one], len(header[one]) + SPACE) for one in columns) - SPACE
        table = rich_table(
            f"{title}, continued" if number else title,
            [header[one] for one in columns],
            [[line[one] for one in columns] for line in body],
            text_columns,
        )
        if wide > width:
            for place, one in enumerate(columns[text_columns:], text_columns):
                table.columns[place].width = narrow[one] - SPACE
        tables.append(table)
    return tables


def rich_table(title: str, header: Sequence[str], body: Sequence[Sequence[str]], text_columns: int = 2) -> RichTable:
    """The same for a terminal that is wide enough."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        title=Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for index, name in enumerate(header):
        left = index < text_columns
        table.add_column(Text(name), justify="left" if left else "right", no_wrap=left, overflow="fold")
    for line in body:
        table.add_row(*map(Text, line))
    return table
