# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Two runs of the same cases: what got faster, what slower, and what is within the noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .record import Key, Record
from .report import SHORT_DTYPES, milliseconds


@dataclass(frozen=True)
class Change:
    """One variant of one case, before and after; None where that run has no such record.

    ratio    time after over time before; None where either has no time
    verdict  "faster" or "slower" where the middle 60% of the samples (p20 to p80) of the two runs do not overlap;
             "same" where they do; "new", "gone"; "now wrong", "now ok" and so on where the status changed; else the
             status that both share
    """

    before: Record | None
    after: Record | None
    ratio: float | None
    verdict: str

    @property
    def worse(self) -> bool:
        """Whether this is a regression: slower, or "ok" before and now another status."""
        was_ok = self.before is not None and self.before.status == "ok"
        return self.verdict == "slower" or (was_ok and self.after is not None and self.after.status != "ok")


def compare(before: Iterable[Record], after: Iterable[Record]) -> list[Change]:
    """The changes, in the order of `after`, then what is only in `before`. A later record of the same key counts."""
    old: dict[Key, Record] = {record.key: record for record in before}
    new: dict[Key, Record] = {record.key: record for record in after}
    changes = [change(old.get(key), record) for key, record in new.items()]
    return changes + [change(record, None) for key, record in old.items() if key not in new]


def change(before: Record | None, after: Record | None) -> Change:
    """The verdict on one variant of one case."""
    if before is None or after is None:
        return Change(before, after, None, "new" if before is None else "gone")
    if before.p20_ms is None or before.p50_ms is None or before.p80_ms is None:
        return Change(before, after, None, after.status if before.status == after.status else f"now {after.status}")
    if after.p20_ms is None or after.p50_ms is None or after.p80_ms is None:
        return Change(before, after, None, f"now {after.status}")
    verdict = "faster" if after.p80_ms < before.p20_ms else "slower" if after.p20_ms > before.p80_ms else "same"
    return Change(before, after, after.p50_ms / before.p50_ms, verdict)


def differences(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """Why the two runs cannot be compared as they stand: another machine, allocator or torch."""
    result = []
    for name in ("cpu", "isa", "cores", "gpu", "allocator"):
        was, now = ({str(r.machine.get(name)) for r in run} for run in (before, after))
        if was != now:
            result.append(f"the runs differ in {name}: {_list(was)} before, {_list(now)} after")
    was, now = ({r.versions.get("torch", "") for r in run} for run in (before, after))
    if was != now:
        result.append(f"the runs differ in torch: {_list(was)} before, {_list(now)} after")
    return result


def _list(values: Iterable[str]) -> str:
    return " and ".join(sorted(values))


HEADER = ("case", "variant", "pass", "dtype", "before", "after", "after / before", "verdict")


def row(item: Change) -> tuple[str, ...]:
    """A change as a line of text under `HEADER`."""
    record = item.after or item.before
    assert record is not None
    return (
        f"{record.suite} {record.case}",
        record.variant,
        record.pass_,
        SHORT_DTYPES.get(record.dtype, record.dtype),
        *("" if run is None or run.p50_ms is None else milliseconds(run.p50_ms) for run in (item.before, item.after)),
        "" if item.ratio is None else f"{item.ratio:.2f}",
        item.verdict,
    )


def summary(changes: Sequence[Change]) -> str:
    """How many of each verdict: "3 faster, 1 slower, 24 same"."""
    counts: dict[str, int] = {}
    for item in changes:
        counts[item.verdict] = counts.get(item.verdict, 0) + 1
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda pair: -pair[1]))
