# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How far a conversion is: its time limit, its progress bar, and the interrupts that it waits with."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_excused = 0.0
"""Seconds of this process that count against no limit."""


class Progress:
    """One conversion's: enter it, and ask `stop` before whatever takes a while.

    show: whether there is a bar; None where rich is installed and stderr is a terminal. max_seconds: when to stop.
    met: whether something was left out for that.

    Ctrl-C is held back until the next question, so that it never arrives while the model is put back. The second one
    is not, before the first was answered: something does not return. From then on all are ignored until the end.
    """

    def __init__(self, show: bool | None, max_seconds: float) -> None:
        self._show, self.max_seconds = show, max_seconds
        self._start, self._excused = time.perf_counter(), _excused
        self.met = False
        self._bar: Bar | None = None
        self._previous: Any = None
        self._held_back: tuple[int, FrameType | None] | None = None
        self._answered = False

    def __enter__(self) -> Progress:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._hold_back)
        if self._show is not False and has_rich() and (self._show or _is_terminal()):
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if self._held_back is not None and not self._answered:
                self._previous(*self._held_back)

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self.max_seconds)

    @property
    def left(self) -> float:
        """Seconds until the limit; negative behind it."""
        return self.max_seconds - (time.perf_counter() - self._start) + (_excused - self._excused)

    def stop(self, reserve: float = 0.0) -> bool:
        """Whether no more than `reserve` seconds are left. Raises what Ctrl-C raises."""
        if self._held_back is not None and not self._answered:
            self._answer(*self._held_back)
        stops = self.left <= reserve
        self.met = self.met or stops
        return stops

    def at(self, what: str, done: int = 0, total: int | None = None) -> None:
        """Say what is being done. Drawn by this call alone: a thread that draws would disturb the clock."""
        self.stop()
        if self._bar is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)
            self._bar.refresh()

    def _hold_back(self, number: int, frame: FrameType | None) -> None:
        if self._held_back is None:
            self._held_back = number, frame
        elif not self._answered:
            self._answer(number, frame)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        self._answered = True
        self._previous(number, frame)
        self._held_back, self._answered = None, False  # a handler that does not raise


@contextlib.contextmanager
def excused() -> Iterator[None]:
    """What is done inside, once in a process, does not count against a limit."""
    global _excused
    start = time.perf_counter()
    try:
        yield
    finally:
        _excused += time.perf_counter() - start


def has_rich() -> bool:
    """Whether rich, which draws the bar, is installed."""
    return importlib.util.find_spec("rich") is not None


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _new_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("convert: {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    # what the model prints stays where it is: sys.stdout and sys.stderr may be part of what it sees
    return Progress(
        *columns,
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
