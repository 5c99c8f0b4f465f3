# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The task "lottery": winning tickets round by round, and what they are compared with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..training import HeldMasks, Lottery, Ticket
from . import options
from .datasets import CLASSES, Dataset
from .loop import Loop, evaluate, optimizer_of, rounded, steps_of
from .methods import Attached
from .networks import NETWORKS
from .options import Options
from .runs import Run, percent
from .training import Outcome, Session, as_set, load_or_remove

TRAINING: Options = {
    "rate": options.share(0.2),
    "output_rate": options.share(0.1),
    "rewind_step": options.whole(0, 0),
    "validation": options.whole(5000),
}
"""Of all that begin with a `Lottery`: the share that a round prunes, that of the last layer, the step to rewind to, and
how many training images are held back to stop early."""

OPTIONS: Mapping[str, Options] = {
    "tickets": {
        **TRAINING,
        "rounds": options.whole(18),
        "controls": options.wholes(3, 7, 11, 15, 18),
        "draws": options.whole(1),
    }
}
"""Of the one method: rounds of pruning; the rounds at which a ticket is compared with new weights under its masks, with
random masks and with pruning at once; and how many draws of each of the first two."""


def check_options(where: str, name: str, given: Mapping[str, object]) -> None:
    """Raise ValueError for options that are not accepted, or do not fit together."""
    options.check(where, OPTIONS[name], given)
    found = options.values(OPTIONS[name], given)
    if max(found["controls"], default=0) > found["rounds"]:
        raise ValueError(f"{where}: expected controls up to round {found['rounds']}, got {found['controls']}")


def held_back(run: Run) -> int:
    """How many training images are held back for validation."""
    validation, _, _ = TRAINING["validation"]
    count: int = run.options.get("validation", validation)
    return count


class Trainer:
    """Trains a network as a `Lottery` asks for it, and measures it on validation and test images.

    Args:
        run: Its settings.
        data: All images; `validation` of them are held back, the same ones for each training of a seed.
        validation: How many.
        tell: Is given the share of this training that is done.
    """

    def __init__(self, run: Run, data: Dataset, validation: int, tell: Callable[[float], None]) -> None:
        self._run, self._tell = run, tell
        used = data.first(run.settings["images"], run.settings["test_images"])
        self.data, *held = used.split(validation, run.seed)
        device = torch.device(run.settings["device"])
        self.network = NETWORKS[run.network]
        self._validation = held[0].to(device), held[1].to(device)
        self._tests = used.test_images.to(device), used.test_labels.to(device)

    def measure(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy on the test images in percent, and loss on the validation images."""
        accuracy, _ = evaluate(model, self.network, *self._tests, self.data.black)
        _, loss = evaluate(model, self.network, *self._validation, self.data.black)
        return accuracy, loss

    def fit(self, model: nn.Module, seed: int, start_step: int = 0, **changes: Any) -> dict[str, Any]:
        """Train all that requires a gradient. Returns the evaluations, by what was measured.

        Args:
            model: Any, on its device.
            seed: Of the order of the images.
            start_step: The step to begin with.
            **changes: Of the run's settings.

        Raises:
            FloatingPointError: Where the loss or a weight is no number any more.
        """
        settings = {**self._run.settings, **changes}
        parameters = (one for one in model.parameters() if one.requires_grad)
        attached = Attached(model.train(), optimizer_of(parameters, settings))
        loop = Loop(attached, self.network, self.data, settings, seed, lambda: self._tell(loop.step / loop.steps))
        loop.step = start_step
        found: dict[str, list[float]] = {key: [] for key in ("step", "accuracy", "validation_loss", "loss", "seconds")}

        def point(loss: float, seconds: float) -> None:
            accuracy, validation_loss = self.measure(model)
            for key, value in (
                ("step", loop.step),
                ("accuracy", rounded(accuracy)),
                ("validation_loss", rounded(validation_loss)),
                ("loss", rounded(loss)),
                ("seconds", rounded(seconds)),
            ):
                found[key].append(value)
            self._tell(loop.step / loop.steps)

        if not loop.run(point) or not all(bool(one.isfinite().all()) for one in model.parameters()):
            raise FloatingPointError(f"{self._run.name}: expected a finite loss, got none after step {loop.step}")
        return found

    def __call__(self, model: nn.Module, masks: HeldMasks, start_step: int) -> dict[str, Any]:
        """As a `Lottery` calls it."""
        return self.fit(model, torch.initial_seed(), start_step)


class Progress:
    """The share of a run of many trainings."""

    def __init__(self, session: Session, trainings: int) -> None:
        self._session, self._trainings, self.done, self.text = session, trainings, 0, ""

    def tell(self, share: float) -> None:
        """Of the training that is under way."""
        self._session.progress(min(1.0, (self.done + share) / self._trainings), self.text)

    def ended(self, text: str) -> None:
        """One more training is there."""
        self.done, self.text = self.done + 1, text
        self.tell(0.0)


def lottery_of(run: Run, trainer: Trainer, session: Session, given: Mapping[str, Any], rounds: int) -> Lottery:
    """The experiment of one seed, in the folder of the run's checkpoint, without files in it that are damaged."""
    for path in () if session.checkpoint is None else session.checkpoint.glob("*.pt"):
        load_or_remove(path)
    with torch.device("meta"):
        layers = [name for name, one in trainer.network.build().named_modules() if isinstance(one, nn.Linear)]
    return Lottery(
        trainer.network.build,
        trainer,
        rate=given["rate"],
        rates={layers[-1]: given["output_rate"]},
        rounds=rounds,
        rewind_step=given["rewind_step"],
        device=run.settings["device"],
        seed=run.seed,
        folder=session.checkpoint,
    )


def attempted(train: Callable[[], Ticket]) -> Ticket | None:
    """What was trained; None where that diverged."""
    try:
        return train()
    except FloatingPointError:
        return None


def described(kind: str, ticket: Ticket | None, lottery: Lottery, number: int, **more: Any) -> dict[str, Any]:
    """A training in the record.

    best_step, best_accuracy: where validation loss is least, and the test accuracy there. One that diverged counts as
    chance, and has no best step.
    """
    if ticket is None:
        return {
            "kind": kind,
            "round": number,
            "left": lottery.left(number),
            "weights": sum(lottery.counts(number).values()),
            "accuracy": 100 / CLASSES,
            "best_step": None,
            "best_accuracy": 100 / CLASSES,
            "evaluations": {},
            "diverged": True,
            **more,
        }
    found = ticket.result
    best = min(range(len(found["step"])), key=lambda place: found["validation_loss"][place])
    return {
        "kind": kind,
        "round": ticket.round,
        "left": ticket.left,
        "weights": sum(ticket.counts.values()),
        "accuracy": found["accuracy"][-1],
        "best_step": found["step"][best],
        "best_accuracy": found["accuracy"][best],
        "evaluations": found,
        **more,
    }


def points_of(run: Run, trainer: Trainer, whole: Ticket) -> list[dict[str, float]]:
    """The evaluations of the whole network, as a record has them."""
    per_epoch, _ = steps_of(trainer.data, run.settings)
    found = whole.result
    return [
        {
            "step": found["step"][place],
            "epoch": rounded(found["step"][place] / per_epoch),
            "accuracy": found["accuracy"][place],
            "loss": found["loss"][place],
            "seconds": found["seconds"][place],
        }
        for place in range(len(found["step"]))
    ]


def perform(run: Run, data: Dataset, session: Session) -> Outcome:
    """Train the whole network, the ticket of each round, and what tickets are compared with.

    Where a ticket diverges, those of later rounds cannot be made, and count as it does; its controls are left out.
    """
    given = options.values(OPTIONS[run.method], run.options)
    controls, draws = given["controls"], given["draws"]
    progress = Progress(session, given["rounds"] + 1 + len(controls) * (1 + 2 * draws))
    with as_set(run):
        trainer = Trainer(run, data, given["validation"], progress.tell)
        lottery = lottery_of(run, trainer, session, given, given["rounds"])
        trainings: list[dict[str, Any]] = []

        def add(kind: str, number: int, ticket: Ticket | None, **more: Any) -> None:
            trainings.append(described(kind, ticket, lottery, number, **more))
            found = "diverged" if ticket is None else f"{trainings[-1]['accuracy']:.2f}%"
            progress.ended(f"{kind}, {percent(trainings[-1]['left'])}: {found}")

        whole = ticket = attempted(lambda: lottery.round(0))
        add("ticket", 0, whole)
        for number in range(1, given["rounds"] + 1):
            if ticket is not None:  # else nothing is there to prune
                ticket = attempted(functools.partial(lottery.round, number))
            add("ticket", number, ticket)
            if number not in controls:
                continue
            for draw in range(draws if ticket is not None else 0):
                for kind in ("reinit", "random mask"):
                    add(kind, number, attempted(functools.partial(lottery.control, kind, number, draw=draw)), draw=draw)
            once = functools.partial(lottery.one_shot, number)
            add("one-shot", number, None if whole is None else attempted(once))
        seconds = math.fsum(math.fsum(one["evaluations"].get("seconds", ())) for one in trainings)
        results = {"trainings": trainings, "seconds": seconds}
        points = [] if whole is None else points_of(run, trainer, whole)
        status = "diverged" if whole is None else "ok"
        return Outcome(points, results, lottery.counts(given["rounds"]), lottery.counts(0), status)
