# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of masked attention, and its kernel operators (csrc/masked_attention)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dispatch import Call, Implementation
from .._operation import Operation
from .._triton_support import supports_call
from ..precision import COMPUTED_IN_FLOAT32, wide_dtype
from . import reference
from .arguments import check_backward, check_forward


def _triton() -> Any:
    from . import triton

    return triton


def _supported_by_triton(call: Call) -> str | None:
    if call.dtype not in COMPUTED_IN_FLOAT32:
        return (
            f"it takes {', '.join(str(dtype)[6:] for dtype in COMPUTED_IN_FLOAT32)}, the input is {str(call.dtype)[6:]}"
        )
    return supports_call(call)


MASKED_ATTENTION = Operation(
    "masked_attention",
    reference,
    devices=("cpu",),
    others=(Implementation("triton", _supported_by_triton, _triton),),
    dtypes=COMPUTED_IN_FLOAT32,
)
compiled = MASKED_ATTENTION.compiled


def fake_forward(q: Tensor, k: Tensor, v: Tensor, bits: Tensor, scale: float, training: bool) -> tuple[Tensor, ...]:
    """Empty results."""
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    y = q.new_empty((*batch, q.size(-2), v.size(-1)))
    statistics = q.new_empty((*batch, q.size(-2), 2), dtype=wide_dtype(q))
    keeps_rest = training and wide_dtype(q) != q.dtype
    return y, statistics, torch.empty_like(y) if keeps_rest else q.new_empty(0)


def fake_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Empty gradients."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


forward: Any = MASKED_ATTENTION.kernel(
    "forward",
    "_masked_attention(Tensor q, Tensor k, Tensor v, Tensor bits, float scale, bool training)"
    " -> (Tensor, Tensor, Tensor)",
    fake_forward,
    check=check_forward,
)
backward: Any = MASKED_ATTENTION.kernel(
    "backward",
    "_masked_attention_backward(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor bits, Tensor y,"
    " Tensor statistics, Tensor rest, float scale) -> (Tensor, Tensor, Tensor)",
    fake_backward,
    check=check_backward,
    input=1,
)
