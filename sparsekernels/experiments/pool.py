# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Runs are done in child processes, several at a time, and what happens is told as it happens."""

from __future__ import annotations

import contextlib
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

from ..bench.machine import ALLOCATOR
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

    def __init__(self, request: dict[str, Any], said: queue.Queue[tuple[_Child, str | None]]) -> None:
        self.run: Run | None = None
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **ALLOCATOR},
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
        self.run = run
        self._tell({"run": run.to_dict(), "checkpoint": str(checkpoint)})

    def death(self) -> str:
        """What became of a process that ended by itself."""
        code = self.process.wait()
        self.errors.seek(0)
        said = "".join(self.errors.readlines()[-20:])
        return f"its process died ({f'signal {-code}' if code < 0 else f'exit code {code}'}):\n{said}".rstrip()

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


def perform(runs: Sequence[Run], folder: Path | None, jobs: int, checkpoints: Path) -> Generator[Event, None, None]:
    """Do the runs, `jobs` at a time; all processes end with the iteration, however that ends.

    Args:
        runs: All of one data set.
        folder: Of the data set's files, as `datasets.load` takes it.
        jobs: Child processes, 1 and more.
        checkpoints: Folder of the checkpoints; that of a run, by its key, is removed when the run has ended.

    Yields:
        What happens. Where a process dies its run has failed, and another process takes its place.
    """
    waiting = deque(runs)
    said: queue.Queue[tuple[_Child, str | None]] = queue.Queue()
    children: set[_Child] = set()
    if not waiting:
        return
    request = {"dataset": runs[0].settings["dataset"], "folder": None if folder is None else str(folder.resolve())}

    def begin(child: _Child) -> Started:
        run = waiting.popleft()
        child.begin(run, checkpoints / run.key)
        return Started(run)

    def new() -> Started:
        child = _Child(request, said)
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
                yield Failed(run, text)
                if waiting:
                    yield new()
                continue
            event = json.loads(line)
            if event["event"] == "progress":
                yield Progress(run, event["share"], event["text"])
                continue
            child.run = None
            if event["event"] == "record":
                record = Record.from_json(event["record"])
                yield Finished(run, record)  # whoever receives it keeps it before he asks for the next event
                _discard(checkpoints, run)
            else:
                yield Failed(run, event["text"])
            if waiting:
                yield begin(child)
    finally:
        for child in children:
            child.close()


def _discard(checkpoints: Path, run: Run) -> None:
    """Remove what a run that has ended would have gone on from: a file or a folder."""
    path = checkpoints / run.key
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
