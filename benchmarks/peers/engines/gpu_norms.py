# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""RMSNorm of other packages, of torch and ours, on a GPU: eager or in a CUDA graph, timed by events."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from protocol import Engine, Job, Unavailable, serve
from torch import Tensor

GRAPH_CALLS = 20
"""Calls in a CUDA graph; at most as many copies of the inputs alternate, so that the L2 cache does not hold them."""

Norm = Callable[[Tensor, Tensor, float], Tensor]
"""Of the input, the weight and eps: the output."""


def _torch() -> Norm:
    return lambda x, weight, eps: torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def _ours() -> Norm:
    import sparsekernels

    return lambda x, weight, eps: sparsekernels.rms_norm(x, weight.shape, weight, eps)


def _liger() -> Norm:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # not in place: that would overwrite the gradient of the output, which is used again
    return lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def _quack() -> Norm:
    from quack import rmsnorm

    return lambda x, weight, eps: rmsnorm(x, weight, eps=eps)


def _flashinfer() -> Norm:
    import flashinfer

    return lambda x, weight, eps: flashinfer.norm.rmsnorm(x, weight, eps=eps)


WAYS: dict[str, tuple[Callable[[], Norm], str]] = {
    "torch": (_torch, "torch"),
    "ours": (_ours, "sparsekernels"),
    "liger": (_liger, "liger-kernel"),
    "quack": (_quack, "quack-kernels"),
    "flashinfer": (_flashinfer, "flashinfer-python"),
}
"""By the way of a job: what gives the norm, and the package whose version counts."""

FORWARD_ALONE = ("flashinfer",)


def prepare(job: Job) -> Engine:
    """The pass in the way that the job names."""
    device, pass_ = torch.device(job["device"]), job["pass"]
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no GPU in this environment")
    if job["way"] in FORWARD_ALONE and pass_ != "forward":
        raise Unavailable(f"{job['way']} has no backward pass")
    make, package = WAYS[job["way"]]
    norm, dtype, eps = make(), getattr(torch, job["dtype"]), job["eps"]
    given = [torch.from_numpy(np.load(job[name])).to(device, dtype) for name in ("x", "weight", "grad_output")]
    sets = [given, *([one.clone() for one in given] for _ in range(_sets(given[0]) - 1))]
    training = pass_ != "forward"

    def call_of(x: Tensor, weight: Tensor, gradient: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        if not training:
            return lambda: (norm(x, weight, eps),)
        x.requires_grad_()
        weight.requires_grad_()
        if pass_ == "forward+backward":
            return lambda: torch.autograd.grad(norm(x, weight, eps), (x, weight), gradient)
        y = norm(x, weight, eps)
        return lambda: torch.autograd.grad(y, (x, weight), gradient, retain_graph=True)

    def build() -> Callable[[], object]:
        turns = itertools.cycle([call_of(*one) for one in sets])
        return lambda: next(turns)()

    def results() -> dict[str, np.ndarray]:
        x, weight, gradient = given
        y = norm(x, weight, eps)
        found = [y, *(torch.autograd.grad(y, (x, weight), gradient) if training else ())]
        names = ("output", "input gradient", "weight gradient")
        return {name: one.detach().float().cpu().numpy() for name, one in zip(names, found, strict=False)}

    context = torch.enable_grad if training else torch.no_grad
    call, calls = build(), 1
    if job["graph"]:
        with context():
            call, calls = _captured(build, len(sets))
    return Engine(
        call=call,
        results=results,
        context=context,
        versions={package: importlib.metadata.version(package), "torch": torch.__version__},
        seconds=_events(call, calls) if device.type == "cuda" else None,
    )


def _sets(x: Tensor) -> int:
    """So many that together they are twice what the L2 cache holds."""
    if not x.is_cuda:
        return 1
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    return max(1, min(GRAPH_CALLS, math.ceil(2 * cache / (x.numel() * x.element_size()))))


def _captured(build: Callable[[], Callable[[], object]], sets: int) -> tuple[Callable[[], object], int]:
    """A CUDA graph of several calls, and how many."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a backward runs on the stream of its forward
        call = build()
        for _ in range(max(3, sets)):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(GRAPH_CALLS):
                call()
    except Exception as reason:
        raise Unavailable(f"a CUDA graph cannot have it: {str(reason).splitlines()[0]}") from reason
    return graph.replay, GRAPH_CALLS


def _events(call: Callable[[], object], calls: int) -> Callable[[int], float]:
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


if __name__ == "__main__":
    serve(prepare)
