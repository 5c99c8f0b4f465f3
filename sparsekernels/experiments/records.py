# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: one JSON object a line, in a file that grows by whole lines while an experiment goes on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .datasets import CLASSES
from .runs import Run

STATUSES = ("ok", "diverged")


@dataclass(frozen=True)
class Record:
    """One run that ended.

    key        of the run; it is in the file for those who read that, and has to be the run's
    run        what was run: every setting; see `runs.Run`
    points     the evaluations in their order, each with "step" (optimizer steps until then), "epoch" (passes over the
               images, with fraction), "accuracy" (on the test images, percent), "loss" (mean of the training loss since
               the last point) and "seconds" (wall clock of training since the last point: steps, updates of the masks
               and the fetching of images, without evaluations)
    results    what the task found beside that; see docs/experiments.md
    nonzeros   at the end, by weight: how many of its elements the method has in use
    weights    by weight: how many elements it has
    status     "ok"; "diverged": the loss was no number at the point after the last
    data       name, checksum, mean and standard deviation of the data set, and the counts of images
    machine, versions, commit    what ran it; see `bench/machine.py`
    """

    key: str
    run: Run
    points: Sequence[Mapping[str, float]]
    results: Mapping[str, Any]
    nonzeros: Mapping[str, int]
    weights: Mapping[str, int]
    status: str
    data: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"expected status to be {', '.join(map(repr, STATUSES))}, got {self.status!r}")
        if self.key != self.run.key:
            raise ValueError(f"expected key {self.run.key} of its run, got {self.key!r}")
        if self.status == "ok" and not self.points:
            raise ValueError("expected points of a run that is ok, got none")
        for point in self.points:
            if point.keys() != POINT_KEYS or not all(_is_finite(value) for value in point.values()):
                raise ValueError(f"expected points with numbers for {', '.join(sorted(POINT_KEYS))}, got {dict(point)}")

    @property
    def accuracy(self) -> float:
        """At the end, in percent; where the run diverged, that of chance."""
        return self.points[-1]["accuracy"] if self.status == "ok" else 100 / CLASSES

    @property
    def seconds(self) -> float:
        """Wall clock of the whole training."""
        return math.fsum(point["seconds"] for point in self.points)

    @property
    def density(self) -> float:
        """The share of the weights that was in use at the end."""
        return sum(self.nonzeros.values()) / max(1, sum(self.weights.values()))

    def to_json(self) -> str:
        """This record as one line."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**values, "run": self.run.to_dict()}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of one line. Raises ValueError where it is none."""
        value = json.loads(line)
        names = {f.name for f in fields(cls)}
        if not isinstance(value, dict) or value.keys() != names:
            got = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"expected a record of {', '.join(sorted(names))}, got {got}")
        return cls(**{**value, "run": Run.from_dict(value["run"])})


POINT_KEYS = {"step", "epoch", "accuracy", "loss", "seconds"}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read(path: Path) -> list[Record]:
    """The records of `path`, none where there is no such file. Raises ValueError that names the line at fault.

    A last line without its end was cut off when a run was killed, and does not count.
    """
    if not path.exists():
        return []
    found: dict[str, Record] = {}
    for number, line in enumerate(_whole_lines(path), 1):
        if line.strip():
            try:
                record = Record.from_json(line.decode())
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            found.setdefault(_identity(record), record)
    return list(found.values())


def _identity(record: Record) -> str:
    """A run counts once, but on another machine it has other times."""
    return json.dumps([record.key, record.machine.get("cpu"), record.machine.get("cores"), record.machine.get("gpu")])


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


@dataclass
class File:
    """The file of records of an experiment that is running; one process has it at a time.

    kept_open: what child processes are to hold open, so that nothing else writes while one of them is at work.
    """

    path: Path
    records: list[Record] = field(default_factory=list)
    kept_open: tuple[int, ...] = ()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[File]:
        """Read what is there, cut off a last line that is not whole, and keep others from writing.

        Raises ValueError for a file that is none of records, or that another process has; OSError as `open` does.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{path}: expected one experiment to write to it, got another that is running"
                ) from None
            file = cls(path, read(path), (held.fileno(),))
            with path.open("ab") as end:
                end.truncate(sum(len(line) + 1 for line in _whole_lines(path)))
            yield file

    def append(self, record: Record) -> None:
        """Add one line, in one write; it is on the disk when this returns."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            line = f"{record.to_json()}\n".encode()
            if os.write(handle, line) != len(line):
                raise OSError(f"{self.path}: the disk is full")
            os.fsync(handle)
        finally:
            os.close(handle)
        self.records.append(record)
