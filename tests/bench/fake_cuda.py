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
from sparsekernels.bench import block_layer, blocks, devices, layer, masked, network_formats, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection, Suite
from sparsekernels.timing import CpuClock, Effort

CACHE = 4096
BRIEF = Effort(seconds=0, sample=1e-6, least=2, most=2)


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
    for module in (block_layer, blocks, layer, masked, network_formats):
        monkeypatch.setattr(module, "LAYOUTS", BRIEF)
    monkeypatch.setattr(Graph, "captured", 0)
    monkeypatch.setattr(Graph, "replayed", 0)
    return Graph


def case_of(name: str, pass_: str, dtype: str, batch: int, parameters: dict[str, Any]) -> Case:
    return Case(name, "test/case", pass_, dtype, "cuda", batch, True, parameters, True)


def measure(case: Case, of: Suite, selection: Selection | None = None) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    selection = selection or Selection(device="cuda")
    variants = [one for one in of.variants(case, selection) if selection.takes_variant(one.name)]
    found = worker.measure(of, case, variants, session)
    return {one.variant: one for one in found}, [note["text"] for note in notes]
