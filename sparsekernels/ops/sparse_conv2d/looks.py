# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a dense weight on a GPU is zero outside of its pattern, asked without waiting for the GPU in most calls.

A call waits for the answer where the weight is another tensor than in the last call, or has another version or address:
after a checkpoint was loaded or an adapter merged, say. Where it is being trained every step gives it another version;
then, and every `EVERY`-th call of a weight that is as it was, the GPU counts while the call goes on, and the next call
that finds the answer there acts on it. So a nonzero outside that an optimizer makes counts from the next step on, and
one that is written past the version (through `data`) within `EVERY` calls.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..._torch import is_captured

EVERY = 64
"""Calls between two looks at a weight of which nothing says that it was written to."""


class _Places(Protocol):
    @property
    def mask(self) -> Tensor: ...


def count(places: _Places, weight: Tensor) -> Tensor:
    """int64 []: how many nonzeros of a weight are outside of its places. Stays on the device."""
    with torch.no_grad():
        flat, indices = weight.detach().flatten(), getattr(places, "flat_indices", None)
        if indices is None:
            return (weight.detach() != 0).logical_and_(~places.mask).count_nonzero()
        return flat.count_nonzero() - flat.index_select(0, indices).count_nonzero()


class Answer:
    """A number that is on its way from a GPU."""

    def __init__(self, number: Tensor) -> None:
        """Start to copy `number`, which is computed on the current stream."""
        with torch.cuda.device(number.device):
            self._copy = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._copy.copy_(number, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> int | None:
        """The number; None where it is not there yet."""
        return int(self._copy) if self._arrived.query() else None


class Looks:
    """What a layer on a GPU knows of its weight."""

    __slots__ = ("_answer", "_calls", "_clean")

    def __init__(self) -> None:
        # places, version, address of a weight of which nothing outside is known, or is being counted
        self._clean: tuple[object, int, int] | None = None
        self._answer: Answer | None = None
        self._calls = 0

    def outside(self, places: _Places, weight: Tensor, same: bool, version: int, trained: bool) -> int:
        """How many nonzeros were found outside.

        Args:
            places: The pattern.
            weight: Dense, on a GPU.
            same: Whether the weight is the tensor of the last call.
            version: Of the weight; a negative one, for a tensor that has none, stays the same.
            trained: Whether the call will have gradients to the weight.

        Returns:
            The number; 0 where none is known of.

        Raises:
            RuntimeError: Where a CUDA graph is captured and the weight was not looked at as it is; while it is being
                trained, at all.
        """
        now = places, version, weight.data_ptr()
        clean = self._clean
        known = same and clean is not None and clean[0] is places
        answer = self._answer  # once: another thread may take it away
        if answer is not None:
            found = None if is_captured(weight) else answer.read()
            if found is not None:
                if self._answer is answer:
                    self._answer = None
                known = known and found == 0
        if is_captured(weight):
            if known and (clean == now or trained):
                return 0
            raise RuntimeError(
                "sparsekernels.nn: expected a call of the layer, with its weight as it is, before a CUDA graph of it is"
                " captured, got none: it looks for nonzeros outside of its pattern there"
            )
        if not known or (clean != now and not trained):
            return self._wait(places, weight, now)
        self._calls += 1
        if self._answer is None and (clean != now or self._calls % EVERY == 0):
            self._answer, self._clean = Answer(count(places, weight)), now
        return 0

    def _wait(self, places: _Places, weight: Tensor, now: tuple[object, int, int]) -> int:
        found = int(count(places, weight))
        self._answer = None
        self._clean = None if found else now
        return found
