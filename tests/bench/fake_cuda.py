# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A CUDA device that is the CPU, for suites on machines without one: cases are of "cuda", tensors are the CPU's.

What is captured runs at once and replays run nothing, so results are those of the capture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sparsekernels import timing
from sparsekernels.bench import devices

CACHE = 4096


class Graph:
    """A CUDA graph of calls that ran when they were captured."""

    captured: int = 0
    replayed: int = 0

    def replay(self) -> None:
        Graph.replayed += 1


class Stream:
    def wait_stream(self, other: object) -> None:
        """There is one stream."""


@contextlib.contextmanager
def _capturing(graph: Graph, stream: object = None) -> Iterator[None]:
    Graph.captured += 1
    yield


def install(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    """From here on; the class counts captures and replays."""
    fakes: dict[str, Any] = {
        "Stream": Stream,
        "current_stream": lambda *_: Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda *_: None,
        "CUDAGraph": Graph,
        "graph": _capturing,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setitem(devices.PLACES, "cuda", torch.device("cpu"))
    monkeypatch.setattr(devices, "cache_bytes", lambda _: CACHE)
    monkeypatch.setattr(timing, "clock_of", lambda _: timing.CpuClock())
    monkeypatch.setattr(Graph, "captured", 0)
    monkeypatch.setattr(Graph, "replayed", 0)
    return Graph
