# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of the same cases before and after: what got faster, what slower, and what is within the noise."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..timing import spread
from ..usage import Interruptions
from .record import Key, Record
from .report import SHORT_DTYPES, milliseconds

WIDE = 1.5
"""Where p80 is more than this many times p20, the samples say little: 12 of 803 on two quiet machines are so."""


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
        """Whether this is a regression: slower, or "ok" before and now another status, or gone."""
        was_ok = self.before is not None and self.before.status == "ok"
        return self.verdict == "slower" or (was_ok and (self.after is None or self.after.status != "ok"))

    @property
    def is_disturbed(self) -> bool:
        """Whether something else had a part in the times of either run."""
        return any(one is not None and (_is_interrupted(one) or _is_wide(one)) for one in (self.before, self.after))


def _is_interrupted(record: Record) -> bool:
    return record.interruptions is not None and record.interruptions > Interruptions.DISTURBING


def _is_wide(record: Record) -> bool:
    return record.p20_ms is not None and record.p80_ms is not None and record.p80_ms > WIDE * record.p20_ms


def compare(before: Iterable[Record], after: Iterable[Record]) -> list[Change]:
    """The changes, in the order of `after`, then what is only in `before`. Records of one key are runs of the same."""
    old, new = _by_key(before), _by_key(after)
    changes = [change(old.get(key), record) for key, record in new.items()]
    return changes + [change(record, None) for key, record in old.items() if key not in new]


def _by_key(records: Iterable[Record]) -> dict[Key, Record]:
    runs: dict[Key, list[Record]] = {}
    for record in records:
        runs.setdefault(record.key, []).append(record)
    return {key: together(same) for key, same in runs.items()}


def together(runs: Sequence[Record]) -> Record:
    """Several runs of the same as one: the percentiles are those of the runs' medians.

    So the middle 60% of the runs decide, as of the samples of a single run: one that was disturbed does not. Where a
    run is not ok, the first of these stands for all. Interruptions are those of the median run.
    """
    failed = [record for record in runs if record.status != "ok"]
    if failed or len(runs) == 1:
        return (failed or runs)[0]
    medians = [record.p50_ms for record in runs if record.p50_ms is not None]
    interruptions = [record.interruptions for record in runs if record.interruptions is not None]
    p20, p50, p80 = spread(medians)
    return replace(
        runs[-1],
        p20_ms=p20,
        p50_ms=p50,
        p80_ms=p80,
        interruptions=statistics.median(interruptions) if len(interruptions) == len(runs) else None,
    )


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
    """Why the two runs cannot be compared as they stand: another machine, allocator, torch or number of threads."""
    was, now = ([_conditions(record) for record in run] for run in (before, after))
    result = []
    for name in dict.fromkeys(name for one in (*was, *now) for name in one):
        old, new = ({one[name] for one in run} for run in (was, now))
        if old != new:
            result.append(f"the runs differ in {name}: {_list(old)} before, {_list(new)} after")
    return result


def _conditions(record: Record) -> dict[str, str]:
    """What must be the same in two runs whose times are compared."""
    machine = {name: str(record.machine.get(name)) for name in ("cpu", "isa", "cores", "gpu", "allocator")}
    return {**machine, "torch": record.versions.get("torch", ""), "threads": str(record.threads)}


def disturbances(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """Why to doubt the times of either run: other programs, or samples that differ among themselves."""
    result = []
    for name, run in (("before", before), ("after", after)):
        timed = [record for record in run if record.p50_ms is not None]
        interrupted = [one.interruptions for one in timed if one.interruptions is not None and _is_interrupted(one)]
        if interrupted:
            result.append(
                f"{name}: disturbed; other programs preempted the process up to {max(interrupted):.0f} times a second"
                f" in {len(interrupted)} of {len(timed)} records; measure again on a quiet machine"
            )
        if wide := sum(map(_is_wide, timed)):
            result.append(
                f"{name}: noisy; the middle 60% of the samples differ by more than {WIDE:g}x in {wide} of {len(timed)}"
                " records"
            )
        if unknown := sum(one.interruptions is None for one in timed):
            result.append(f"{name}: {unknown} of {len(timed)} records do not say whether other programs disturbed them")
    return result


def _list(values: Iterable[str]) -> str:
    return " and ".join(sorted(values))


HEADER = ("case", "variant", "pass", "dtype", "before", "after", "after / before", "verdict")


def row(item: Change) -> tuple[str, ...]:
    """A change as a line of text under `HEADER`; the verdict on times that were disturbed has a question mark."""
    record = item.after or item.before
    assert record is not None
    return (
        f"{record.suite} {record.case}",
        record.variant,
        record.pass_,
        SHORT_DTYPES.get(record.dtype, record.dtype),
        *("" if run is None or run.p50_ms is None else milliseconds(run.p50_ms) for run in (item.before, item.after)),
        "" if item.ratio is None else f"{item.ratio:.2f}",
        f"{item.verdict}?" if item.ratio is not None and item.is_disturbed else item.verdict,
    )


def summary(changes: Sequence[Change]) -> str:
    """How many of each verdict: "3 faster, 1 slower, 24 same"."""
    counts: dict[str, int] = {}
    for item in changes:
        counts[item.verdict] = counts.get(item.verdict, 0) + 1
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda pair: -pair[1]))
