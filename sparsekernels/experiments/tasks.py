# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a run does: the tasks by name, each with its methods."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from . import deconstruct, methods, tickets, training
from .datasets import Dataset
from .runs import Run
from .training import Outcome, Session


@dataclass(frozen=True)
class Task:
    """One kind of run.

    methods        the names of its methods
    check_options  (where, method, options): raises ValueError for what the method does not take
    perform        does it
    held_back      how many training images a run does not train with
    left_out       why a run is not made on this machine unless its method is asked for by name
    """

    methods: Collection[str]
    check_options: Callable[[str, str, Mapping[str, object]], None]
    perform: Callable[[Run, Dataset, Session], Outcome]
    held_back: Callable[[Run], int] = lambda run: 0
    left_out: Callable[[Run], str | None] = lambda run: None


TASKS: Mapping[str, Task] = {
    "training": Task(methods.METHODS, methods.check_options, training.train, left_out=methods.left_out),
    "lottery": Task(tickets.OPTIONS, tickets.check_options, tickets.perform, tickets.held_back),
    "criteria": Task(deconstruct.OPTIONS, deconstruct.check_options, deconstruct.perform, tickets.held_back),
}
"""The tasks by name."""
