# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of batch_norm_act, and its kernel operators.

The compiled kernels (csrc/batch_norm) are for contiguous float32 on the CPU. Their results have the same bits for any
number of threads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .._operation import Operation, by_reference, compiled_on
from . import reference
from .arguments import check_backward, check_forward, words_of

_DTYPES = (torch.float32,)

compiled = SimpleNamespace()

BATCH_NORM = Operation(
    "batch_norm",
    (compiled_on("cpu", compiled, _DTYPES), by_reference(reference)),
    compiled,
    dtypes=_DTYPES,
)


def fake_forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    low: float | None,
    high: float | None,
    p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    check_forward(input, residual, weight, bias, eps, low, high, p, seed)
    passes_all = low is None and high is None and reference.threshold_of(p) == 0
    words = 0 if passes_all else input.size(0) * input.size(1) * words_of(input)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    output = torch.empty_like(input, memory_format=torch.contiguous_format)
    statistics = input.new_empty((3, input.size(1)), dtype=wide)
    return output, statistics, input.new_empty(words, dtype=torch.int16)


def _fake_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    kept: Tensor,
    p: float,
    need_input: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    def like_input(needed: bool) -> Tensor:
        return torch.empty_like(input, memory_format=torch.contiguous_format) if needed else input.new_empty(0)

    return like_input(need_input), statistics.new_empty((2, input.size(1))), like_input(need_residual)


forward: Any = BATCH_NORM.kernel(
    "forward",
    "_batch_norm_act(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, float? low, float? high,"
    " float p, int seed) -> (Tensor, Tensor, Tensor)",
    fake_forward,
    check=check_forward,
)
backward: Any = BATCH_NORM.kernel(
    "backward",
    "_batch_norm_act_backward(Tensor gradient, Tensor input, Tensor? weight, Tensor statistics, Tensor kept, float p,"
    " bool need_input, bool need_residual) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    check=check_backward,
    input=1,
)
