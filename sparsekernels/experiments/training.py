# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""One training from start to end: the same run gives the same bits, also when it was interrupted in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..training.storage import read, save_atomically
from .datasets import Dataset
from .loop import Loop, evaluate, optimizer_of, rounded, steps_of
from .methods import METHODS, Plan
from .networks import NETWORKS
from .runs import Run

CHECKPOINT_SECONDS = 20.0
"""A checkpoint is written at the first evaluation after so long: less is not worth writing."""


@dataclass
class Session:
    """What a run is given beside itself.

    progress    is told the share of the run that is done, and what there is to say
    checkpoint  file or folder of what a run that is interrupted goes on from; None writes none
    """

    progress: Callable[[float, str], None] = lambda share, text: None
    checkpoint: Path | None = None


@dataclass
class Outcome:
    """What a run found; see `records.Record`."""

    points: list[dict[str, float]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    nonzeros: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    status: str = "ok"


@contextlib.contextmanager
def as_set(run: Run) -> Iterator[None]:
    """The threads of the run, and torch's own generator put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(run.settings["threads"])
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def load_or_remove(path: Path, device: torch.device | str = "cpu") -> Any:
    """What a file holds. Of one that is damaged None; it is removed, so that what was in it is made again."""
    try:
        return read("experiment", path, device)
    except ValueError:
        path.unlink()
        return None


def train(run: Run, data: Dataset, session: Session) -> Outcome:
    """Train as the run says. Returns its outcome; raises what the method raises."""
    with as_set(run):
        return Training(run, data, session).outcome()


class Training:
    """The state of one training."""

    def __init__(self, run: Run, data: Dataset, session: Session) -> None:
        settings = run.settings
        self._run, self._session = run, session
        self._data = data.first(settings["images"], settings["test_images"])
        self._network, self._device = NETWORKS[run.network], torch.device(settings["device"])
        model = self._network.make(run.seed).to(self._device)
        self.weights = {name: one.numel() for name, one in model.named_parameters() if one.dim() > 1}
        per_epoch, steps = steps_of(self._data, settings)
        self.attached = METHODS[run.method].attach(
            model, lambda parameters: optimizer_of(parameters, settings), Plan(run, steps, per_epoch)
        )
        self._loop = Loop(self.attached, self._network, self._data, settings, run.seed, self._tell)
        self._points: list[dict[str, float]] = []
        self._saved_at = time.monotonic()

    def outcome(self) -> Outcome:
        """Train to the end, from the checkpoint on where there is one."""
        self._resume()
        tests = self._data.test_images.to(self._device), self._data.test_labels.to(self._device)

        def point(loss: float, seconds: float) -> None:
            attached = self.attached
            accuracy, _ = evaluate(attached.model, self._network, *tests, self._data.black, attached.context)
            measured = {"accuracy": accuracy, "loss": loss, "seconds": seconds}
            rows = {"epoch": self._loop.epoch, **measured}
            self._points.append({"step": self._loop.step, **{name: rounded(value) for name, value in rows.items()}})
            self._save()

        status = "ok" if self._loop.run(point) else "diverged"
        return Outcome(self._points, self.attached.results(), self.attached.nonzeros(), self.weights, status)

    def _tell(self) -> None:
        text = f"{self._points[-1]['accuracy']:.2f}%" if self._points else ""
        self._session.progress(self._loop.step / self._loop.steps, text)

    def _save(self) -> None:
        """Replace the checkpoint, whole or not at all."""
        self._tell()
        path, step = self._session.checkpoint, self._loop.step
        if path is None or step == self._loop.steps or time.monotonic() - self._saved_at < CHECKPOINT_SECONDS:
            return
        state = {
            "key": self._run.key,
            "step": step,
            "points": self._points,
            "model": self.attached.model.state_dict(),
            "optimizer": self.attached.optimizer.state_dict(),
            "method": self.attached.state_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(state, path)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        path = self._session.checkpoint
        if path is None or not path.exists():
            return
        state = load_or_remove(path, self._device)
        if state is None:
            return
        if state["key"] != self._run.key:
            raise ValueError(f"{path}: expected the checkpoint of run {self._run.key}, got {state['key']!r}")
        self.attached.load(state["model"], state["optimizer"], state["method"])
        self._loop.step, self._points = state["step"], state["points"]
