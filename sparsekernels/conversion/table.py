# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A report as a table as wide as the terminal: layers that are alike share a row, columns go where there is no room."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .report import LayerReport, Report

HEADER = ("layer", "weight", "input", "sparsity", "decision", "speedup", "why")

_WIDEST, _WIDTH, _NARROWEST = 160, 120, 60
"""Characters of a line at most, where there is no terminal, and at least."""

_LEAST_FOR_REASONS = 40
"""Where fewer characters of a line remain for the reasons, they stand beneath their rows."""

_ONCE = 40
"""A longer obstacle is written out at the first of the layers that have it."""

_GO_FIRST = ("input", "sparsity", "weight")
"""The columns for which there may be no room."""

_MANY = 3
"""More layers than these that are alike share a row."""

_GAP = 2


def as_text(report: Report, width: int | None = None) -> str:
    """Lines as wide as the terminal, or of a given width."""
    if width is None:
        width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_WIDTH, 24)).columns))
    rows = [HEADER, *_rows_of(report.layers)]
    columns, widths = _fitting(rows, width)
    beneath = sum(widths) + _GAP * len(widths) > width - _LEAST_FOR_REASONS
    lines = []
    for row in rows:
        texts = _cells(row, columns, widths)
        head = "".join(text.ljust(size + _GAP) for text, size in zip(texts, widths, strict=True))
        lines += [head.rstrip(), _wrapped(row[-1], width, " " * 4)] if beneath else [_wrapped(row[-1], width, head)]
    return "\n".join([*lines, *(_wrapped(text, width, hang=2) for text in _sentences(report))])


def as_rich(report: Report, width: int) -> list[RenderableType]:
    """A table for rich, with as many columns as leave room for reasons, and the sentences beneath; else the text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [HEADER, *_rows_of(report.layers)]
    columns, widths = _fitting(rows, width - _LEAST_FOR_REASONS)
    if widths[0] < max(len(row[0]) for row in rows):
        return [Text(as_text(report, width))]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if HEADER[column] in ("sparsity", "speedup") else "left"
        table.add_column(HEADER[column], justify=justify, no_wrap=True)
    table.add_column(HEADER[-1])
    for row in rows[1:]:
        table.add_row(*map(Text, (*_cells(row, columns, widths), row[-1])))
    return [table, *map(Text, _sentences(report))]


def _sentences(report: Report) -> tuple[str, ...]:
    return (*report.notes, report.summary())


def _rows_of(layers: Sequence[LayerReport]) -> list[tuple[str, ...]]:
    """The texts of each; those of many that are alike stand where the first of them is."""
    alike: dict[object, list[LayerReport]] = {}
    for row in layers:
        alike.setdefault(_key_of(row), []).append(row)
    found = []
    first: dict[str, str] = {}
    for row in layers:
        group = alike[_key_of(row)]
        if len(group) > _MANY and row is not group[0]:
            continue
        reason = row.reason
        if len(group) > _MANY:
            names = {one.name for one in group}
            measured = {one.measured_on for one in group}
            if measured <= {None, *names} or len(measured) > 1:
                reason = replace(row, measured_on=None).reason
        else:
            group = [row]
        texts = _texts(group, reason)
        if reason == str(row.obstacle) and len(reason) > _ONCE and first.setdefault(reason, texts[0]) != texts[0]:
            texts = (*texts[:-1], f"as for {first[reason]}")
        found.append(texts)
    return found


def _key_of(row: LayerReport) -> object:
    """Rows that agree in it say the same, but for names and numbers."""
    reason = replace(row, measured_on=None).reason
    return row.kind, row.weight_shape, row.input_shape, row.verdict, row.speedup is None, reason


def _texts(group: Sequence[LayerReport], reason: str) -> tuple[str, ...]:
    row = group[0]
    return (
        _name_of([one.name for one in group]),
        _shape(row.weight_shape),
        "" if row.input_shape is None else _shape(row.input_shape),
        _range_of([one.sparsity for one in group], lambda share: f"{100 * share:.1f}", "%"),
        row.verdict,
        _range_of([one.speedup for one in group], lambda gain: f"{gain:.2f}", "x"),
        reason,
    )


def _name_of(names: Sequence[str]) -> str:
    """Of one layer, or of many: "blocks.0-11.fc" where one number alone differs, by 1 each."""
    if len(names) == 1:
        return names[0] or "(model)"
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({len(one) for one in parts}) == 1:
        differing = [place for place, texts in enumerate(zip(*parts, strict=True)) if len(set(texts)) > 1]
        if len(differing) == 1 and differing[0] % 2:
            place = differing[0]
            numbers = [int(one[place]) for one in parts]
            if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
                first = parts[0]
                return "".join([*first[:place], f"{numbers[0]}-{numbers[-1]}", *first[place + 1 :]])
    return f"{names[0]} and {len(names) - 1} alike"


def _range_of(values: Sequence[float | None], words: Callable[[float], str], unit: str) -> str:
    found = sorted(value for value in values if value is not None)
    if not found:
        return ""
    least, most = words(found[0]), words(found[-1])
    return f"{least}{unit}" if least == most else f"{least}-{most}{unit}"


def _fitting(rows: Sequence[Sequence[str]], width: int) -> tuple[list[int], list[int]]:
    """Which columns there is room for, but for the reasons, and how wide they are."""
    left = list(HEADER[:-1])
    for name in (*_GO_FIRST, ""):
        columns = [HEADER.index(one) for one in left]
        widths = [max(len(row[column]) for row in rows) for column in columns]
        if name == "" or sum(widths) + _GAP * len(widths) <= width:
            break
        left.remove(name)
    widths[0] = min(widths[0], width - sum(widths[1:]) - _GAP * len(widths))
    return columns, widths


def _cells(row: Sequence[str], columns: Sequence[int], widths: Sequence[int]) -> list[str]:
    """The texts of a row; of a name that is too long, both ends."""
    texts = [row[column] for column in columns]
    if len(texts[0]) > widths[0]:
        half = (widths[0] - 1) // 2
        texts[0] = f"{texts[0][: widths[0] - 1 - half]}…{texts[0][-half:]}"
    return texts


def _wrapped(text: str, width: int, head: str = "", hang: int | None = None) -> str:
    """`head` and `text`, on lines; those after the first begin with `hang` spaces, or below `text`."""
    indent = " " * (len(head) if hang is None else hang)
    return textwrap.fill(
        text, width, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
