# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What one update of the topology makes of all masks, before anything is changed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .algorithms import Algorithm
from .allocation import allocate, magnitude_share, momentum_share, no_share, nonzeros_share
from .compact import CompactState
from .functions import SALIENCY, MaskFunction, constant_fan_in, largest_signal, magnitude, neurons, set_pruning
from .signals import momentum_of, random_like
from .weights import MaskedWeight, whole

_OURS = (magnitude, set_pruning, largest_signal, neurons, momentum_share, magnitude_share, nonzeros_share, no_share)

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
        self.gradients: tuple[int, dict[str, Tensor]] = (-1, {})
        """Of which step, counted from 1, and what they were before it: those of missing weights as well."""

    @torch.no_grad()
    def new_units(self, rate: float, steps: int, gradual: Callable[[MaskedWeight], int]) -> NewUnits:
        """What each weight's mask becomes.

        Args:
            rate: The share of the kept weights that is pruned.
            steps: How many the optimizer has made.
            gradual: How many units gradual pruning leaves of a weight now.

        Returns:
            Units that were kept, and those that are used after growth.

        Raises:
            FloatingPointError: For weights or signals that are not finite.
            RuntimeError: Where there is no momentum or gradient to look at.
            ValueError: For what a function returns, if it is no mask with the count that was asked for.
        """
        weights, signals, masks = {}, {}, {}
        without: list[str] = []
        for name, one in self._weights.items():
            mask = one.units_of_mask(one.mask)
            signal = self._signal(one, mask, steps)
            if signal is None:  # of a layer that took no part, or is frozen by now: it stays as it is
                without.append(name)
                continue
            weights[name] = self._finite(name, "weights", _wide(one.units(whole(one.parameter))))
            masks[name], signals[name] = mask, self._finite(name, "signals", signal)
        names = list(masks)
        if without and not names:
            raise RuntimeError(
                f"{self._where}: expected a {self.algorithm.signal} of {without[0]!r} to grow by, got none; update"
                " behind a step of an optimizer that has one, and of which gradients of missing weights were asked for"
            )
        used = {name: int(masks[name].count_nonzero()) for name in names}
        last = list(self._weights)[-1]
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
                        0.0 if name == last else SALIENCY,  # no class goes
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
            size = {name: _with_one_that_stays(weights[name], masks[name]) for name in masks}
            flat = [torch.cat([one[name].flatten() for name in masks]) for one in (size, signals, masks)]
            total = min(sum(counts.values()), sum(max(count - 1, 0) for count in used.values()))
            new = self._checked("prune", prune(flat[0], flat[1], flat[2], total), flat[2], -total)
            return dict(zip(masks, _split(new, masks.values()), strict=True))
        return {
            name: self._prune_one(name, prune, weights[name], signals[name], masks[name], counts[name])
            for name in masks
        }

    def _prune_one(
        self, name: str, prune: MaskFunction, weight: Tensor, signal: Tensor, mask: Tensor, count: int
    ) -> Tensor:
        return self._checked("prune", prune(*_own(prune, weight, signal, mask), count), mask, -count, name)

    def _grow_one(
        self, name: str, growth: MaskFunction, weight: Tensor, signal: Tensor, mask: Tensor, count: int
    ) -> Tensor:
        return self._checked("growth", growth(*_own(growth, weight, signal, mask), count), mask, count, name)

    def _share_of(self, name: str, weight: Tensor, signal: Tensor, mask: Tensor, pruned: int) -> float:
        function = self.algorithm.share
        share: Any = function(*_own(function, weight, signal, mask), pruned)
        share = share.item() if isinstance(share, Tensor) and share.numel() == 1 else share
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
        total = sum(self._weights[name].wanted for name in names) - sum(stay.values())
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
            found = self.gradients[1].get(one.name, one.parameter.grad)
            found = None if found is None else whole(found)
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

    def _signal(self, one: MaskedWeight, mask: Tensor, steps: int) -> Tensor | None:
        """What growth looks at; None where there is nothing of this weight."""
        algorithm = self.algorithm
        if algorithm.growth is None:
            return torch.zeros((), device=mask.device).expand(mask.shape)
        if algorithm.signal == "random":
            return random_like(mask, self._generator)
        if algorithm.signal == "gradient":
            step, gradients = self.gradients
            if step != steps:
                raise RuntimeError(
                    f"{self._where}: expected a step with gradients of missing weights just before the update, got"
                    f" {'none' if step < 0 else f'the last one {steps - step} steps ago'}; update_every and"
                    " dense_grad_every say which have them"
                )
            found = gradients.get(one.name)
            found = None if found is None else whole(found)
        else:
            found = self._momentum(one)
        return None if found is None else _wide(one.units(found))

    def _finite(self, name: str, what: str, tensor: Tensor) -> Tensor:
        if not_finite([tensor]):
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


def not_finite(tensors: Sequence[Tensor]) -> list[int]:
    """Which of some tensors are not finite everywhere.

    By their sums, which take a fortieth of the time; only where one of these is not finite all of it is looked at. The
    host waits once for each device.

    Args:
        tensors: Of floating dtypes.

    Returns:
        Their places.
    """
    doubtful: list[int] = []
    for device in dict.fromkeys(one.device for one in tensors):
        places = [place for place, one in enumerate(tensors) if one.device == device]
        if device.type == "meta":
            continue
        sums = torch.stack([tensors[place].sum(dtype=_summed_in(tensors[place])).double() for place in places])
        doubtful += [places[index] for index, fine in enumerate(sums.isfinite().tolist()) if not fine]
    return [place for place in doubtful if not bool(tensors[place].isfinite().all())]


def _summed_in(tensor: Tensor) -> torch.dtype | None:
    return torch.float32 if tensor.dtype.itemsize < 4 else None


def _own(function: Callable[..., Any], weight: Tensor, signal: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a function is given: copies, where it is a user's, who may write to them."""
    if function in _OURS:
        return weight, signal, mask
    return weight.clone(), signal.clone(), mask.clone()


def _with_one_that_stays(weight: Tensor, mask: Tensor) -> Tensor:
    """A weight whose largest kept element is infinite: a layer that is pruned with all others keeps that one."""
    if not bool(mask.any()):
        return weight
    size = torch.where(mask, weight.abs(), -1.0).flatten()
    return weight.flatten().index_fill(0, size.argmax(), torch.inf).view_as(weight)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _split(flat: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    like = list(like)
    parts = flat.split([one.numel() for one in like])
    return [part.view(one.shape) for part, one in zip(parts, like, strict=True)]
