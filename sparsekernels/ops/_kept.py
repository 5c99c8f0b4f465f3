# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is worked out of the tensors of a pattern, kept as long as they live and nobody writes to them.

Kernel operators take tensors and numbers, not the pattern that they are of, and a graph holds no more: what a call
needs beside them is found again by the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class Kept(Generic[T]):
    """A memory of what `make` returned for some tensors and a key.

    It holds the first of the tensors weakly, and forgets with it. Tensors are told apart as objects, and by how often
    they were written to; those made in inference mode, which torch does not count that of, as objects alone.
    """

    def __init__(self) -> None:
        self._of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
        """What there is for `tensors` and `key`; what `make` returns where there is nothing.

        Args:
            tensors: Of the pattern; at least one.
            key: What else `make` depends on.
            make: Works it out.

        Returns:
            What `make` returned, now or before.
        """
        found: dict[Hashable, T] | None = self._of.get(tensors[0])
        if found is None:
            found = self._of[tensors[0]] = {}
        whole = (key, *((id(one), _version(one)) for one in tensors))
        if whole not in found:
            made = make()
            for stale in [old for old in found if old[0] == key]:  # type: ignore[index]
                del found[stale]
            found[whole] = made
        return found[whole]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
