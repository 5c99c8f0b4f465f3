# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""torch's eager modules on the dense weight, zeros and all."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from networks import EFFORT, differentiated, load, named, network
from protocol import Engine, Job, serve
from torch import Tensor
from torch.nn import functional as F

from sparsekernels.timing import fastest

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def prepare(job: Job) -> Engine:
    """The network in the faster of the layouts, weights and images alike converted beforehand; or the linear layer."""
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    calls = _networks(job, dtype) if job["kind"] == "network" else {"": _linear(job, dtype)}
    forward = job["pass"] == "forward"
    with torch.inference_mode(forward):
        layout = fastest(calls, EFFORT)
    call = calls[layout]
    return Engine(
        call=call,
        results=lambda: named(job["pass"], call()),
        context=lambda: torch.inference_mode(forward),
        versions={"torch": torch.__version__},
        details={"layout": layout} if layout else {},
    )


def _networks(job: Job, dtype: torch.dtype) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    (input,), original = load(job, "input"), network(job).to(dtype)

    def call_in(layout: torch.memory_format) -> Callable[[], tuple[Tensor, ...]]:
        model = copy.deepcopy(original)
        model.to(memory_format=layout)  # type: ignore[call-overload]
        images = input.to(dtype=dtype, memory_format=layout if input.dim() == 4 else torch.contiguous_format)
        return lambda: (model(images),)

    return {name: call_in(layout) for name, layout in LAYOUTS.items()}


def _linear(job: Job, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
    tensors = [tensor.to(dtype) for tensor in load(job, "input", "weight", "grad_output")]
    if job["pass"] != "forward":
        return differentiated(F.linear, *tensors)
    input, weight, _ = tensors
    return lambda: (F.linear(input, weight),)


if __name__ == "__main__":
    serve(prepare)
