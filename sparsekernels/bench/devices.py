# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What all suites do alike on every device: inputs in turn, the fastest of several ways, and CUDA graphs.

On CUDA each way to compute a case is two variants, eager ("ours") and in a CUDA graph ("ours/graph"). The first has the
host's time where launching takes longer than the kernels, the second has the device's alone. Both are called with
several sets of inputs in turn, enough that they do not fit the L2 cache together, since a model does not find the
inputs of a layer there either; sets that are so small that `GRAPH_CALLS` of them fit are left in it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from .. import timing
from ..formats import SparseFormat
from ..ops._triton import float32_precision
from .suite import Case, Prepared, Unavailable, Variant, Verdict

GRAPH_CALLS = 20
"""Calls in a CUDA graph, so that launching it is a small part of each; at most as many sets of inputs alternate."""

PLACES = {"cpu": torch.device("cpu"), "cuda": torch.device("cuda")}
"""By the device of a case, where its tensors are."""

Call = Callable[[], object]
Context = Callable[[], AbstractContextManager[object]]
Format = TypeVar("Format", bound=SparseFormat)


class NotCaptured(RuntimeError):
    """A call that no CUDA graph can have; the message says why."""


@dataclass(frozen=True)
class Built:
    """A way to compute a case, ready to be called.

    calls     with each set of inputs in turn
    context   entered around every sample, every capture and every check
    results   what is judged; None: what the first of `calls` returns
    judge     takes these; None for a yardstick that computes something else
    details   what the record says beside times and errors
    graphed   calls in a CUDA graph; None: `GRAPH_CALLS`, or one for each set of inputs where there are more
    """

    calls: Sequence[Call]
    context: Context = contextlib.nullcontext
    results: Callable[[], Any] | None = None
    judge: Callable[[Any], Verdict] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    graphed: int | None = None

    @property
    def call(self) -> Call:
        """Runs the next of `calls` each time."""
        return in_turn(self.calls)

    def result(self) -> Any:
        """What is judged."""
        return self.calls[0]() if self.results is None else self.results()


@dataclass(frozen=True)
class Way:
    """A variant of a case, apart from the mode in which it runs. The fields are those of `Variant`.

    graphs: whether a CUDA graph may have it, which can hold nothing that asks the device for numbers; other programs'
    may turn out not to be able to: where `ours` is false, that is no failure
    """

    name: str
    build: Callable[[], Built]
    sparsity: float | None = None
    graphs: bool = True
    ours: bool = True


def variants_of(case: Case, ways: Sequence[Way]) -> list[Variant]:
    """The ways to compute `case`, eager; on CUDA then all of them in CUDA graphs."""
    found = [Variant(way.name, _preparing(eager, way), way.sparsity) for way in ways]
    if case.device == "cuda":
        found += [Variant(f"{way.name}/graph", _preparing(in_graph, way), way.sparsity) for way in ways if way.graphs]
    return found


def _preparing(mode: Callable[[Callable[[], Built]], Prepared], way: Way) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        try:
            return mode(way.build)
        except NotCaptured as reason:
            if way.ours:
                raise
            raise Unavailable(str(reason)) from reason

    return prepare


def eager(build: Callable[[], Built]) -> Prepared:
    """What `build` makes, called as it is."""
    built = build()
    judge = built.judge
    with built.context():
        for one in built.calls[1:]:  # what is made at the first call is made for all sets
            one()

    def check() -> Verdict:
        assert judge is not None
        with built.context():
            results = built.result()
        return judge(results)

    call = built.call
    return Prepared(call, context=built.context, check=None if judge is None else check, details=built.details)


def in_graph(build: Callable[[], Built]) -> Prepared:
    """The same in a CUDA graph of several calls; what is checked comes out of a graph too."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a backward runs on the stream of its forward, which must be the captured one
        built = build()
        call = built.call
        with built.context():
            for _ in range(max(3, len(built.calls))):
                call()
            built.result()
    torch.cuda.synchronize()
    count = built.graphed or max(GRAPH_CALLS, len(built.calls))
    with built.context():
        timed, _ = capture(call, stream, count)
    judge = built.judge

    def check() -> Verdict:
        assert judge is not None
        with built.context():
            checked, results = capture(built.result, stream)
            checked.replay()
            torch.cuda.synchronize()
        return judge(results)

    return Prepared(timed.replay, calls=count, check=None if judge is None else check, details=built.details)


def capture(call: Call, stream: Any, count: int = 1) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of so many calls, which all ran before on `stream`; and what the last of them returned.

    Raises NotCaptured with the first reason; what ends a capture that failed raises another.
    """
    graph, result = torch.cuda.CUDAGraph(), None
    first: Exception | None = None
    try:
        with torch.cuda.graph(graph, stream=stream):
            try:
                for _ in range(count):
                    result = call()
            except Exception as reason:
                first = reason
                raise
    except Exception as reason:
        lines = str(first or reason).strip().splitlines()
        raise NotCaptured(f"a CUDA graph cannot have it: {lines[0] if lines else type(first or reason)}") from reason
    return graph, result


def in_turn(calls: Sequence[Call]) -> Call:
    """One call that runs the next of `calls` each time."""
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def cache_bytes(place: torch.device) -> int:
    """Of the L2 cache of a GPU, which its multiprocessors share; 0 elsewhere."""
    return torch.cuda.get_device_properties(place).L2_cache_size if place.type == "cuda" else 0


def sets_beyond_cache(device: str, size: int, most: int = GRAPH_CALLS) -> int:
    """How many sets of inputs of `size` bytes, called in turn, are out of the L2 cache before one comes again.

    That is twice what the cache holds, but no more than `most`. On the CPU, whose caches calls may use, one.
    """
    if device != "cuda":
        return 1
    return max(1, min(most, math.ceil(2 * cache_bytes(PLACES[device]) / max(1, size))))


def fastest(device: str, calls: Mapping[str, Call], effort: timing.Effort) -> str:
    """The name of the call whose fastest sample is the fastest, by the clock of `device`."""
    if device == "cpu" or len(calls) == 1:
        return timing.fastest(calls, effort)
    clock = timing.clock_of(device)

    def sampler(call: Call) -> timing.Sampler:
        return lambda repeats: clock.seconds(call, repeats) / repeats

    for call in calls.values():
        call()  # compiles, and lets libraries choose
    samples = timing.interleave({name: sampler(call) for name, call in calls.items()}, effort)
    return min(samples, key=lambda name: min(samples[name]))


@contextlib.contextmanager
def autotuned(device: str, wanted: bool = True) -> Iterator[None]:
    """On CUDA cuDNN times its algorithms and takes the fastest, which is what a user could choose; or it does not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted and device == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def precision(case: Case, convolution: bool) -> dict[str, str]:
    """For the details of a float32 case on CUDA, "precision": how torch lets tensor cores multiply, "ieee" or "tf32".

    That is torch's own setting, which it has for products of matrices and for convolutions: by default "tf32" for the
    latter alone. Ours does as torch is told.
    """
    if case.device != "cuda" or case.dtype != "float32":
        return {}
    return {"precision": float32_precision(convolution)}


def copy_of(weight: Format) -> Format:
    """The same weight in memory of its own, pattern and all."""
    if not weight.values.numel():
        return weight
    made: Any = type(weight).from_tensors({name: one.clone() for name, one in weight.to_tensors().items()})
    return made  # type: ignore[no-any-return]
