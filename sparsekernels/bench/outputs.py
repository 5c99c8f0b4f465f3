# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The files that a benchmark leaves: looked at before it measures, written each by itself afterwards."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import record, report
from .record import Record


def _cannot_write(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return f"cannot write {path}: {reason}"


_ROOM = 1 << 16
"""Bytes that there has to be room for before anything is measured: few reports are larger."""


def check_writable(*paths: Path | None) -> None:
    """Make the folders of `paths`. Raises ValueError where a file cannot be written. No file is changed."""
    given = [path for path in paths if path is not None]
    if len({path.resolve() for path in given if not path.exists() or path.is_file()}) < sum(
        not path.exists() or path.is_file() for path in given
    ):
        raise ValueError(f"expected a file of its own for each report, got {', '.join(map(str, given))}")
    for path in given:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _try_to_write(path)
        except OSError as error:
            raise ValueError(_cannot_write(path, error)) from None


def _try_to_write(path: Path) -> None:
    """Raise OSError where `path` cannot be written, or its folder has no room. No file is changed."""
    if not path.exists():
        try:
            path.write_bytes(bytes(_ROOM))
        finally:
            path.unlink(missing_ok=True)
        return
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode):  # /dev/null takes everything, /dev/full nothing; a terminal is left alone
        with path.open("wb", buffering=0) as device:
            if not device.isatty():
                device.write(b"\n")
    elif not stat.S_ISFIFO(mode):
        with path.open("r+b"):
            pass
        if os.access(path.parent, os.W_OK):
            with tempfile.NamedTemporaryFile(dir=path.parent) as room:
                room.write(bytes(_ROOM))


@dataclass
class Written:
    """What is to be said of the reports, and of those that failed."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, what: str, path: Path | None, write: Callable[[Path], object]) -> bool:
        """Write one report, whatever becomes of the others. Returns whether it is there."""
        if path is None:
            return False
        try:
            write(path)
        except report.NothingToDraw as reason:
            self.lines.append(f"no {what}: {reason}")
            return False
        except Exception as error:  # what was measured is worth more than any report of it
            self.failures.append(_cannot_write(path, error))
            return False
        self.lines.append(f"{what}: {path.resolve()}")
        return True


def write(
    records: list[Record],
    layouts: dict[str, report.Layout],
    notes: list[str],
    json_file: Path | None,
    markdown_file: Path | None,
    plot_file: Path | None,
) -> Written:
    """Write the requested reports, each whatever becomes of the others.

    Where one fails and the records are in no file, they go to one among the system's temporary files.
    """
    written = Written()
    has_records = written.add("records", json_file, lambda path: record.write(path, records))

    def draw(path: Path) -> None:
        from .plot import plot

        plot(records, layouts, path)

    has_plot = written.add("plot", plot_file, draw)
    picture = None
    if has_plot and plot_file is not None and markdown_file is not None:
        picture = Path(os.path.relpath(plot_file, markdown_file.parent)).as_posix()
    written.add(
        "report",
        markdown_file,
        lambda path: path.write_text(report.markdown(records, layouts, picture, notes), encoding="utf-8"),
    )
    if written.failures and not has_records:
        handle, name = tempfile.mkstemp(prefix="sparsekernels-records-", suffix=".jsonl")
        os.close(handle)
        written.add("records, kept here", Path(name), lambda path: record.write(path, records))
    return written
