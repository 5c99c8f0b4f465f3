# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Functions that prune, grow and redistribute in the form of sparse_learning, which are given the `Masking`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .functions import MaskFunction, largest_signal
from .updates import Updater

if TYPE_CHECKING:
    from .masking import Masking


class OldConvention(Updater):
    """Calls functions whose first parameter is called `masking` as sparse_learning does.

    These prune and grow about as many as they are asked to. What they grow too much of, or too little, is made good at
    the places of largest signal, so that the number of nonzeros is exact.
    """

    masking: Masking

    def _prune_one(
        self, name: str, prune: MaskFunction, weight: Tensor, signal: Tensor, mask: Tensor, count: int
    ) -> Tensor:
        if not _is_old(prune):
            return super()._prune_one(name, prune, weight, signal, mask, count)
        parameter = self._weights[name].parameter
        new = self._as_mask("prune", name, prune(self.masking, mask.float(), parameter.data, name), mask)  # type: ignore[call-arg,arg-type]
        self.masking.name2removed[name] = int((mask & ~new).count_nonzero())
        return new & mask

    def _grow_one(
        self, name: str, growth: MaskFunction, weight: Tensor, signal: Tensor, mask: Tensor, count: int
    ) -> Tensor:
        if not _is_old(growth):
            return super()._grow_one(name, growth, weight, signal, mask, count)
        parameter = self._weights[name].parameter
        new = mask | self._as_mask("growth", name, growth(self.masking, name, mask.clone(), count, parameter), mask)  # type: ignore[call-arg,arg-type]
        surplus = int((new & ~mask).count_nonzero()) - count
        if surplus > 0:  # those of largest signal among the new ones stay
            return largest_signal(weight, signal.masked_fill(~(new & ~mask), 0.0), mask, count) if count else mask
        return largest_signal(weight, signal, new, -surplus)

    def _share_of(self, name: str, weight: Tensor, signal: Tensor, mask: Tensor, pruned: int) -> float:
        share: Any = self.algorithm.share
        if not _is_old(share):
            return super()._share_of(name, weight, signal, mask, pruned)
        found = float(share(self.masking, name, self._weights[name].parameter, mask.float()))
        self.masking.name2variance[name] = found
        if not 0 <= found < float("inf"):
            raise ValueError(f"Masking: expected redistribution to return a number from 0 on for {name!r}, got {found}")
        return found

    def _as_mask(self, what: str, name: str, new: object, like: Tensor) -> Tensor:
        if not isinstance(new, Tensor) or new.shape != like.shape:
            given = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"Masking: expected {what} to return a mask {list(like.shape)} for {name!r}, got {given}")
        return new != 0


def _is_old(function: Any) -> bool:
    try:
        return next(iter(inspect.signature(function).parameters), None) == "masking"
    except (TypeError, ValueError):
        return False
