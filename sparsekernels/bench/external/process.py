# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of the engines, of which one at a time may run: all others are stopped.

Engines keep their threads spinning for a while after a call, and some for as long as they live. A stopped process
(SIGSTOP) spins nowhere, so each engine can have its own way of waiting without taking time from the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..suite import Unavailable

PROTOCOL = Path(__file__).with_name("protocol.py")
"""What the program of an engine imports: its folder is put on the program's path, whatever its environment."""

PATIENCE = 600.0
"""Seconds after which an answer is no longer waited for."""


@dataclass(frozen=True)
class Launch:
    """How a program is started: the interpreter and the program, and all variables of its process."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


class ChildError(RuntimeError):
    """The process died, does not answer, or says that it failed."""


class Child:
    """The process of an engine, with one job. It runs only inside the methods of this class; see `protocol.py`.

    processors  the ones that it may run on
    patience    how many seconds an answer may take
    Leaving its context ends the process.
    """

    def __init__(self, launch: Launch, processors: Sequence[int], patience: float = PATIENCE) -> None:
        self._patience, self._buffer = patience, b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            launch.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(launch.environment),
        )
        with contextlib.suppress(ProcessLookupError):  # it died at once, as the first answer will tell
            os.sched_setaffinity(self._process.pid, processors)
        self.interruptions, self.seconds = 0, 0.0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, job: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
        """Send the job and wait until it is ready. Returns versions and details; raises `Unavailable` if it cannot."""
        answer = self._ask(json.dumps(job))
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return answer["ready"]["versions"], answer["ready"]["details"]

    def run(self, repeats: int) -> float:
        """Seconds of one call, the mean of `repeats`."""
        answer = self._ask(f"run {repeats}")
        self.interruptions += answer["interruptions"]
        self.seconds += answer["seconds"]
        return float(answer["seconds"] / repeats)

    def output(self, path: Path) -> None:
        """Write the results to an .npz file."""
        self._ask(f"output {path}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()  # also when it is stopped
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._answer())
        except BrokenPipeError as error:
            raise self._death() from error
        finally:
            self._stop()
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def _stop(self) -> None:
        """Stop the process and wait until all its threads are: no other may be timed before."""
        self._process.send_signal(signal.SIGSTOP)
        if self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        file, deadline = self._process.stdout.fileno(), time.monotonic() + self._patience
        while b"\n" not in self._buffer:
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._process.kill()
                raise ChildError(f"no answer within {self._patience:g} seconds")
            some = os.read(file, 1 << 16)
            if not some:
                raise self._death()
            self._buffer += some
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> ChildError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return ChildError(f"its process died ({how}){': ' if lines else ''}{' | '.join(lines[-3:])}")


def processors(open_to_us: Sequence[int] | None = None) -> list[int]:
    """The processors open to this process, those first that share no core with an earlier one."""
    found = sorted(os.sched_getaffinity(0) if open_to_us is None else open_to_us)
    shared: dict[str, int] = {}
    ranks = {}
    for number in found:
        core = _core(number)
        ranks[number] = shared[core] = shared.get(core, -1) + 1
    return sorted(found, key=lambda number: (ranks[number], number))


def cores() -> int:
    """How many cores the processors open to this process have."""
    return len({_core(number) for number in os.sched_getaffinity(0)})


def _core(number: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return str(number)
