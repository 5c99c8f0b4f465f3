# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The type that operations compute in: float32, or float64 where the input is float64. Results are rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

COMPUTED_IN_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that are."""


def wide_dtype(input: Tensor) -> torch.dtype:
    """The type that a call on `input` computes in."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in that type."""
    return tensor.to(wide_dtype(tensor))
