# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters and buffers at their places, and what tells that one is another or was written to."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...ops.fingerprint.op import fingerprint, swaps_tensors

Place = tuple[dict[str, Any], str]
"""Where a tensor is kept, and under which name."""

_version = operator.attrgetter("_version")


class Tensors:
    """Tensors at their places, as they are when this is made.

    content: whether what they hold is looked at as well, which takes as long as reading it. Else a write counts where
    torch counts it.
    """

    def __init__(self, found: Sequence[tuple[dict[str, Any], str, Tensor]], content: bool) -> None:
        # compared in two ways, see `_are_there`
        self._many = _Placed([entry for entry in found if entry[2].numel() != 1])
        self._single = _Placed([entry for entry in found if entry[2].numel() == 1])
        self._tensors = [*self._many.tensors, *self._single.tensors]
        self._versions = list(map(_version, self._tensors))
        self._sum_of_versions = sum(self._versions)
        self._content = content
        self._swaps = swaps_tensors()
        self._fingerprint = fingerprint(self._tensors)
        self._value = self._fingerprint.value(content)

    def changed(self) -> bool:
        """Asked in each call, so lists are compared and not tensor after tensor."""
        try:
            return not (
                self._are_there()
                and sum(map(_version, self._tensors)) == self._sum_of_versions  # none of them ever decreases
                and self._fingerprint.value(self._content) == self._value
                and swaps_tensors() is self._swaps
                and not (self._content and any(map(Tensor.is_neg, self._tensors)))
            )
        except (KeyError, RuntimeError):  # one is gone, is another, or is dense no longer
            return True

    def _are_there(self) -> bool:
        """`==` of lists looks at `is` first. Other tensors raise a RuntimeError then, save those of one element."""
        single = self._single
        return self._many.now() == self._many.tensors and all(map(operator.is_, single.now(), single.tensors))

    def changed_places(self) -> list[Place]:
        """Where the tensors are that `changed` tells of; all of them where that cannot be told."""
        places = [*self._many.entries(), *self._single.entries()]
        found = [
            (place, name)
            for (place, name), tensor, version in zip(places, self._tensors, self._versions, strict=True)
            if place.get(name) is not tensor or tensor._version != version
        ]
        return found or places


class _Placed:
    def __init__(self, found: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
        self._places = [place for place, _, _ in found]
        self._names = [name for _, name, _ in found]
        self.tensors = [tensor for _, _, tensor in found]

    def now(self) -> list[Any]:
        return list(map(operator.getitem, self._places, self._names))

    def entries(self) -> list[Place]:
        return list(zip(self._places, self._names, strict=True))
