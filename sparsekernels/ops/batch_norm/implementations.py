# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of batch_norm_act, and its kernel operators.

The compiled kernels (csrc/batch_norm) are for contiguous float32 on the CPU. Their results have the same bits for any
number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._operation import Operation
from ..precision import wide_dtype
from . import reference
from .arguments import check_backward, check_forward, words_of

BATCH_NORM = Operation("batch_norm", reference, devices=("cpu",), dtypes=(torch.float32,))
compiled = BATCH_NORM.compiled


def fake_forward(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    check_forward(input, *arguments)
    low, high, p = arguments[4:7]
    passes_all = low is None and high is None and reference.threshold_of(p) == 0
    words = 0 if passes_all else input.size(0) * input.size(1) * words_of(input)
    output = torch.empty_like(input, memory_format=torch.contiguous_format)
    statistics = input.new_empty((3, input.size(1)), dtype=wide_dtype(input))
    return output, statistics, input.new_empty(words, dtype=torch.int16)


def _fake_backward(gradient: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, statistics, _, _, need_input, need_residual = arguments

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
