# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a process has of the processors, and which samples of time were disturbed by other programs."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SHORT = 5e-3
"""A shorter sample was disturbed if a thread of the process lost its processor in it: a turn of another program takes
some milliseconds. In a longer one that is common, and what counts is how long it was."""

_LEAST_SHARE = 0.95
"""Of a sample that was not disturbed, in which the calling thread ran."""


class Disturbed(float):
    """Seconds of a call, by a sample in which other programs kept this one from running."""


@dataclass(frozen=True)
class Usage:
    """What this process has had of the processors so far.

    Attributes:
        seconds: In which the calling thread ran.
        preemptions: How often a thread lost its processor to something else.
        waits: How often a thread gave its processor up.
    """

    seconds: float
    preemptions: int
    waits: int

    @classmethod
    def now(cls) -> Usage:
        """Until now, of all threads.

        Returns:
            The usage.
        """
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.thread_time(), usage.ru_nivcsw, usage.ru_nvcsw)

    def disturbs(self, seconds: float, before: Usage) -> bool:
        """Whether the sample that ended was disturbed.

        Threads that work in step all wait for the one that lost its processor, without a switch of their own where they
        spin. Where nothing of this process switched and it did not run, the machine itself was taken away.

        Args:
            seconds: What the sample took.
            before: The usage when it began.

        Returns:
            Whether it does not count.
        """
        preempted = self.preemptions > before.preemptions
        if preempted and seconds < SHORT:
            return True
        unexplained = preempted or self.waits == before.waits
        return unexplained and self.seconds - before.seconds < _LEAST_SHARE * seconds


def undisturbed(samples: Sequence[float]) -> list[float]:
    """Those that were not disturbed.

    Args:
        samples: Of `samples_of`.

    Returns:
        Some of them, in their order.
    """
    return [seconds for seconds in samples if not isinstance(seconds, Disturbed)]


class Interruptions:
    """How often other programs preempted this process, while that was counted.

    One such interruption lasts some milliseconds. Threads that work in step all wait for the one that was interrupted,
    so that a few programs beside a benchmark make its figures useless.
    """

    DISTURBING = 75.0
    """This many per second disturb the times: an idle virtual machine has up to 50, one with a busy neighbor 100."""

    def __init__(self) -> None:
        self._count, self._seconds = 0, 0.0

    @contextlib.contextmanager
    def counted(self, elsewhere: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Count the interruptions inside the `with` block.

        Args:
            elsewhere: How many there were until now in the processes that work for this one.

        Returns:
            A context manager.
        """
        count, start = self._now() + elsewhere(), time.perf_counter()
        try:
            yield
        finally:
            self._count += self._now() + elsewhere() - count
            self._seconds += time.perf_counter() - start

    def add(self, other: Interruptions) -> None:
        """Add what another one counted.

        Args:
            other: It has ended counting.
        """
        self._count += other._count
        self._seconds += other._seconds

    @staticmethod
    def _now() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    @property
    def per_second(self) -> float:
        """Interruptions per second counted."""
        return self._count / self._seconds if self._seconds else 0.0
