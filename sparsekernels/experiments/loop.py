# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The loop of all trainings: the same steps in the same order for the same seed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from .datasets import Dataset, batches, seed_of
from .methods import Attached, Context
from .networks import Network

EVALUATION_BATCH = 500

PROGRESS_SECONDS = 1.0
"""How often progress is told between evaluations."""


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


def evaluate(
    model: nn.Module,
    network: Network,
    images: Tensor,
    labels: Tensor,
    black: float,
    context: Context = contextlib.nullcontext,
) -> tuple[float, float]:
    """Percent of the images that the model, in evaluation mode, classifies right, and the mean loss.

    The mode is left as it was.
    """
    right, total = 0, 0.0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), context():
            for start in range(0, len(labels), EVALUATION_BATCH):
                part = slice(start, start + EVALUATION_BATCH)
                scores = model(network.prepare(images[part], black))
                right += int((scores.argmax(1) == labels[part]).sum())
                total += float(F.cross_entropy(scores.float(), labels[part], reduction="sum"))
    finally:
        model.train(was_training)
    return 100 * right / len(labels), total / len(labels)


def rounded(value: float) -> float:
    """Six digits, for records: more than any of it carries."""
    return float(f"{value:.6g}")


class Loop:
    """The steps of one training, from `step` on, over all epochs of the settings.

    Args:
        attached: The model, its optimizer, and what is done behind each step.
        network: How images are given to the model.
        data: Its training images.
        settings: Of a run; see `runs.SETTINGS`.
        seed: Of the order of the images, and of dropout.
        tell: Is called now and then between evaluations.
    """

    def __init__(
        self,
        attached: Attached,
        network: Network,
        data: Dataset,
        settings: Mapping[str, Any],
        seed: int,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._attached, self._network, self._settings, self._seed, self._tell = attached, network, settings, seed, tell
        self._device = torch.device(settings["device"])
        self._images, self._labels = data.train_images.to(self._device), data.train_labels.to(self._device)
        self._black = data.black
        self.per_epoch, self.steps = steps_of(data, settings)
        self._ends = _ends(self.per_epoch, settings["evaluations"])
        self.step = 0
        """Steps that were taken."""

    @property
    def epoch(self) -> float:
        """Passes over the images, with fraction."""
        return self.step / self.per_epoch

    def run(self, point: Callable[[float, float], None]) -> bool:
        """Train to the end. Returns whether the loss was finite to there.

        Args:
            point: Is called at each evaluation, with the mean loss and the seconds since the last one.
        """
        for epoch in range(self.step // self.per_epoch, self._settings["epochs"]):
            order = batches(self._images, self._labels, self._settings["batch"], self._seed, epoch)
            for _ in range(self.step - epoch * self.per_epoch):  # taken before the checkpoint
                next(order)
            for end in self._ends:
                if (steps := epoch * self.per_epoch + end - self.step) > 0:
                    torch.manual_seed(seed_of(self._seed, "dropout", self.step))
                    loss, seconds = self._interval(order, steps)
                    if not math.isfinite(loss):
                        return False
                    point(loss, seconds)
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
            self.step += 1
            if (now := time.perf_counter()) - told > PROGRESS_SECONDS:
                told = now
                self._tell()
        mean = float(total) / steps  # waits for the device
        return mean, time.perf_counter() - started

    def _one_step(self, images: Tensor, labels: Tensor) -> Tensor:
        optimizer = self._attached.optimizer
        rate = learning_rate(self._settings, self.step, self.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with self._attached.context():
            loss = F.cross_entropy(self._attached.model(self._network.prepare(images, self._black)), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()


def steps_of(data: Dataset, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Steps of an epoch, and of the whole training."""
    per_epoch = len(data.train_labels) // settings["batch"]
    return per_epoch, per_epoch * settings["epochs"]


def _ends(steps: int, evaluations: int) -> list[int]:
    """After which steps of an epoch accuracy is measured."""
    return sorted({max(1, round(steps * (number + 1) / evaluations)) for number in range(evaluations)})
