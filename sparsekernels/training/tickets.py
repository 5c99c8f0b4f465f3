# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Trained tickets, and where an experiment keeps them: in memory, or in a folder from which it can be resumed."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .bits import packed
from .storage import State, load, read, save_atomically, unpack

_FILES = ("rewind.pt", "round-*.pt", "one-shot-*.pt", "reinit-*.pt", "random-mask-*.pt")
"""In a folder, besides the settings; others may have files there as well."""


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

    In a folder each is a file, written atomically, and so are the settings, with which later ones have to agree. Each
    has the name and the check sum of the settings that it was written with, and is refused as another.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._folder, self._kept = folder, dict[str, Ticket]()
        self._states = dict[str, State]()
        self._settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"Lottery: expected folder to be a folder, got the file {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "experiment.pt"
        if not path.exists():
            self._check_all(folder)
            save_atomically({"kind": "experiment", **settings}, path)
        found = load("Lottery", path, "experiment")
        for name, value in settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"Lottery: expected {name} {found.get(name)!r}, as in {folder}, got {value!r}; another experiment"
                    " needs another folder"
                )

    def _check_all(self, folder: Path) -> None:
        """Raise ValueError where a folder without settings has a file that was written with other ones."""
        for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
            found = read("Lottery", path)
            if not isinstance(found, dict) or found.get("settings") != self._settings:
                raise ValueError(
                    f"Lottery: expected experiment.pt in {folder}, or files of this experiment, got none and"
                    f" {path.name} of another one"
                )

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.pt"

    def __contains__(self, name: str) -> bool:
        path = self._path(name)
        return name in self._kept if path is None else path.exists()

    def __getitem__(self, name: str) -> Ticket:
        path = self._path(name)
        if path is None:
            return copy.deepcopy(self._kept[name])  # what users do with theirs stays with them
        found = self._load(path, name, "ticket", "round", "masks", "shapes", "start", "final", "result")
        masks = {one: unpack("Lottery", bits, found["shapes"][one]) for one, bits in found["masks"].items()}
        return Ticket(name, found["round"], masks, found["start"], found["final"], found["result"])

    def _load(self, path: Path, name: str, kind: str, *keys: str) -> dict[str, Any]:
        """A file of this experiment that has the name it was written under."""
        found = load("Lottery", path, kind, "name", "settings", *keys)
        for key, wanted in (("name", name), ("settings", self._settings)):
            if found[key] != wanted:
                raise ValueError(
                    f"Lottery: expected {path} to be of this experiment, got {key} {found[key]!r} for {wanted!r}"
                )
        return found

    def add(self, ticket: Ticket) -> None:
        path = self._path(ticket.name)
        if path is None:
            self._kept[ticket.name] = copy.deepcopy(ticket)
            return
        content = {
            "kind": "ticket",
            "name": ticket.name,
            "settings": self._settings,
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
        state: State = self._load(path, name, "state", "state")["state"]
        return state

    def add_state(self, name: str, state: State) -> None:
        path = self._path(name)
        if path is None:
            self._states[name] = state
        else:
            save_atomically({"kind": "state", "name": name, "settings": self._settings, "state": state}, path)
