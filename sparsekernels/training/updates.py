# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What one update of the topology makes of all masks, before anything is changed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .algorithms import Algorithm
from .allocation import allocate, magnitude_share, no_share, nonzeros_share
from .compact import CompactState
from .functions import MaskFunction, constant_fan_in
from .signals import momentum_of, random_like
from .weights import MaskedWeight, whole

_WITHOUT_SIGNAL = (no_share, nonzeros_share, magnitude_share)

NewUnits = dict[str, tuple[Tensor, Tensor]]
"""By the name of a weight: the units that were kept, and those that are used after growth."""


class Updater:
    """Applies the functions of an algorithm to all weights, and checks what they return.

    Args:
        where: Who asks, for errors.
        algorithm: Its functions.
        optimizer: Whose momentum is looked at.
        weights: By their names; read at each update.
        generator: Of random signals.
    """

    def __init__(
        self,
        where: str,
        algorithm: Algorithm,
        optimizer: Optimizer,
        weights: Mapping[str, MaskedWeight],
        generator: torch.Generator,
    ) -> None:
        self._where, self.algorithm, self.optimizer = where, algorithm, optimizer
        self._weights, self._generator = weights, generator
        self.compact: CompactState | None = None

    @torch.no_grad()
    def new_units(self, rate: float, gradual: Callable[[MaskedWeight], int]) -> NewUnits:
        """What each weight's mask becomes.

        Args:
            rate: The share of the kept weights that is pruned.
            gradual: How many units gradual pruning leaves of a weight now.

        Returns:
            Units that were kept, and those that are used after growth.

        Raises:
            FloatingPointError: For weights or signals that are not finite.
            RuntimeError: Where there is no momentum or gradient to look at.
            ValueError: For what a function returns, if it is no mask with the count that was asked for.
        """
        names = list(self._weights)
        weights, signals, masks = {}, {}, {}
        for name, one in self._weights.items():
            weights[name] = self._finite(name, "weights", _wide(one.units(whole(one.parameter))))
            masks[name] = one.units_of_mask(one.mask)
            signals[name] = self._finite(name, "signals", self._signal(one, masks[name]))
        used = {name: int(masks[name].count_nonzero()) for name in names}
        if self.algorithm.constant_fan_in:
            return {
                name: (new & masks[name], new)
                for name in names
                for new in [
                    constant_fan_in(
                        weights[name],
                        signals[name],
                        masks[name],
                        round(rate * used[name]),
                        self._weights[name].wanted,
                    )
                ]
            }
        kept = self._pruned(rate, gradual, weights, signals, masks, used)
        if self.algorithm.growth is None:
            return {name: (kept[name], kept[name]) for name in names}
        return self._grown(weights, signals, masks, kept)

    def _pruned(
        self,
        rate: float,
        gradual: Callable[[MaskedWeight], int],
        weights: Mapping[str, Tensor],
        signals: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        used: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What of each mask stays."""
        prune = self.algorithm.prune
        assert prune is not None
        if self.algorithm.gradual:
            counts = {name: used[name] - min(used[name], gradual(self._weights[name])) for name in masks}
        else:  # a layer keeps one at least: without any its network gives the same for every input
            counts = {name: min(round(rate * used[name]), max(used[name] - 1, 0)) for name in masks}
        if self.algorithm.prunes_globally:
            flat = [torch.cat([one[name].flatten() for name in masks]) for one in (weights, signals, masks)]
            total = sum(counts.values())
            new = self._checked("prune", prune(flat[0], flat[1], flat[2], total), flat[2], -total)
            return dict(zip(masks, _split(new, masks.values()), strict=True))
        return {
            name: self._prune_one(name, prune, weights[name], signals[name], masks[name], counts[name])
            for name in masks
        }

    def _prune_one(
        self, name: str, prune: MaskFunction, weight: Tensor, signal: Tensor, mask: Tensor, count: int
    ) -> Tensor:
        return self._checked("prune", prune(weight, signal, mask, count), mask, -count, name)

    def _grow_one(
        self, name: str, growth: MaskFunction, weight: Tensor, signal: Tensor, mask: Tensor, count: int
    ) -> Tensor:
        return self._checked("growth", growth(weight, signal, mask, count), mask, count, name)

    def _share_of(self, name: str, weight: Tensor, signal: Tensor, mask: Tensor, pruned: int) -> float:
        share = self.algorithm.share(weight, signal, mask, pruned)
        if not isinstance(share, numbers.Real) or not math.isfinite(share) or share < 0:
            raise ValueError(
                f"{self._where}: expected redistribution to return a number from 0 on for {name!r}, got {share!r}"
            )
        return float(share)

    def _grown(
        self,
        weights: Mapping[str, Tensor],
        signals: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
    ) -> NewUnits:
        growth = self.algorithm.growth
        assert growth is not None
        names = list(masks)
        stay = {name: int(kept[name].count_nonzero()) for name in names}
        total = sum(one.wanted for one in self._weights.values()) - sum(stay.values())
        if self.algorithm.grows_globally:
            flat = [torch.cat([one[name].flatten() for name in names]) for one in (weights, signals, kept)]
            new = self._checked("growth", growth(flat[0], flat[1], flat[2], total), flat[2], total)
            return {name: (kept[name], one) for name, one in zip(names, _split(new, kept.values()), strict=True)}
        pruned = {name: int(masks[name].count_nonzero()) - stay[name] for name in names}
        of_shares = {name: self._share_signal(self._weights[name], masks[name], signals[name]) for name in names}
        shares = [self._share_of(name, weights[name], of_shares[name], masks[name], pruned[name]) for name in names]
        rooms = [self._weights[name].count - stay[name] for name in names]
        counts = dict(zip(names, allocate(total, shares, rooms), strict=True))
        return {
            name: (kept[name], self._grow_one(name, growth, weights[name], signals[name], kept[name], counts[name]))
            for name in names
        }

    def _share_signal(self, one: MaskedWeight, mask: Tensor, signal: Tensor) -> Tensor:
        """What redistribution looks at, whatever growth does: the momentum, or, where there is none, the gradient."""
        if self.algorithm.share in _WITHOUT_SIGNAL or self.algorithm.signal == "momentum":
            return signal
        found = self._momentum(one)
        if found is None:
            found = None if one.parameter.grad is None else whole(one.parameter.grad)
        if found is None:
            raise RuntimeError(
                f"{self._where}: expected a momentum or a gradient of {one.name!r} to redistribute by, got none; update"
                " after a step, before gradients are set to None"
            )
        return self._finite(one.name, "signals", _wide(one.units(found)))

    def _momentum(self, one: MaskedWeight) -> Tensor | None:
        state = self.optimizer.state.get(one.parameter, {})
        if self.compact is not None:
            state = self.compact.expanded(one, state)
        momentum = momentum_of(state, one.parameter.shape)
        return None if momentum is None else whole(momentum)

    def _signal(self, one: MaskedWeight, mask: Tensor) -> Tensor:
        algorithm, parameter = self.algorithm, one.parameter
        if algorithm.growth is None:
            return torch.zeros((), device=mask.device).expand(mask.shape)
        if algorithm.signal == "random":
            return random_like(mask, self._generator)
        if algorithm.signal == "gradient":
            found = None if parameter.grad is None else whole(parameter.grad)
        else:
            found = self._momentum(one)
        if found is None:
            raise RuntimeError(
                f"{self._where}: expected a {algorithm.signal} of {one.name!r} to grow by, got none; update after a"
                " step of an optimizer that has one, before gradients are set to None"
            )
        return _wide(one.units(found))

    def _finite(self, name: str, what: str, tensor: Tensor) -> Tensor:
        if not is_finite(tensor):
            raise FloatingPointError(
                f"{self._where}: expected {what} that are finite, got NaN or infinite ones of {name!r}; masks are"
                " unchanged"
            )
        return tensor

    def _checked(self, what: str, new: object, old: Tensor, change: int, name: str | None = None) -> Tensor:
        """What a function gave, which may be a user's own."""
        of = "" if name is None else f" for {name!r}"
        if not isinstance(new, Tensor) or new.dtype != torch.bool or new.shape != old.shape:
            given = f"{new.dtype} {list(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"{self._where}: expected {what} to return a bool mask {list(old.shape)}{of}, got {given}")
        wrong = (
            int((new & ~old).count_nonzero()) if change < 0 or what == "prune" else int((old & ~new).count_nonzero())
        )
        count, expected = int(new.count_nonzero()), int(old.count_nonzero()) + change
        if wrong or count != expected:
            within = "of" if what == "prune" else "with all of"
            raise ValueError(
                f"{self._where}: expected {what} to return a mask {within} the kept weights, {expected} True{of}, got"
                f" {count} True and {wrong} elsewhere"
            )
        return new


def is_finite(tensor: Tensor) -> bool:
    """Whether all of it is; by the sum first, which takes a fortieth of the time, and where that is, all of it is.

    Args:
        tensor: Of a floating dtype.

    Returns:
        Whether it is.
    """
    if math.isfinite(tensor.sum(dtype=torch.float32 if tensor.dtype.itemsize < 4 else None).item()):
        return True
    return bool(tensor.isfinite().all())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _split(flat: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    like = list(like)
    parts = flat.split([one.numel() for one in like])
    return [part.view(one.shape) for part, one in zip(parts, like, strict=True)]
