# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""torch's sparse layouts: a linear layer with its weight in CSR, or in BSR for zeros that are whole blocks.

There are several ways to write the product, and their times differ by a factor of five. All that this version of torch
has are tried when the job is made ready, and the fastest is measured; the record names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from networks import EFFORT, differentiated, load, named
from protocol import Engine, Job, Unavailable, serve
from torch import Tensor
from torch.nn import functional as F

from sparsekernels.timing import fastest

Call = Callable[[], tuple[Tensor, ...]]
Function = Callable[[Tensor, Tensor], Tensor]

WAYS: dict[str, Function] = {
    "(weight @ input.T).T": lambda input, weight: (weight @ input.t()).t(),
    "sparse.mm(weight, input.T).T": lambda input, weight: torch.sparse.mm(weight, input.t()).t(),
    "input @ weight.T": lambda input, weight: input @ weight.t(),
    "linear(input, weight)": F.linear,
}
"""The ways to write it. The first two return a transposed view."""


def prepare(job: Job) -> Engine:
    """The linear layer in the fastest of the ways, forward or with both gradients."""
    torch.set_num_threads(job["threads"])
    input, weight, grad_output = load(job, "input", "weight", "grad_output")
    packed = weight.to_sparse_csr() if job["layout"] == "csr" else weight.to_sparse_bsr((job["blocks"],) * 2)
    forward = job["pass"] == "forward"
    if forward:
        calls = {name: _product(function, input, packed) for name, function in WAYS.items()}
    else:
        calls = {name: differentiated(function, input, packed, grad_output) for name, function in WAYS.items()}
        if job["layout"] == "csr":
            calls["three products by hand"] = _by_hand(input, weight, packed, grad_output)
    with torch.inference_mode(forward):
        works, reason = _working(calls)
        if not works:
            raise Unavailable(f"torch has no {job['pass']} of a linear layer in {job['layout']}: {reason}")
        way = fastest(works, EFFORT)
    return Engine(
        call=works[way],
        results=lambda: named(job["pass"], works[way]()),
        context=lambda: torch.inference_mode(forward),
        versions={"torch": torch.__version__},
        details={"way": way, "blocks": job.get("blocks")},
    )


def _product(function: Function, input: Tensor, packed: Tensor) -> Call:
    return lambda: (function(input, packed),)


def _by_hand(input: Tensor, weight: Tensor, packed: Tensor, grad_output: Tensor) -> Call:
    """What a user could write for an autograd function: the weight gradient comes at the nonzeros."""
    transposed = weight.t().contiguous().to_sparse_csr()
    parts: tuple[Any, Any] = (packed.crow_indices(), packed.col_indices())
    pattern = torch.sparse_csr_tensor(*parts, torch.zeros_like(packed.values()), packed.shape)

    def call() -> tuple[Tensor, ...]:
        output = (packed @ input.t()).t()
        input_gradient = (transposed @ grad_output.t()).t()
        return output, input_gradient, torch.sparse.sampled_addmm(pattern, grad_output.t(), input, beta=0.0)

    return call


def _working(
    calls: dict[str, Call],
) -> tuple[dict[str, Call], str]:
    """Those of `calls` that torch has, and why it has not another."""
    works, reason = {}, ""
    for name, call in calls.items():
        try:
            call()
            works[name] = call
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
    return works, reason


if __name__ == "__main__":
    serve(prepare)
