# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_linear: the same bits, whatever the number of threads and whoever else calls."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest
import torch
from sparse_conv2d_cases import (
    DTYPES,
    Case,
    channels_last,
    inputs,
    ours,
    ragged,
    runs,
)
from torch import Tensor

STEADY = (
    Case("large batch", (64, 16, 12, 12), (32, 16, 3, 3), padding=1),
    Case("one large image", (1, 16, 33, 33), (32, 16, 3, 3), padding=1),
    Case("stride 2", (16, 16, 14, 14), (48, 16, 3, 3), stride=2, padding=1),
    Case("channels last", (8, 32, 14, 14), (32, 32, 3, 3), padding=1, view=channels_last),
    Case("1x1", (8, 64, 14, 14), (64, 64, 1, 1)),
    Case("ragged", (16, 16, 7, 7), (33, 16, 3, 3), padding=1, mask=ragged),
    Case("linear", (600, 64), (64, 64)),
    Case("linear of one row", (1, 512), (512, 512)),
)


@pytest.mark.parametrize("case", STEADY, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_bits_do_not_depend_on_threads(case: Case, dtype: torch.dtype) -> None:
    if ("cpu", "cpu") not in runs():
        pytest.skip("the reference is torch's own convolution, which promises nothing of the kind")
    weight, tensors = inputs(case, dtype, "cpu")
    function = ours(case, weight)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            y = function(*tensors)
            results.append((y.detach(), *torch.autograd.grad(y, tensors[:2], torch.ones_like(y) / 3)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", STEADY[1:], ids=lambda case: case.name)
def test_bits_do_not_depend_on_callers_beside(case: Case) -> None:
    """Eight Python threads, each with its own input, through one weight at once."""
    if ("cpu", "cpu") not in runs():
        pytest.skip("the reference is torch's own convolution, which promises nothing of the kind")
    weight, (input, values, *bias) = inputs(case, torch.float32, "cpu")
    threads = 8
    images = [(input.detach() + i).requires_grad_() for i in range(threads)]
    function = ours(case, weight)
    ready = threading.Barrier(threads)

    def both(i: int) -> tuple[Tensor, ...]:
        y = function(images[i], values, *bias)
        return y.detach(), *torch.autograd.grad(y, (images[i], values), torch.ones_like(y) / 3)

    def call(i: int) -> list[tuple[Tensor, ...]]:
        ready.wait(timeout=30)
        return [both(i) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(call, range(threads)))
    for i, calls in enumerate(found):
        alone = both(i)
        for beside in calls:
            assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
