# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Runs are done in child processes, several at a time, and what happens is told as it happens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..bench.machine import ALLOCATOR, commit, machine, versions
from .records import Record
from .runs import Run

# The child sees the modules that this process sees, wherever either was started.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sparsekernels.experiments.worker import main; main()"
)

PATIENCE = 20.0
"""Seconds that a child has to end, once it is told to."""


@dataclass(frozen=True)
class Started:
    """A run begins."""

    run: Run


@dataclass(frozen=True)
class Progress:
    """How much of a run is done, 0 to 1, and what is to be said of it."""

    run: Run
    share: float
    text: str


@dataclass(frozen=True)
class Finished:
    """A run has ended."""

    run: Run
    record: Record


@dataclass(frozen=True)
class Failed:
    """A run raised, or its process died: there is no record of it."""

    run: Run
    text: str


Event = Started | Progress | Finished | Failed


class _Child:
    """A process, and the thread that reads what it says into a queue."""

    def __init__(
        self, request: dict[str, Any], said: queue.Queue[tuple[_Child, str | None]], kept_open: Sequence[int]
    ) -> None:
        self.run: Run | None = None
        self.has_begun = False
        """Whether it has said anything of this run."""
        self.ended = 0
        """Runs."""
        self.fault = ""
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **ALLOCATOR},
            pass_fds=kept_open,
        )
        assert self.process.stdout is not None
        self._tell(request)
        self._thread = threading.Thread(target=self._read, args=(self.process.stdout, said), daemon=True)
        self._thread.start()

    def _read(self, lines: IO[str], said: queue.Queue[tuple[_Child, str | None]]) -> None:
        with contextlib.suppress(ValueError):  # the file is closed when the experiment is interrupted
            for line in lines:
                said.put((self, line))
        said.put((self, None))

    def _tell(self, what: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # one that died is noticed by the end of what it says
            print(json.dumps(what), file=self.process.stdin, flush=True)

    def begin(self, run: Run, checkpoint: Path) -> None:
        self.run, self.has_begun = run, False
        self._tell({"run": run.to_dict(), "checkpoint": str(checkpoint)})

    def death(self) -> str:
        """What became of a process that ended by itself."""
        code = self.process.wait()
        if self.fault:
            return self.fault
        self.errors.seek(0)
        said = "".join(self.errors.readlines()[-20:])
        return f"its process died ({f'signal {-code}' if code < 0 else f'exit code {code}'}):\n{said}".rstrip()

    def hears(self, run: Run, line: str) -> tuple[str, Any]:
        """What a line says. One that was cut off, or says nothing of this run, ends the process."""
        try:
            event = json.loads(line)
            kind = event["event"]
            if kind == "begun":
                return kind, None
            if kind == "progress":
                return kind, (float(event["share"]), str(event["text"]))
            if kind == "failed":
                return kind, str(event["text"])
            record = Record.from_json(event["record"])
            if kind != "record" or record.key != run.key:
                raise ValueError(f"expected the record of {run.key}, got {kind} {record.key}")
        except (ValueError, KeyError, TypeError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)  # one that is dying says by itself why
            if self.process.poll() is None:
                self.process.kill()
                self.fault = f"its process was ended for what it said, {line[:80]!r}: {error}"
            return "none", None
        return kind, record

    def close(self) -> None:
        """End the process, at once where it is at work."""
        if self.run is not None:
            self.process.terminate()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()


def perform(
    runs: Sequence[Run], folder: Path | None, jobs: int, checkpoints: Path, kept_open: Sequence[int] = ()
) -> Generator[Event, None, None]:
    """Do the runs, `jobs` at a time; all processes end with the iteration, however that ends.

    Args:
        runs: All of one data set.
        folder: Of the data set's files, as `datasets.load` takes it.
        jobs: Child processes, 1 and more.
        checkpoints: Folder of the checkpoints; that of a run is removed when the run has ended.
        kept_open: File descriptors that the processes hold as well, such as a lock's.

    Yields:
        What happens. Where a process dies its run has failed, and another process takes its place; a run that it had
        not begun yet goes to that one.
    """
    waiting = deque(runs)
    said: queue.Queue[tuple[_Child, str | None]] = queue.Queue()
    children: set[_Child] = set()
    if not waiting:
        return
    request = {"dataset": runs[0].settings["dataset"], "folder": None if folder is None else str(folder.resolve())}

    def begin(child: _Child) -> Started:
        run = waiting.popleft()
        child.begin(run, checkpoints / checkpoint_name(run))
        return Started(run)

    def new() -> Started:
        child = _Child(request, said, kept_open)
        children.add(child)
        return begin(child)

    try:
        for _ in range(min(jobs, len(waiting))):
            yield new()
        while any(child.run is not None for child in children):
            child, line = said.get()
            run = child.run
            if run is None or child not in children:
                continue
            if line is None:
                text = child.death()
                children.discard(child)
                child.run = None
                child.close()
                if child.has_begun or child.ended == 0:
                    yield Failed(run, text)
                else:  # it died of the run before, or of none
                    waiting.appendleft(run)
                if waiting:
                    yield new()
                continue
            kind, what = child.hears(run, line)
            child.has_begun = child.has_begun or kind != "none"
            if kind == "progress":
                yield Progress(run, *what)
            if kind not in ("record", "failed"):
                continue
            child.run = None
            child.ended += 1
            if kind == "record":
                yield Finished(run, what)  # whoever receives it keeps it before he asks for the next event
                _discard(checkpoints, run)
            else:
                yield Failed(run, what)
            if waiting:
                yield begin(child)
    finally:
        for child in children:
            child.close()


def checkpoint_name(run: Run) -> str:
    """Of the file or folder that a run goes on from. What another version or machine began has another name."""
    here = machine()
    what = [versions(), commit(), *(here[key] for key in ("cpu", "cores", "gpu"))]
    return f"{run.key}-{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]}"


def _discard(checkpoints: Path, run: Run) -> None:
    """Remove what a run that has ended would have gone on from, files or folders, those of other versions as well."""
    for path in checkpoints.glob(f"{run.key}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
