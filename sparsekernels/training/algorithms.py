# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Algorithms of sparse training as data: what prunes, what grows and by which signal, who gets the new weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .allocation import ShareFunction, magnitude_share, momentum_share, no_share, nonzeros_share
from .functions import MaskFunction, largest_signal, magnitude, neurons, set_pruning
from .signals import SIGNALS


@dataclass(frozen=True)
class Algorithm:
    """How the topology of a network changes.

    Attributes:
        name: By which errors and checkpoints call it.
        prune: What leaves a layer; None for nothing.
        growth: What comes into a layer; None for nothing.
        signal: What growth looks at: "momentum", "gradient" or "random".
        share: A layer's share of the new weights. It is given the momentum, or the gradient where there is none.
        prunes_globally: `prune` is called once, with all layers as one vector.
        grows_globally: `growth` is called once, with all layers as one vector; `share` is not used then.
        constant_fan_in: Each output has as many inputs as every other of its layer, or none; see `constant_fan_in`.
        gradual: The density falls from 1 to the one that is wanted; nothing grows.
    """

    name: str
    prune: MaskFunction | None = field(default_factory=lambda: magnitude)
    growth: MaskFunction | None = field(default_factory=lambda: largest_signal)
    signal: str = "momentum"
    share: ShareFunction = field(default_factory=lambda: no_share)
    prunes_globally: bool = False
    grows_globally: bool = False
    constant_fan_in: bool = False
    gradual: bool = False

    @property
    def changes(self) -> bool:
        """Whether the topology changes at all."""
        return self.prune is not None

    @property
    def needs_missing(self) -> bool:
        """Whether growth looks at what an optimizer knows of missing weights."""
        return self.growth is not None and self.signal != "random"

    @property
    def grows_by_momentum(self) -> bool:
        """Whether growth looks at momentum, which then accumulates for missing weights as well."""
        return self.growth is not None and self.signal == "momentum"

    @property
    def grows_by_gradient(self) -> bool:
        """Whether growth looks at the gradient of the step before an update."""
        return self.growth is not None and self.signal == "gradient"


ALGORITHMS: dict[str, Algorithm] = {
    one.name: one
    for one in (
        Algorithm("sparse momentum", share=momentum_share),
        Algorithm("SET", set_pruning, signal="random"),
        Algorithm("RigL", signal="gradient"),
        Algorithm("gradual magnitude", growth=None, gradual=True),
        Algorithm("SRigL", signal="gradient", constant_fan_in=True),
        Algorithm("static", None, None),
    )
}
"""By name. Sources: Dettmers & Zettlemoyer 2019; Mocanu et al. 2018; Evci et al. 2020; Zhu & Gupta 2017; Lasby et al.
2024; a random mask that stays."""

PRUNING: dict[str, tuple[MaskFunction, bool]] = {
    "magnitude": (magnitude, False),
    "SET": (set_pruning, False),
    "global magnitude": (magnitude, True),
}
"""What prunes, by name, and whether all layers at once."""

GROWTH: dict[str, tuple[MaskFunction, str, bool]] = {
    "momentum": (largest_signal, "momentum", False),
    "momentum of neurons": (neurons, "momentum", False),
    "gradient": (largest_signal, "gradient", False),
    "random": (largest_signal, "random", False),
    "global momentum": (largest_signal, "momentum", True),
}
"""What grows, by name, by which signal, and whether in all layers at once."""

REDISTRIBUTION: dict[str, ShareFunction] = {
    "momentum": momentum_share,
    "magnitude": magnitude_share,
    "nonzeros": nonzeros_share,
    "none": no_share,
}
"""A layer's share of the new weights, by name."""


def named(where: str, what: str, table: Mapping[str, Any], name: object) -> Any:
    """What a table has by a name.

    Args:
        where: Who asks, for the error.
        what: What is asked for.
        table: The table.
        name: The name.

    Returns:
        The value.

    Raises:
        ValueError: For a name that the table does not have; it says which it has.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{where}: expected {what} to be {', '.join(map(repr, table))}, got {name!r}")
    return table[name]


def algorithm_of(
    where: str,
    algorithm: str | Algorithm,
    prune: str | MaskFunction | None = None,
    growth: str | MaskFunction | None = None,
    redistribution: str | ShareFunction | None = None,
    signal: str | None = None,
) -> Algorithm:
    """An algorithm, with other parts in the place of its own.

    Args:
        where: Who asks, for errors.
        algorithm: A name of `ALGORITHMS`, or one of your own.
        prune: A name of `PRUNING` or a function; None for the algorithm's.
        growth: A name of `GROWTH` or a function; None for the algorithm's.
        redistribution: A name of `REDISTRIBUTION` or a function; None for the algorithm's.
        signal: What a growth function looks at: "momentum", "gradient" or "random"; None for the algorithm's.

    Returns:
        The algorithm.

    Raises:
        TypeError: For what is neither a name nor callable.
        ValueError: For an unknown name, or parts of an algorithm that has none.
    """
    base: Algorithm = (
        algorithm if isinstance(algorithm, Algorithm) else named(where, "algorithm", ALGORITHMS, algorithm)
    )
    changes: dict[str, Any] = {}
    if prune is not None:
        changes["prune"], changes["prunes_globally"] = (
            (prune, False) if callable(prune) else named(where, "prune", PRUNING, prune)
        )
    if growth is not None:
        if callable(growth):
            changes |= {"growth": growth, "grows_globally": False}
        else:
            changes["growth"], changes["signal"], changes["grows_globally"] = named(where, "growth", GROWTH, growth)
    if redistribution is not None:
        changes["share"] = (
            redistribution
            if callable(redistribution)
            else named(where, "redistribution", REDISTRIBUTION, redistribution)
        )
    if signal is not None:
        changes["signal"] = signal
    given = {"prune": prune, "growth": growth, "redistribution": redistribution, "signal": signal}
    accepted = {"prune"} if base.gradual else set() if base.constant_fan_in or not base.changes else given.keys()
    refused = [name for name, value in given.items() if value is not None and name not in accepted]
    if refused:
        raise ValueError(
            f"{where}: expected no {', '.join(refused)} with algorithm {base.name!r}, which has none to choose"
        )
    made = replace(base, **changes)
    if made.signal not in SIGNALS:
        raise ValueError(f"{where}: expected signal to be {', '.join(map(repr, SIGNALS))}, got {made.signal!r}")
    return made
