# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""RMSNorm of other packages, of torch and ours, on a GPU: eager or in a CUDA graph, timed by events."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_calls import Operation, check_device, engine_of
from protocol import Engine, Job, Unavailable, serve
from torch import Tensor

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
    check_device(job)
    if job["way"] in FORWARD_ALONE and job["pass"] != "forward":
        raise Unavailable(f"{job['way']} has no backward pass")
    make, package = WAYS[job["way"]]
    norm, eps = make(), job["eps"]
    return engine_of(job, lambda weight: {"": Operation(lambda x, own: norm(x, own, eps), weight)}, package)


if __name__ == "__main__":
    serve(prepare)
