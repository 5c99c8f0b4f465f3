# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a conversion decided, as plain values, and the same decided again without a clock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .facts import Note, Way
from .measure import NORMS, decided_by_layer
from .report import DENSE, Report


@dataclass(frozen=True)
class Decided:
    """What `convert` chose.

    Attributes:
        layers: The decision of each layer that is not dense, by its name.
        way: How the model runs: a value of `Way`.
        norms: Whether RMSNorms run as `rms_norm`.
    """

    layers: Mapping[str, str]
    way: str
    norms: bool

    @classmethod
    def of(cls, report: Report) -> Decided:
        """What a report says.

        Args:
            report: Of `convert`.

        Returns:
            The decisions.
        """
        layers = {row.name: row.decision for row in report.layers if row.decision != DENSE}
        norms = any(fact.kind is Note.NORMS for fact in report.facts)
        return cls(layers, report.way.value, norms)

    def state(self) -> dict[str, Any]:
        """It as plain values.

        Returns:
            What `of_state` takes.
        """
        return {"layers": dict(self.layers), "way": self.way, "norms": self.norms}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Decided:
        """It from plain values.

        Args:
            state: What `state` gave.

        Returns:
            The decisions.

        Raises:
            KeyError: Where something is missing.
            TypeError: For what are no plain values of that kind.
            ValueError: For an unknown way to run a model.
        """
        layers = {str(name): str(decision) for name, decision in state["layers"].items()}
        return cls(layers, Way(state["way"]).value, bool(state["norms"]))


@contextlib.contextmanager
def decided_as(decided: Decided) -> Iterator[None]:
    """Inside, `convert` decides the same, and looks at no clock.

    Args:
        decided: What it is to decide.
    """
    ways = () if decided.way == Way.BEFORE.value else (decided.way,)
    with decided_by_layer(decided.layers, (*ways, NORMS) if decided.norms else ways):
        yield
