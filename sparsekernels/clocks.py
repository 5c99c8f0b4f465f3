# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What measures time: on the CPU, on a GPU, on several."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch


class Clock(Protocol):
    """Measures time on a device."""

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """The time of consecutive calls.

        Args:
            call: What is timed.
            repeats: How many calls.

        Returns:
            Seconds of all of them together.
        """


class CpuClock:
    """The processor's own clock, of some 50 ns resolution."""

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """The time of consecutive calls.

        Args:
            call: What is timed.
            repeats: How many calls.

        Returns:
            Seconds of all of them together.
        """
        turns = itertools.repeat(None, repeats)
        start = time.perf_counter()
        for _ in turns:
            call()
        return time.perf_counter() - start


class CudaClock:
    """CUDA events on the current stream: the device's time, or the host's where launching takes longer."""

    def __init__(self, device: torch.device | None = None) -> None:
        """Of a device; of the current one, whichever that is in a call, without."""
        self._device = device

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """The time of consecutive calls.

        Args:
            call: What is timed.
            repeats: How many calls.

        Returns:
            Seconds of all of them together.
        """
        with torch.cuda.device(self._device):
            # of this call: an event stays with the device that it was first recorded on
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeats):
                call()
            stop.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(stop)) * 1e-3


class SynchronizedClock:
    """The host's clock, of work that several GPUs do: all of them are idle when it starts and when it stops."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices

    def now(self) -> float:
        """The time at which all that was launched is done.

        Returns:
            Seconds, of which differences count.
        """
        for device in self._devices:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """The time of consecutive calls.

        Args:
            call: What is timed.
            repeats: How many calls.

        Returns:
            Seconds of all of them together.
        """
        start = self.now()
        for _ in range(repeats):
            call()
        return self.now() - start


def clock_on(gpus: Sequence[torch.device]) -> Clock:
    """The clock of what these GPUs do, and the host.

    Args:
        gpus: None where it is all on the host.

    Returns:
        The clock.
    """
    if not gpus:
        return CpuClock()
    return CudaClock(gpus[0]) if len(gpus) == 1 else SynchronizedClock(gpus)


def clock_of(device: str) -> Clock:
    """The clock of a device.

    Args:
        device: "cpu" or "cuda".

    Returns:
        The clock.
    """
    return CudaClock() if device == "cuda" else CpuClock()
