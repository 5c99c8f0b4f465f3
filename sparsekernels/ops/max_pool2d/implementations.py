# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of max_pool2d, and its kernel operators: torch's own function takes as long as half a sparse network.

The compiled kernels (csrc/max_pool2d) are for [N, C, H, W] on the CPU, contiguous or channels_last; those of the
gradient for contiguous float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._operation import Operation
from ..precision import COMPUTED_IN_FLOAT32
from . import reference

MAX_POOL2D = Operation("max_pool2d", reference, devices=("cpu",), dtypes=COMPUTED_IN_FLOAT32)
compiled = MAX_POOL2D.compiled


def check_forward(input: Tensor, window: Sequence[int]) -> None:
    """Raise ValueError for what does not fit."""
    if input.dim() not in (3, 4):
        raise ValueError(f"max_pool2d: expected input [N, C, H, W] or [C, H, W], got {list(input.shape)}")
    fits = len(window) == 6 and min(window[:4]) >= 1 and min(window[4:]) >= 0
    if not fits or any(2 * padding > size for padding, size in zip(window[4:], window[:2], strict=True)):
        expected = "window (kh, kw, sh, sw, ph, pw), padding at most half of the kernel's size"
        raise ValueError(f"max_pool2d: expected {expected}, got {list(window)}")
    sizes = zip(input.shape[-2:], window[:2], window[4:], strict=True)
    if any(size + 2 * padding < kernel for size, kernel, padding in sizes):
        raise ValueError(f"max_pool2d: expected a window that fits the input, got {list(window)}, {list(input.shape)}")


def check_backward(gradient: Tensor, places: Tensor, size: Sequence[int]) -> None:
    """Raise ValueError for what does not fit; reads `places`."""
    if gradient.shape != places.shape or gradient.dim() != 4:
        shapes = f"{list(gradient.shape)} and {list(places.shape)}"
        raise ValueError(f"max_pool2d: expected gradient and places of one shape [N, C, H, W], got {shapes}")
    if gradient.device != places.device:
        raise ValueError(f"max_pool2d: expected places on {gradient.device} like gradient, got {places.device}")
    if places.dtype != torch.int32:
        raise ValueError(f"max_pool2d: expected places of torch.int32, got {places.dtype}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"max_pool2d: expected size to be height and width, got {list(size)}")
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < size[0] * size[1]:
        found = f"{int(places.min())} to {int(places.max())}"
        raise ValueError(f"max_pool2d: expected places from 0 to {size[0] * size[1] - 1}, got {found}")


forward: Any = MAX_POOL2D.kernel("forward", "_max_pool2d(Tensor input, int[] window) -> Tensor", check=check_forward)
forward_with_places: Any = MAX_POOL2D.kernel(
    "forward_with_places",
    "_max_pool2d_places(Tensor input, int[] window) -> (Tensor, Tensor)",
    check=check_forward,
)
backward: Any = MAX_POOL2D.kernel(
    "backward",
    "_max_pool2d_backward(Tensor gradient, Tensor places, int[] size) -> Tensor",
    check=check_backward,
)
