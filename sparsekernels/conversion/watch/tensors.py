# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters and buffers at their places, and what tells that one is another or was written to."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...ops.fingerprint.op import fingerprint, swaps_tensors
from .entries import Entry, Equal, Same

Place = tuple[dict[str, Any], str]
"""Where a tensor is kept, and under which name."""

_version = operator.attrgetter("_version")
_shape, _dtype = operator.attrgetter("shape"), operator.attrgetter("dtype")


class Tensors:
    """Tensors at their places, as they are when this is made.

    content: whether what they hold is looked at as well, which takes as long as reading it. Else a write counts where
    torch counts it.
    """

    def __init__(self, found: Sequence[Entry], content: bool) -> None:
        self._found = list(found)
        self._tensors = [tensor for _, _, tensor in self._found]
        # `==` of others raises, save of those with one element, of which it tells too little
        self._many = Equal(entry for entry in self._found if entry[2].numel() != 1)
        self._single = Same(entry for entry in self._found if entry[2].numel() == 1)
        self._versions = list(map(_version, self._tensors))
        self._counted = [tensor for tensor in self._tensors if not (content and tensor.is_cpu)]
        self._sum_of_versions = sum(map(_version, self._counted))
        self._content = content
        self._swaps = swaps_tensors()
        # of the CPU's; others are too far to look at what they hold, and their versions count
        self._fingerprint = fingerprint([tensor for tensor in self._tensors if tensor.is_cpu])
        self._value = self._fingerprint.value(content)
        self._elsewhere = [tensor for tensor in self._tensors if not tensor.is_cpu]
        self._places_elsewhere = _places_of(self._elsewhere)
        # its memory is a part of that of complex numbers, and the same memory can stand for their conjugates
        self._perhaps_negative = [tensor for tensor in self._tensors if content and _is_part(tensor)]
        self._negative = list(map(Tensor.is_neg, self._perhaps_negative))

    def changed(self) -> bool:
        """Asked in each call, so lists are compared and not tensor after tensor."""
        try:
            return not (
                self._many.holds()
                and self._single.holds()
                and sum(map(_version, self._counted)) == self._sum_of_versions  # none of them ever decreases
                and self._fingerprint.value(self._content) == self._value
                and _places_of(self._elsewhere) == self._places_elsewhere
                and swaps_tensors() is self._swaps
                and list(map(Tensor.is_neg, self._perhaps_negative)) == self._negative
            )
        except Exception:  # one is dense no longer, or has been given another class
            return True

    def untouched(self) -> bool:
        """Whether nobody wrote to them since, also what they held before, as another thread may that writes to and fro.

        What they hold comes first: torch counts a write behind it, and before the next one.
        """
        try:
            return not self.changed() and list(map(_version, self._tensors)) == self._versions
        except Exception:  # as in `changed`
            return False

    def changed_places(self) -> list[Place]:
        """Where the tensors are that `changed` tells of; all of them where that cannot be told."""
        found = [
            (place, name)
            for (place, name, _), tensor, version in zip(self._found, self._tensors, self._versions, strict=True)
            if tensor._version != version or place.get(name) is not tensor
        ]
        return found or [(place, name) for place, name, _ in self._found]


def _places_of(tensors: Sequence[Tensor]) -> list[object]:
    """Where they lie, and as what: asked in each call, so of all of them at a time."""
    return [
        list(map(Tensor.data_ptr, tensors)),
        list(map(_shape, tensors)),
        list(map(Tensor.stride, tensors)),
        list(map(_dtype, tensors)),
    ]


def _is_part(tensor: Tensor) -> bool:
    """Of the memory of something larger."""
    return tensor.untyped_storage().nbytes() > tensor.nbytes
