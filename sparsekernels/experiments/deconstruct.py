# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The task "criteria": which weights a mask should keep, what should become of them, and what masks alone can do."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from ..training import CRITERIA, LearnedSupermask, Ticket, one_shot_supermask
from ..training.storage import load, save_atomically
from ..training.treatments import KEPT, PRUNED
from . import options
from .datasets import CLASSES, Dataset, seed_of
from .options import Options
from .runs import Run, percent
from .tickets import TRAINING, Progress, Trainer, attempted, described, lottery_of, points_of
from .training import Outcome, Session, as_set

UNDER = ("rewind", "signed_constant")
"""What is under a supermask: initial weights, or constants of their signs."""

NINE = tuple(name for name in CRITERIA if not name.endswith("_sign"))


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


OPTIONS: Mapping[str, Options] = {
    "criteria": {
        **TRAINING,
        "rounds": options.wholes(3, 7, 11),
        "criteria": options.some_of(CRITERIA, *NINE),
        "kept": options.some_of(tuple(KEPT), *(name for name in KEPT if name != "rewind")),
        "pruned": options.some_of(tuple(PRUNED), "freeze", "freeze_or_zero"),
        "supermasks": options.some_of(CRITERIA, *CRITERIA),
        "supermasks_left": options.shares(0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
        "learned_epochs": options.whole(10),
        "learned_rate": (0.1, "a number above 0", _is_rate),
    }
}
"""Of the one method.

rounds            the whole network is pruned at once to what so many rounds would leave, and trained again
criteria          by each of these, kept weights rewound, others zero
kept, pruned      by large_final, with each of these treatments in the place of rewind, and of zero
supermasks        the criteria of masks over the untrained network, at each of the shares `supermasks_left`, where
                  each layer has as many weights of the sign that the criterion asks for
learned_epochs    of learned masks, by Adam at the rate `learned_rate`: over initial weights and constants, with and
                  without rescaling
"""


def check_options(where: str, name: str, given: Mapping[str, object]) -> None:
    """Raise ValueError for options that are not accepted."""
    options.check(where, OPTIONS[name], given)


def perform(run: Run, data: Dataset, session: Session) -> Outcome:
    """Train the whole network once, and everything that follows from it.

    Where it diverges, there are no masks of its weights, and what would be trained under them counts as chance.
    """
    given = options.values(OPTIONS[run.method], run.options)
    ways = [
        *((name, "rewind", "zero") for name in given["criteria"]),
        *(("large_final", name, "zero") for name in given["kept"]),
        *(("large_final", "rewind", name) for name in given["pruned"]),
    ]
    ways = list(dict.fromkeys(ways))
    learned = [(under, rescale) for under in UNDER for rescale in (False, True)] if given["learned_epochs"] else []
    progress = Progress(session, 1 + len(given["rounds"]) * len(ways) + len(learned))
    with as_set(run):
        trainer = Trainer(run, data, given["validation"], progress.tell)
        lottery = lottery_of(run, trainer, session, given, max(given["rounds"], default=0))
        whole = attempted(lambda: lottery.round(0))
        progress.ended("the whole network")
        masked = [
            _supermask(trainer, run, whole, criterion, under, left)
            for criterion in given["supermasks"]
            for under in UNDER
            for left in given["supermasks_left"]
            if whole is not None and _fits(whole, criterion, left)
        ]
        masked += [_learned(trainer, run, session, given, under, rescale, progress) for under, rescale in learned]
        trainings = []
        for number in given["rounds"]:
            for criterion, kept, pruned in ways:
                more = {"criterion": criterion, "kept": kept, "pruned": pruned}
                once = functools.partial(lottery.one_shot, number, **more)
                ticket = None if whole is None else attempted(once)
                trainings.append(described("one-shot", ticket, lottery, number, **more))
                progress.ended(f"{criterion}, {percent(lottery.left(number))}: {trainings[-1]['accuracy']:.2f}%")
        weights = lottery.counts(0)
        results = {"supermasks": masked, "trainings": trainings}
        points = [] if whole is None else points_of(run, trainer, whole)
        return Outcome(points, results, weights, weights, "diverged" if whole is None else "ok")


def _fits(whole: Ticket, criterion: str, left: float) -> bool:
    """Whether each layer has as many weights of the sign that a criterion asks for."""
    if not criterion.endswith("_sign"):
        return True
    for name, mask in whole.masks.items():
        product = whole.start[name].sign() * whole.final[name].sign()
        allowed = product > 0 if criterion.endswith("same_sign") else product < 0
        if int(allowed.sum()) < round(mask.numel() * left):
            return False
    return True


def _supermask(trainer: Trainer, run: Run, whole: Ticket, criterion: str, under: str, left: float) -> dict[str, Any]:
    """The accuracy of the untrained network under a mask."""
    build = trainer.network.build
    found = one_shot_supermask(build, whole.final, left, criterion=criterion, weights=under, seed=run.seed)
    accuracy, _ = trainer.measure(found.network(build).to(run.settings["device"]))
    return {"kind": "one-shot", "criterion": criterion, "weights": under, "left": found.left, "accuracy": accuracy}


def _learned(
    trainer: Trainer,
    run: Run,
    session: Session,
    given: Mapping[str, Any],
    under: str,
    rescale: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Masks that are learned, kept in the run's folder: the likeliest of them."""
    name = f"learned-{under}{'-rescaled' if rescale else ''}"
    path = None if session.checkpoint is None else session.checkpoint / f"{name}.pt"
    if path is not None and path.exists():
        found: dict[str, Any] = load("criteria", path, "learned", "found")["found"]
    else:
        model = LearnedSupermask(trainer.network.build, seed=run.seed, weights=under, rescale=rescale)
        model.to(run.settings["device"])
        found = {"kind": "learned", "weights": under, "rescale": rescale}
        try:
            evaluations = trainer.fit(
                model,
                seed_of(run.seed, name),
                epochs=given["learned_epochs"],
                learning_rate=given["learned_rate"],
                optimizer="Adam",
                weight_decay=0.0,
            )
        except FloatingPointError:
            found |= {"evaluations": {}, "left": None, "accuracy": 100 / CLASSES, "diverged": True}
        else:
            try:
                left = model.supermask().left
            except ValueError:  # no score is above 0: nothing is left
                left = 0.0
            found |= {"evaluations": evaluations, "left": left, "accuracy": evaluations["accuracy"][-1]}
        if path is not None:
            save_atomically({"kind": "learned", "found": found}, path)
    progress.ended(f"{name}: {found['accuracy']:.2f}%")
    return found
