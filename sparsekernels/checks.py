# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The checks of tensors that all operations share, and their error messages."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The floating dtypes that the operations accept."""


def check_dtype(where: str, dtype: object) -> None:
    """Raise TypeError unless it is one of `DTYPES`."""
    if dtype not in DTYPES:
        accepted = ", ".join(map(str, DTYPES[:-1]))
        raise TypeError(f"{where}: expected dtype {accepted} or {DTYPES[-1]}, got {dtype!r}")


def check_tensor(where: str, name: str, tensor: object) -> Tensor:
    """Return it; raise TypeError unless it is a tensor with strides, of one of `DTYPES`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{where}: expected {name} to be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise TypeError(
            f"{where}: expected {name} to be a tensor of one shape, got a nested tensor; give it one by one, as its"
            " unbind() has them, or padded, as its to_padded_tensor(0.0)"
        )
    if tensor.dtype not in DTYPES:
        accepted = ", ".join(map(str, DTYPES[:-1]))
        raise TypeError(f"{where}: expected {name} of dtype {accepted} or {DTYPES[-1]}, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{where}: expected {name} of layout torch.strided, got {tensor.layout}")
    return tensor


def check_mask(where: str, mask: object) -> Tensor:
    """Return it; raise TypeError unless it is a tensor of bool."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{where}: expected mask to be a tensor of dtype torch.bool, got {given}")
    return mask
