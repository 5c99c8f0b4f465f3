# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model of bfloat16 or float16 gives in float32: the measure of how far off its rounding takes it."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

from .._torch import tree_map_only
from .arguments import Arguments

_MOST_BYTES = 4 << 30
"""Of parameters and buffers in float32: a larger model is not copied to be compared."""

_SHORT = (torch.bfloat16, torch.float16)


def float32_run(model: nn.Module, arguments: Arguments) -> object | None:
    """The result of a copy of `model` in float32, called with `arguments` in float32.

    None for what has no short dtype or is large, and where the copy cannot be made or called: code may cast by itself.
    """
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    if all(one.dtype not in _SHORT for one in tensors) or sum(one.numel() for one in tensors) > _MOST_BYTES // 4:
        return None
    try:
        wide = copy.deepcopy(model).float()
        args, kwargs = tree_map_only(Tensor, _wide, arguments.of_a_call())
        return wide(*args, **kwargs)  # type: ignore[no-any-return]
    except Exception:
        return None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _SHORT else tensor
