# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The one runner: measures a suite in a child process and yields what happens, as it happens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .machine import ALLOCATOR
from .record import Record
from .suite import Selection

# The child sees the modules that this process sees, wherever either was started.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sparsekernels.bench.worker import main; main()"


class RunnerError(RuntimeError):
    """The measuring process died; the message has the end of what it said."""


@dataclass(frozen=True)
class Started:
    """How many cases the suite has."""

    cases: int


@dataclass(frozen=True)
class CaseStarted:
    """The case called `text` begins."""

    text: str


@dataclass(frozen=True)
class Note:
    """Why a variant has no time, or why to doubt those that there are."""

    text: str


@dataclass(frozen=True)
class Said:
    """What the suite does that takes long."""

    text: str


Event = Started | CaseStarted | Said | Note | Record

PATIENCE = 20.0
"""Seconds that the process has to end what its variants hold, once it is told to stop."""


def run(suite: str, selection: Selection) -> Iterator[Event]:
    """Measure the selected cases of `suite`, a name or a path as `suite.load` takes it.

    All variants alike run in one child process, which has the allocator settings of `machine.ALLOCATOR`. The process
    ends with the iteration, however that ends. Raises `RunnerError` where the process dies.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **ALLOCATOR},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin:  # a child that died at once is reported below
                json.dump({"suite": suite, "selection": asdict(selection)}, child.stdin)
            doing = "start"
            for line in child.stdout:
                event = _event(json.loads(line))
                if isinstance(event, CaseStarted):
                    doing = event.text
                yield event
            if child.wait() != 0:
                errors.seek(0)
                said = "".join(errors.readlines()[-20:])
                raise RunnerError(f"suite {suite!r} died ({_death(child.returncode)}) at {doing}:\n{said}")
        finally:
            child.stdout.close()
            if child.poll() is None:
                child.terminate()
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _event(message: dict[str, Any]) -> Event:
    match message["event"]:
        case "cases":
            return Started(message["total"])
        case "case":
            return CaseStarted(message["text"])
        case "said":
            return Said(message["text"])
        case "note":
            return Note(message["text"])
        case "record":
            return Record.from_json(json.dumps(message["record"]))
    raise ValueError(f"expected a known event, got {message['event']!r}")


def _death(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
