# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model of bfloat16 or float16, or under autocast, gives in float32: by it, rounding is told from what is wrong.

A run in evaluation mode gives results; one in training mode buffers and gradients as well.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._torch import is_any_autocast_enabled, tree_leaves, tree_map_only
from .agreement import is_out_of_memory
from .arguments import Arguments
from .exactness import SHORT
from .watch.watching_mode import WatchingMode

_MOST_BYTES = 4 << 30
"""Of parameters and buffers, as they are, in float32, and their gradients: a larger model is not copied."""

T = TypeVar("T")
Run = Callable[[nn.Module, Callable[[], object]], T]
"""Takes a model and a call of it, and runs that."""


def _result_of(_: nn.Module, call: Callable[[], object]) -> object:
    return call()


def float32_run(model: nn.Module, arguments: Arguments, run: Run[T] = _result_of) -> T | None:  # type: ignore[assignment]
    """What `run` gives for a copy of `model` in float32 and a call with `arguments` in float32, without autocast.

    None for what has no short dtype or is large, where the copy cannot be made or called, for code may cast by itself,
    and where the copy shares tensors with the model. Raises what says that there is no memory.
    """
    tensors = list(_tensors_of(model))
    bytes_more = 8 if model.training else 4
    needed = sum(one.numel() * (one.element_size() + bytes_more) for one in tensors)
    is_short = any(one.dtype in SHORT for one in tensors) or is_any_autocast_enabled()
    if not is_short or needed > _MOST_BYTES:
        return None
    try:
        wide = copy.deepcopy(model)
        own = {one.data_ptr() for one in tensors}
        if any(one.numel() > 0 and one.data_ptr() in own for one in _tensors_of(wide)):
            return None  # a module may copy to itself: casting would be of the model
        args, kwargs = tree_map_only(Tensor, _wide, arguments.of_a_call())
        wide.float()
        with _no_autocast({"cpu", *(one.device.type for one in tensors)}):
            return run(wide, lambda: wide(*args, **kwargs))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None


@contextlib.contextmanager
def _no_autocast(devices: set[str]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in devices & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in SHORT else tensor


class Draws(WatchingMode):
    """Notes what is drawn of random numbers while it is active: in another dtype these may be others.

    draws: of each, the operator, the shape, and two sums by which the numbers are told from others.

    Higher-order operators (`torch.cond`) raise: what is drawn inside of them it would not see.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            for one in tree_leaves(result):
                if isinstance(one, Tensor):
                    numbers = one.detach().double().flatten()
                    places = torch.arange(1, numbers.numel() + 1, dtype=torch.float64, device=numbers.device)
                    sums = float(numbers.sum()), float(numbers @ places)
                    self.draws.append((str(func), tuple(one.shape), *sums))
        return result
