# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The sparsity from which on a variant is faster than the baseline, as a table of its own."""

from __future__ import annotations

from collections.abc import Sequence

from .plot_sparsity import Curve, crossover, mask_of
from .record import Record
from .report import SHORT_DTYPES, Table

LEGEND = (
    "From which share of zeros on {kind} is faster than the baseline, on straight lines between the measured "
    "sparsities, in logarithms of speedup and density. <= 50%: faster wherever it was measured; > 95%: not even there."
)


def crossover_table(kind: str, title: str, records: Sequence[Record]) -> list[Table]:
    """A line for each case and dtype, a column for each kind of pattern; no table where no line has two sparsities."""
    curves: dict[tuple[str, str], dict[str, Curve]] = {}
    for one in records:
        if one.kind == kind and one.sparsity is not None and one.speedup is not None:
            of_case = curves.setdefault((one.case, one.dtype), {})
            of_case.setdefault(mask_of(one.pattern), []).append((one.sparsity, one.speedup))
    columns = list(dict.fromkeys(mask for of_case in curves.values() for mask in of_case))
    if not any(len(curve) > 1 for of_case in curves.values() for curve in of_case.values()):
        return []
    rows = tuple(
        (case, SHORT_DTYPES.get(dtype, dtype), *(_text(sorted(of_case.get(column, []))) for column in columns))
        for (case, dtype), of_case in curves.items()
    )
    return [Table(f"{title}: faster from", ("case", "dtype", *columns), rows, LEGEND.format(kind=kind))]


def _text(curve: Curve) -> str:
    if not curve:
        return ""
    crossing = crossover(curve)
    if crossing is not None:
        return f"{crossing:.0%}"
    last, speedup = curve[-1]
    return f"> {last:.0%}" if speedup < 1 else f"<= {curve[0][0]:.0%}"
