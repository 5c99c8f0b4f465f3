# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model of bfloat16 or float16 gives in float32: the measure of how far off its rounding takes it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .._torch import tree_map_only
from .agreement import is_out_of_memory
from .arguments import Arguments

_MOST_BYTES = 4 << 30
"""Of parameters and buffers, as they are and in float32: a larger model is not copied to be compared."""

_SHORT = (torch.bfloat16, torch.float16)


def float32_run(model: nn.Module, arguments: Arguments) -> object | None:
    """The result of a copy of `model` in float32, called with `arguments` in float32.

    None for what has no short dtype or is large, where the copy cannot be made or called, for code may cast by itself,
    and where the copy shares tensors with the model. Raises what says that there is no memory.
    """
    tensors = list(_tensors_of(model))
    needed = sum(one.numel() * (one.element_size() + 4) for one in tensors)
    if all(one.dtype not in _SHORT for one in tensors) or needed > _MOST_BYTES:
        return None
    try:
        wide = copy.deepcopy(model)
        own = {one.data_ptr() for one in tensors}
        if any(one.numel() > 0 and one.data_ptr() in own for one in _tensors_of(wide)):
            return None  # a module may copy to itself: casting would be of the model
        args, kwargs = tree_map_only(Tensor, _wide, arguments.of_a_call())
        return wide.float()(*args, **kwargs)  # type: ignore[no-any-return]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _SHORT else tensor
