# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""Max pooling in plain torch, `torch.nn.functional.max_pool2d`.

    y[n, c, p, q] = max over (i, j) in the window of x[n, c, p * sh - ph + i, q * sw - pw + j], where that is inside

with window = (kh, kw, sh, sw, ph, pw). NaN is larger than anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def forward(input: Tensor, window: Sequence[int]) -> Tensor:
    """y."""
    return F.max_pool2d(input, tuple(window[:2]), tuple(window[2:4]), tuple(window[4:]))


def forward_with_places(input: Tensor, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    """y, and for each result the place in the plane of H * W elements that it comes from, int32.

    It is the first of elements that are equal, and the last NaN.
    """
    output, places = F.max_pool2d(input, tuple(window[:2]), tuple(window[2:4]), tuple(window[4:]), return_indices=True)
    return output, places.int()


def backward(gradient: Tensor, places: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient to an input of `size` (H, W): what comes in is added at its place."""
    images, channels = places.shape[:2]
    nowhere = gradient.new_zeros(images, channels, size[0] * size[1])
    found = nowhere.scatter_add(2, places.flatten(2).long(), gradient.flatten(2))
    return found.view(images, channels, *size)
