# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A fingerprint of tensors by hashlib."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence

from torch import Tensor


class Fingerprint:
    """What tells whether any of `tensors` has moved, or holds something else. Keeps them alive.

    tensors: dense ones.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)

    def value(self, content: bool) -> int:
        """64 bits of where the tensors are: address, shape, strides, dtype and device. content: and of what they hold.

        Equal where nothing has changed, in one process.
        """
        digest = hashlib.blake2b(digest_size=8)
        for tensor in self._tensors:
            place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
            digest.update(repr(place).encode())
            if content and tensor.numel() > 0 and not tensor.is_meta:
                own = tensor.detach().cpu().contiguous()
                digest.update(ctypes.string_at(own.data_ptr(), own.numel() * own.element_size()))
        return int.from_bytes(digest.digest(), "little", signed=True)
