# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Random numbers from a counter, as the kernels draw them; in torch's own operations, for tests and other devices.

Source: Salmon, Moraes, Dror & Shaw, 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32-10.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of each counter, as int64 of at least 0 and below 2^32. counter: int64 tensors of one shape."""
    a, b, c, d = counter
    keys = [seed & _LOW, seed >> 32 & _LOW]
    for _ in range(_ROUNDS):
        high_a, low_a = _product(a, _MULTIPLIERS[0])
        high_c, low_c = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ keys[0], low_c, high_a ^ d ^ keys[1], low_a
        keys = [(key + step) & _LOW for key, step in zip(keys, _WEYL, strict=True)]
    return a, b, c, d


def _product(a: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Upper and lower half of a 64-bit product: int64 holds only 63 bits, so `by` is taken in halves."""
    upper, lower = a * (by >> 16), a * (by & 0xFFFF)
    middle = (upper & 0xFFFF) * 65536 + lower
    return (upper >> 16) + (middle >> 32), middle & _LOW


def drawn(images: int, channels: int, plane: int, seed: int, device: torch.device) -> Tensor:
    """[images, channels, plane], int64: a random number of 32 bits for each element.

    Element 64 g + 16 w + i of a plane has word w of counter (16 g + i, the plane's number in two words, 0).
    """
    groups = (plane + 63) // 64
    place = torch.arange(16 * groups, device=device).expand(images * channels, -1)
    number = torch.arange(images * channels, device=device)[:, None].expand_as(place)
    words = philox4x32((place, number & _LOW, number >> 32, torch.zeros_like(place)), seed)
    in_order = torch.stack([word.view(-1, groups, 16) for word in words], 2)
    return in_order.reshape(images, channels, 64 * groups)[:, :, :plane]
