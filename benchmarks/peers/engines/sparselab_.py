# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""SparseLab's SparseLinear, with the weight of the job in place of the random one that it would draw."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import torch
from networks import load, named
from protocol import Engine, Job, serve
from torch import Tensor


def prepare(job: Job) -> Engine:
    """The layer, forward or with both gradients. Its weight gradient comes at the nonzeros."""
    import sparselab

    torch.set_num_threads(job["threads"])
    input, weight, grad_output = load(job, "input", "weight", "grad_output")
    forward = job["pass"] == "forward"
    layer = sparselab.SparseLinear(*reversed(weight.shape), bias=False, sparsity=job["sparsity"])
    layer._csr = sparselab.PaddedCSR.from_dense(weight)
    layer._values = torch.nn.Parameter(torch.from_numpy(np.asarray(layer._csr.values)))  # the layer's own values
    input.requires_grad_(not forward)

    def call() -> tuple[Tensor, ...]:
        output = layer(input)
        return (output,) if forward else (output, *torch.autograd.grad(output, (input, layer._values), grad_output))

    def dense(values: Tensor) -> Tensor:
        """A gradient in the layout of the values, as a matrix: only the layout itself knows which value is where."""
        own = layer._values.detach()
        kept = own.clone()
        own.copy_(values)
        matrix: Tensor = layer._csr.to_dense().clone()
        own.copy_(kept)
        return matrix

    def results() -> dict[str, np.ndarray]:
        found = call()
        return named(job["pass"], found if forward else (*found[:2], dense(found[2])))

    return Engine(
        call=call,
        results=results,
        context=lambda: torch.inference_mode(forward),
        versions={"sparselab": importlib.metadata.version("sparselab")},
    )


if __name__ == "__main__":
    serve(prepare)
