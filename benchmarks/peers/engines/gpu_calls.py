# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What engines on a GPU share: a pass through autograd, inputs in turn, CUDA graphs, and the device's own clock.

Only torch and numpy are imported here: this runs in every engine's environment.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from protocol import Engine, Job, Unavailable
from torch import Tensor

GRAPH_CALLS = 20
"""Calls in a CUDA graph; at most as many copies of the inputs alternate, so that the L2 cache does not hold them."""

TRIALS = 3
"""Calls by which the fastest of several ways is found, after two that are not timed."""

NAMES = ("output", "input gradient", "weight gradient")

Call = Callable[[], object]


@dataclass(frozen=True)
class Operation:
    """An operation with its weight.

    run     of the input and `weight`: the output
    weight  a leaf, in whatever form the operation keeps it
    dense   a gradient to `weight` in the form in which it is judged
    """

    run: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor
    dense: Callable[[Tensor], Tensor] = lambda gradient: gradient


Make = Callable[[Tensor], Mapping[str, Operation]]
"""Of the weight as the files have it: the ways to compute the operation, by name."""


def check_device(job: Job) -> None:
    """Raises `Unavailable` where torch sees no GPU and the job wants one."""
    if job["device"] == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no GPU in this environment")


def engine_of(job: Job, make: Make, package: str) -> Engine:
    """The pass of the job, in the fastest of the ways that `make` has; the version of `package` counts.

    The passes: "forward"; "backward", that of an output that is there already; "all" and "forward+backward", both.
    """
    device, pass_ = torch.device(job["device"]), job["pass"]
    dtype, names = getattr(torch, job["dtype"]), ("x", "weight", "grad_output")
    given = [torch.from_numpy(np.load(job[name])).to(device, dtype) for name in names]
    sets = [given, *([one.clone() for one in given] for _ in range(_sets(given[0]) - 1))]
    context = torch.no_grad if pass_ == "forward" else torch.enable_grad
    with context():
        way, details = _choose(job, make, given)

    def build() -> Call:
        return _in_turn([_call_of(pass_, make(weight)[way], x, grad) for x, weight, grad in sets])

    def results() -> dict[str, np.ndarray]:
        x, weight, grad = given
        operation = make(weight)[way]
        found = list(_call_of("forward" if pass_ == "forward" else "all", operation, x, grad)())
        found[2:] = map(operation.dense, found[2:])
        return {name: one.detach().float().cpu().numpy() for name, one in zip(NAMES, found, strict=False)}

    with context():
        call, calls = _captured(build, len(sets)) if job["graph"] else (build(), 1)
    return Engine(
        call=call,
        results=results,
        context=context,
        versions={package: importlib.metadata.version(package), "torch": torch.__version__},
        details=details,
        seconds=_events(call, calls) if device.type == "cuda" else None,
    )


def _call_of(pass_: str, operation: Operation, x: Tensor, grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    run, weight = operation.run, operation.weight
    if pass_ == "forward":
        return lambda: (run(x, weight),)
    wanted = (x.requires_grad_(), weight.requires_grad_())
    if pass_ == "backward":
        output = run(x, weight)
        return lambda: torch.autograd.grad(output, wanted, grad, retain_graph=True)

    def both() -> tuple[Tensor, ...]:
        output = run(x, weight)
        return (output, *torch.autograd.grad(output, wanted, grad))

    return both


def _choose(job: Job, make: Make, given: Sequence[Tensor]) -> tuple[str, dict[str, str]]:
    """The name of the fastest way, and as details of the record. A single way is taken untried."""
    x, weight, grad = given
    ways = make(weight)
    if len(ways) == 1:
        return next(iter(ways)), {}
    seconds, reasons = {}, []
    for name, operation in ways.items():
        try:
            seconds[name] = _seconds_of(_call_of(job["pass"], operation, x, grad), x.device)
        except Exception as error:  # which ways there are depends on torch's build
            reasons.append(f"{name}: {error}".strip().splitlines()[0])
    if not seconds:
        raise Unavailable("; ".join(reasons))
    way = min(seconds, key=lambda name: seconds[name])
    return way, {"way": way}


def _seconds_of(call: Call, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(2):  # compiles, and lets autotuners choose
        call()
    wait()
    start = time.perf_counter()
    for _ in range(TRIALS):
        call()
    wait()
    return time.perf_counter() - start


def _in_turn(calls: Sequence[Call]) -> Call:
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def _sets(x: Tensor) -> int:
    """So many that together they are twice what the L2 cache holds."""
    if not x.is_cuda:
        return 1
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    return max(1, min(GRAPH_CALLS, math.ceil(2 * cache / (x.numel() * x.element_size()))))


def _captured(build: Callable[[], Call], sets: int) -> tuple[Call, int]:
    """A CUDA graph of several calls, and how many."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a backward runs on the stream of its forward
        call = build()
        for _ in range(max(3, sets)):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    first: Exception | None = None
    try:
        with torch.cuda.graph(graph, stream=stream):
            try:
                for _ in range(GRAPH_CALLS):
                    call()
            except Exception as reason:
                first = reason  # what ends a capture that failed raises another
                raise
    except Exception as reason:
        said = str(first or reason).strip().splitlines() or [type(first or reason).__name__]
        raise Unavailable(f"a CUDA graph cannot have it: {said[0]}") from reason
    return graph.replay, GRAPH_CALLS


def _events(call: Call, calls: int) -> Callable[[int], float]:
    """Seconds of so many calls; a call of a graph stands for several."""

    def seconds(repeats: int) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) * 1e-3 / calls

    return seconds
