# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a resumed run needs of sparse training: its state, checked as a whole before any of it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .algorithms import Algorithm
from .bits import packed
from .compact import CompactState
from .kernels import Kernels
from .schedules import Schedule
from .validation import masks_of_state
from .weights import MaskedWeight


class Resumable:
    """The part of `SparseTraining` that saves and loads."""

    algorithm: Algorithm
    schedule: Schedule
    steps: int
    updates: int
    _where: str
    _weights: dict[str, MaskedWeight]
    _kernels: list[Kernels]
    _compact: CompactState | None
    _generator: torch.Generator
    _prune_rate: float

    def _take_layers(self) -> None:
        raise NotImplementedError

    def _load_kernels(self, states: list[Any]) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the states of model and optimizer.

        Returns:
            Masks as bits, counters, the state of the random generator, the schedule, and which layers run on sparse
            kernels: tensors and plain values, which torch.load reads with weights_only=True.
        """
        return {
            "version": 1,
            "algorithm": self.algorithm.name,
            "steps": self.steps,
            "updates": self.updates,
            "generator": self._generator.get_state(),
            "schedule": _state_of(self._where, self.schedule),
            "prune_rate": self._prune_rate,
            "settings": self._settings(),
            "weights": {
                name: {
                    "shape": list(one.mask.shape),
                    "block": None if one.block is None else list(one.block),
                    "wanted": one.wanted,
                    "mask": packed(one.mask),
                }
                for name, one in self._weights.items()
            },
            "kernels": [one.state_dict() for one in self._kernels],
        }

    def _settings(self) -> dict[str, Any]:
        """What has to be the same in a resumed run."""
        one = self.algorithm
        functions = {"prune": one.prune, "growth": one.growth, "redistribution": one.share}
        names = {what: getattr(f, "__qualname__", type(f).__name__) for what, f in functions.items()}
        return {**names, "signal": one.signal, "compact_state": self._compact is not None}

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise where `load_state_dict` would.

        Args:
            state: What is said to be from `state_dict`.

        Raises:
            ValueError: For a state of another algorithm or architecture, or one that is incomplete or corrupt.
        """
        self._read(state)

    def _read(self, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], torch.Generator]:
        where = self._where
        try:
            if state["version"] != 1:
                raise ValueError(f"{where}: expected a state of version 1, got version {state['version']!r}")
            if state["algorithm"] != self.algorithm.name:
                raise ValueError(
                    f"{where}: expected a state of algorithm {self.algorithm.name!r}, got one of {state['algorithm']!r}"
                )
            for what, mine in self._settings().items():
                if state["settings"][what] != mine:
                    raise ValueError(
                        f"{where}: expected a state of {what} {mine!r}, got one of {state['settings'][what]!r}"
                    )
            float(state["prune_rate"])
            exact = not self.algorithm.gradual and not self.algorithm.constant_fan_in
            masks = masks_of_state(where, self._weights, state["weights"], exact)
            for count in (state["steps"], state["updates"], *(one["wanted"] for one in state["weights"].values())):
                if not isinstance(count, int) or count < 0:
                    raise ValueError(f"{where}: expected counters that are int from 0 on, got {count!r}")
            generator = torch.Generator()
            generator.set_state(state["generator"].cpu())
            dict(state["schedule"])
            for kernels, of in zip(self._kernels, state["kernels"], strict=False):
                kernels.check(of)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            kind = type(error).__name__
            raise ValueError(f"{where}: expected what state_dict() gave, got {kind}: {error}") from error
        return masks, generator

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, before or after model and optimizer take over theirs.

        Args:
            state: As `state_dict` gave it.

        Raises:
            ValueError: For a state of another algorithm or architecture, or one that is incomplete or corrupt. Then
                nothing has changed.
        """
        masks, generator = self._read(state)
        if hasattr(self.schedule, "load_state_dict"):
            self.schedule.load_state_dict(state["schedule"])
        else:
            vars(self.schedule).update(state["schedule"])
        self._prune_rate = float(state["prune_rate"])
        for name, mask in masks.items():
            one = self._weights[name]
            one.mask, one.wanted = mask.to(one.mask.device), state["weights"][name]["wanted"]
            one.apply()
        self.steps, self.updates = state["steps"], state["updates"]
        self._generator.set_state(generator.get_state())
        self._load_kernels(state["kernels"])
        self._take_layers()


def _state_of(where: str, schedule: Any) -> Any:
    if hasattr(schedule, "state_dict") and hasattr(schedule, "load_state_dict"):
        return schedule.state_dict()
    if not hasattr(schedule, "__dict__"):
        kind = type(schedule).__name__
        raise TypeError(f"{where}: expected a schedule with state_dict() and load_state_dict() to be saved, got {kind}")
    return dict(vars(schedule))
