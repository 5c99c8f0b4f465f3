# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a run is: all that is decided on before it, and the key by which it is known when an experiment goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

OPTIMIZERS = ("SGD", "Adam", "AdamW")
SCHEDULES = ("constant", "cosine", "step")
DEVICES = ("cpu", "cuda")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object, low: float, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and value < math.inf


def _one_of(*accepted: str) -> tuple[str, Callable[[object], bool]]:
    return ", ".join(map(repr, accepted)), lambda value: value in accepted


SETTINGS: Mapping[str, tuple[Any, str, Callable[[object], bool]]] = {
    "dataset": ("fashion-mnist", "text", lambda value: isinstance(value, str)),
    "images": (None, "a whole number of 1 and more, or none", lambda value: value is None or _is_whole(value, 1)),
    "test_images": (None, "a whole number of 1 and more, or none", lambda value: value is None or _is_whole(value, 1)),
    "epochs": (10, "a whole number of 1 and more", lambda value: _is_whole(value, 1)),
    "evaluations": (1, "a whole number of 1 and more", lambda value: _is_whole(value, 1)),
    "batch": (100, "a whole number of 2 and more", lambda value: _is_whole(value, 2)),
    "optimizer": ("SGD", *_one_of(*OPTIMIZERS)),
    "learning_rate": (0.1, "a number above 0", lambda value: _is_number(value, 0) and value != 0),
    "momentum": (0.9, "a number from 0 to below 1", lambda value: _is_number(value, 0, 1) and value != 1),
    "weight_decay": (5e-4, "a number of 0 and more", lambda value: _is_number(value, 0)),
    "schedule": ("cosine", *_one_of(*SCHEDULES)),
    "threads": (1, "a whole number of 0 (all cores) and more", lambda value: _is_whole(value, 0)),
    "device": ("cpu", *_one_of(*DEVICES)),
}
"""What a suite may set for each run: its default, what is accepted in words, and as a test.

images         of the training set, the first so many; none is all
test_images    of the test set, likewise
epochs         passes over them
evaluations    how often in each epoch accuracy is measured, evenly spaced; the last is at its end
momentum       Nesterov's, of SGD
schedule       "cosine": to 0 over the run; "step": a tenth after half of the run, a hundredth after three quarters
"""


def check_settings(where: str, settings: Mapping[str, object]) -> None:
    """Raise ValueError for a setting that there is not, or of a value that is not accepted."""
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ValueError(f"{where}: expected settings among {', '.join(SETTINGS)}, got {name!r}")
        _, accepted, accepts = SETTINGS[name]
        if not accepts(value):
            raise ValueError(f"{where}: expected {name} to be {accepted}, got {value!r}")


@dataclass(frozen=True)
class Run:
    """One run of an experiment: all that decides its result on one machine, with one version of everything.

    Records of equal runs count as one run, whatever version they are of; a report warns where these differ.

    experiment  the suite's name
    task        what is done: of `tasks.TASKS`
    network     of `networks.NETWORKS`
    method      of the task's own
    density     share of the weights that are left, 0 to 1; None where all are
    seed        of the weights, of the masks, and of the order of the images
    settings    of `SETTINGS`, all of them
    options     the method's own, from the suite
    checksum    of the data set
    """

    experiment: str
    task: str
    network: str
    method: str
    density: float | None
    seed: int
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    checksum: str = ""

    def __post_init__(self) -> None:
        check_settings(f"run {self.name}", self.settings)
        if missing := [name for name in SETTINGS if name not in self.settings]:
            raise ValueError(f"run {self.name}: expected all settings, got none for {', '.join(missing)}")
        if self.density is not None and not _is_number(self.density, 0, 1):
            raise ValueError(f"run {self.name}: expected a density from 0 to 1, got {self.density!r}")

    @property
    def name(self) -> str:
        """In words: network, method, density and seed."""
        density = "" if self.density is None else f" {percent(self.density)}"
        return f"{self.network} {self.method}{density} seed {self.seed}"

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that tell this run from every other."""
        canonical = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Run:
        """What `to_dict` gave. Raises ValueError for other keys."""
        names = {f.name for f in fields(cls)}
        if not isinstance(value, Mapping) or value.keys() != names:
            got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"expected a run of {', '.join(sorted(names))}, got {got}")
        return cls(**value)


def percent(density: float) -> str:
    """A density as text: 0.1 is "10%"."""
    return f"{100 * density:.4g}%"
