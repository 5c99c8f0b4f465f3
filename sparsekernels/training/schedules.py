# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules: the share of weights that an update prunes, and the density of gradual pruning."""

from __future__ import annotations

import math
import numbers
from typing import Any, Protocol


class Schedule(Protocol):
    """What a rate follows: `CosineDecay`, `LinearDecay`, or a class of your own with these two."""

    def step(self) -> None:
        """One step of the optimizer was taken."""

    def get_dr(self, prune_rate: float) -> float:
        """The rate now.

        Args:
            prune_rate: The rate before.

        Returns:
            From 0 to 1.
        """


def _check(name: str, prune_rate: float, T_max: int) -> None:
    if isinstance(prune_rate, bool) or not isinstance(prune_rate, numbers.Real) or not 0 <= prune_rate <= 1:
        raise ValueError(f"{name}: expected prune_rate from 0 to 1, got {prune_rate!r}")
    if isinstance(T_max, bool) or not isinstance(T_max, numbers.Real) or not T_max > 0:
        raise ValueError(f"{name}: expected T_max, a number of steps above 0, got {T_max!r}")


class CosineDecay:
    """A rate that falls by half a cosine, and stays at its least.

        rate(t) = eta_min + (prune_rate - eta_min) (1 + cos(pi min(t, T_max) / T_max)) / 2

    Args:
        prune_rate: At the first step, 0 to 1.
        T_max: Steps until the least is reached.
        eta_min: The least.
        last_epoch: Steps that were taken before, less one.

    Raises:
        ValueError: For a rate outside of [0, 1], or a number of steps that is not above 0.

    Source:
        Dettmers & Zettlemoyer 2019, arXiv 1907.04840, section 3.
    """

    def __init__(self, prune_rate: float, T_max: int, eta_min: float = 0.005, last_epoch: int = -1) -> None:
        _check("CosineDecay", prune_rate, T_max)
        self.prune_rate, self.T_max, self.eta_min = float(prune_rate), T_max, float(eta_min)
        self.steps = max(0, last_epoch + 1)

    def step(self) -> None:
        """One step of the optimizer was taken."""
        self.steps += 1

    def get_dr(self, prune_rate: float | None = None) -> float:
        """The rate now.

        Args:
            prune_rate: Is not used.

        Returns:
            From `eta_min` to `prune_rate`.
        """
        share = min(self.steps, self.T_max) / self.T_max
        return self.eta_min + (self.prune_rate - self.eta_min) * (1 + math.cos(math.pi * share)) / 2

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs.

        Returns:
            Plain values.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Args:
            state: As `state_dict` gave it.
        """
        vars(self).update(state)


class LinearDecay(CosineDecay):
    """A rate that falls to 0 in equal steps.

        rate(t) = prune_rate (1 - min(t, T_max) / T_max)

    Args:
        prune_rate: At the first step, 0 to 1.
        T_max: Steps until it is 0.

    Raises:
        ValueError: For a rate outside of [0, 1], or a number of steps that is not above 0.
    """

    def __init__(self, prune_rate: float, T_max: int) -> None:
        _check("LinearDecay", prune_rate, T_max)
        super().__init__(prune_rate, T_max, 0.0)

    def get_dr(self, prune_rate: float | None = None) -> float:
        """The rate now.

        Args:
            prune_rate: Is not used.

        Returns:
            From 0 to `prune_rate`.
        """
        return self.prune_rate * (1 - min(self.steps, self.T_max) / self.T_max)


class ConstantRate(LinearDecay):
    """The same rate at all steps.

    Args:
        prune_rate: 0 to 1.

    Raises:
        ValueError: For a rate outside of [0, 1].
    """

    def __init__(self, prune_rate: float) -> None:
        super().__init__(prune_rate, 1)

    def get_dr(self, prune_rate: float | None = None) -> float:
        """The rate.

        Args:
            prune_rate: Is not used.

        Returns:
            `prune_rate` of the constructor.
        """
        return self.prune_rate


def cubic_density(step: int, begin: int, end: int, initial: float, final: float) -> float:
    """The density of gradual pruning at a step.

        density(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3   from `begin` to `end`

    Args:
        step: Steps of the optimizer taken.
        begin: Before it the density is `initial`.
        end: From it on the density is `final`; above `begin`.
        initial: 0 to 1.
        final: 0 to 1.

    Returns:
        The density.

    Source:
        Zhu & Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, equation 1.
    """
    share = min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * (1 - share) ** 3
