# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Trained tickets, and where an experiment keeps them: in memory, or in a folder from which it can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .bits import packed
from .storage import State, load, save_atomically, unpack


class Counted:
    """What has masks, and how many weights they keep."""

    masks: dict[str, Tensor]

    @property
    def counts(self) -> dict[str, int]:
        """How many weights each layer keeps."""
        return {name: int(mask.sum()) for name, mask in self.masks.items()}

    @property
    def left(self) -> float:
        """The share of all prunable weights that is kept."""
        return sum(self.counts.values()) / sum(mask.numel() for mask in self.masks.values())


@dataclass(frozen=True, eq=False)
class Ticket(Counted):
    """A network that was trained under masks.

    Attributes:
        name: Of the training, as "round-03", which is also the name of its file.
        round: After how many rounds of pruning.
        masks: By parameter name, bool: True where a weight is kept.
        start: The state_dict that training started from, on the CPU; pruned weights stay at what they are there.
        final: The state_dict that it ended with, on the CPU.
        result: What `train` returned.
    """

    name: str
    round: int
    masks: dict[str, Tensor] = field(repr=False)
    start: State = field(repr=False)
    final: State = field(repr=False)
    result: Any


class Tickets:
    """The finished trainings of an experiment by name.

    In a folder each is a file, written atomically, and so are the settings, with which later ones have to agree.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._folder, self._kept = folder, dict[str, Ticket]()
        self._states = dict[str, State]()
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"Lottery: expected folder to be a folder, got the file {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "experiment.pt"
        if not path.exists():
            save_atomically({"kind": "experiment", **settings}, path)
        found = load("Lottery", path, "experiment")
        for name, value in settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"Lottery: expected {name} {found.get(name)!r}, as in {folder}, got {value!r}; another experiment"
                    " needs another folder"
                )

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.pt"

    def __contains__(self, name: str) -> bool:
        path = self._path(name)
        return name in self._kept if path is None else path.exists()

    def __getitem__(self, name: str) -> Ticket:
        path = self._path(name)
        if path is None:
            return self._kept[name]
        found = load("Lottery", path, "ticket")
        masks = {one: unpack("Lottery", bits, found["shapes"][one]) for one, bits in found["masks"].items()}
        return Ticket(found["name"], found["round"], masks, found["start"], found["final"], found["result"])

    def add(self, ticket: Ticket) -> None:
        path = self._path(ticket.name)
        if path is None:
            self._kept[ticket.name] = ticket
            return
        content = {
            "kind": "ticket",
            "name": ticket.name,
            "round": ticket.round,
            "masks": {name: packed(mask) for name, mask in ticket.masks.items()},
            "shapes": {name: list(mask.shape) for name, mask in ticket.masks.items()},
            "start": ticket.start,
            "final": ticket.final,
            "result": ticket.result,
        }
        save_atomically(content, path)

    def state(self, name: str) -> State | None:
        """The state_dict of a name, if it was saved."""
        path = self._path(name)
        if path is None or not path.exists():
            return self._states.get(name)
        state: State = load("Lottery", path, "state")["state"]
        return state

    def add_state(self, name: str, state: State) -> None:
        path = self._path(name)
        if path is None:
            self._states[name] = state
        else:
            save_atomically({"kind": "state", "state": state}, path)
