# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""One training from start to end: the same run gives the same bits, also when it was interrupted in between."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from .datasets import Dataset, batches, seed_of
from .methods import METHODS, Attached, Plan
from .networks import NETWORKS, Network
from .runs import Run

EVALUATION_BATCH = 500

CHECKPOINT_SECONDS = 20.0
"""A checkpoint is written at the first evaluation after so long: less is not worth writing."""

PROGRESS_SECONDS = 1.0
"""How often progress is told between evaluations."""


@dataclass
class Session:
    """What a run is given beside itself.

    progress    is told the share of the run that is done, and what there is to say
    checkpoint  file that holds what a run that is interrupted goes on from; None writes none
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


def optimizer_of(parameters: Iterator[nn.Parameter], settings: Mapping[str, Any]) -> Optimizer:
    """The optimizer that the settings name."""
    rate, decay, momentum = settings["learning_rate"], settings["weight_decay"], settings["momentum"]
    if settings["optimizer"] == "SGD":
        return SGD(parameters, lr=rate, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    kind = {"Adam": Adam, "AdamW": AdamW}[settings["optimizer"]]
    return kind(parameters, lr=rate, weight_decay=decay)


def learning_rate(settings: Mapping[str, Any], step: int, steps: int) -> float:
    """Of a step, from 0 to `steps` - 1."""
    share = step / steps
    factor = {
        "constant": 1.0,
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "step": 0.1 ** ((share >= 0.5) + (share >= 0.75)),
    }[settings["schedule"]]
    return settings["learning_rate"] * factor


def evaluate(attached: Attached, network: Network, images: Tensor, labels: Tensor, black: float) -> float:
    """Percent of the images that the model, in evaluation mode, classifies right. The mode is left as it was."""
    model, right = attached.model, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), attached.context():
            for start in range(0, len(labels), EVALUATION_BATCH):
                part = slice(start, start + EVALUATION_BATCH)
                found = model(network.prepare(images[part], black)).argmax(1)
                right += int((found == labels[part]).sum())
    finally:
        model.train(was_training)
    return 100 * right / len(labels)


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
        self._network, self._method = NETWORKS[run.network], METHODS[run.method]
        self._device = torch.device(settings["device"])
        self._per_epoch = len(self._data.train_labels) // settings["batch"]
        self._steps = self._per_epoch * settings["epochs"]
        self._ends = _ends(self._per_epoch, settings["evaluations"])
        model = self._network.make(run.seed).to(self._device)
        self.weights = {name: one.numel() for name, one in model.named_parameters() if one.dim() > 1}
        plan = Plan(run, self._steps, self._per_epoch)
        self.attached: Attached = self._method.attach(
            model, lambda parameters: optimizer_of(parameters, settings), plan
        )
        self._step = 0
        self._points: list[dict[str, float]] = []
        self._saved_at = time.monotonic()

    def outcome(self) -> Outcome:
        """Train to the end, from the checkpoint on where there is one."""
        self._resume()
        status = "ok" if self._run_to_end() else "diverged"
        return Outcome(self._points, self.attached.results(), self.attached.nonzeros(), self.weights, status)

    def _run_to_end(self) -> bool:
        """Whether the loss was finite to the end."""
        settings, seed, data = self._run.settings, self._run.seed, self._data
        images, labels = data.train_images.to(self._device), data.train_labels.to(self._device)
        tests = data.test_images.to(self._device), data.test_labels.to(self._device)
        for epoch in range(self._step // self._per_epoch, settings["epochs"]):
            order = batches(images, labels, settings["batch"], seed, epoch)
            for _ in range(self._step - epoch * self._per_epoch):  # taken before the checkpoint
                next(order)
            for end in self._ends:
                if (steps := epoch * self._per_epoch + end - self._step) <= 0:
                    continue
                torch.manual_seed(seed_of(seed, "dropout", self._step))
                loss, seconds = self._interval(order, steps)
                if not math.isfinite(loss):
                    return False
                self._points.append(
                    {
                        "step": self._step,
                        "epoch": self._step / self._per_epoch,
                        "accuracy": evaluate(self.attached, self._network, *tests, data.black),
                        "loss": loss,
                        "seconds": seconds,
                    }
                )
                self._save()
        return True

    def _interval(self, order: Iterator[tuple[Tensor, Tensor]], steps: int) -> tuple[float, float]:
        """Train so many steps. Returns the mean loss and the seconds."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        told = started = time.perf_counter()
        for _ in range(steps):
            images, labels = next(order)
            try:
                total += self._one_step(images, labels)
            except FloatingPointError:  # gradients that are no numbers, which sparse training refuses
                return math.nan, 0.0
            self._step += 1
            self.attached.after_step(self._step)
            if (now := time.perf_counter()) - told > PROGRESS_SECONDS:
                told = now
                self._tell()
        mean = float(total) / steps  # waits for the device
        return mean, time.perf_counter() - started

    def _one_step(self, images: Tensor, labels: Tensor) -> Tensor:
        optimizer, settings = self.attached.optimizer, self._run.settings
        rate = learning_rate(settings, self._step, self._steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with self.attached.context():
            loss = F.cross_entropy(self.attached.model(self._network.prepare(images, self._data.black)), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def _tell(self) -> None:
        text = f"{self._points[-1]['accuracy']:.2f}%" if self._points else ""
        self._session.progress(self._step / self._steps, text)

    def _save(self) -> None:
        """Replace the checkpoint, whole or not at all."""
        self._tell()
        path = self._session.checkpoint
        if path is None or self._step == self._steps or time.monotonic() - self._saved_at < CHECKPOINT_SECONDS:
            return
        state = {
            "key": self._run.key,
            "step": self._step,
            "points": self._points,
            "model": self.attached.model.state_dict(),
            "optimizer": self.attached.optimizer.state_dict(),
            "method": self.attached.state_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        path = self._session.checkpoint
        if path is None or not path.exists():
            return
        state = torch.load(path, map_location=self._device, weights_only=True)
        if state["key"] != self._run.key:
            raise ValueError(f"{path}: expected the checkpoint of run {self._run.key}, got {state['key']!r}")
        self.attached.load(state["model"], state["optimizer"], state["method"])
        self._step, self._points = state["step"], state["points"]


def _ends(steps: int, evaluations: int) -> list[int]:
    """After which steps of an epoch accuracy is measured."""
    return sorted({max(1, round(steps * (number + 1) / evaluations)) for number in range(evaluations)})
