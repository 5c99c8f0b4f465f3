# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masked products on torch: dense and then the mask, `sampled_addmm`, and ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from protocol import Engine, Job, serve
from torch import Tensor

import sparsekernels


def prepare(job: Job) -> Engine:
    """The product in the way that the job names."""
    torch.set_num_threads(job["threads"])
    a, b, mask = (torch.from_numpy(np.load(job[name])) for name in ("a", "b", "mask"))
    ways: dict[str, Callable[[], Callable[[], Tensor]]] = {
        "dense": lambda: lambda: (a @ b).mul_(mask),
        "sampled": lambda: _sampled(a, b, mask),
        "ours": lambda: _ours(a, b, mask),
    }
    call = ways[job["way"]]()
    return Engine(
        call=call,
        results=lambda: {"output": _dense(call())},
        context=torch.no_grad,  # sampled_addmm fails in inference mode
        versions={"sparsekernels": sparsekernels.__version__, "torch": torch.__version__},
    )


def _sampled(a: Tensor, b: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    sparse = mask.float().to_sparse_csr()
    return lambda: torch.sparse.sampled_addmm(sparse, a, b, beta=0.0)


def _ours(a: Tensor, b: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    prepared = sparsekernels.prepare_mask(mask)
    return lambda: sparsekernels.masked_matmul(a, b, prepared)


def _dense(result: Tensor) -> np.ndarray:
    found: np.ndarray = (result.to_dense() if result.layout is torch.sparse_csr else result).numpy()
    return found


if __name__ == "__main__":
    serve(prepare)
