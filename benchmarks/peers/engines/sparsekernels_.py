# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Ours: a network after `sparsekernels.convert`, a linear layer as `sparsekernels.nn.SparseLinear`."""

from __future__ import annotations

from collections import Counter

import torch
from networks import load, named, network
from protocol import Engine, Job, Unavailable, serve
from torch import Tensor

import sparsekernels


def prepare(job: Job) -> Engine:
    """The converted network on contiguous images, or the layer, forward or with both gradients."""
    torch.set_num_threads(job["threads"])
    return _network(job) if job["kind"] == "network" else _linear(job)


def _network(job: Job) -> Engine:
    if not hasattr(sparsekernels, "convert"):
        raise Unavailable(f"sparsekernels {sparsekernels.__version__} has no convert")
    model, (input,) = network(job), load(job, "input")
    if job["dtype"] == "bfloat16":
        model, input = model.bfloat16(), input.bfloat16()
    report = sparsekernels.convert(model, input)
    return Engine(
        call=lambda: model(input),
        results=lambda: named(job["pass"], (model(input),)),
        context=torch.inference_mode,
        versions={"sparsekernels": sparsekernels.__version__, "torch": torch.__version__},
        details={"layers": dict(Counter(row.decision for row in report.layers))},
    )


def _linear(job: Job) -> Engine:
    input, weight, grad_output = load(job, "input", "weight", "grad_output")
    forward = job["pass"] == "forward"
    rows, columns = weight.shape
    dense = torch.nn.Linear(columns, rows, bias=False)
    dense.weight.data = weight
    layer = sparsekernels.nn.SparseLinear.from_dense(dense)
    input.requires_grad_(not forward)

    def call() -> tuple[Tensor, ...]:
        output = layer(input)
        return (output,) if forward else (output, *torch.autograd.grad(output, (input, layer.weight), grad_output))

    return Engine(
        call=call,
        results=lambda: named(job["pass"], call()),
        context=lambda: torch.inference_mode(forward),
        versions={"sparsekernels": sparsekernels.__version__, "torch": torch.__version__},
    )


if __name__ == "__main__":
    serve(prepare)
