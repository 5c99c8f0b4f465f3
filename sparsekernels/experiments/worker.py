# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The child process that trains. `pool.py` starts it; it reads a run a line and says, one JSON object a line:

{"event": "begun"}                       it has read the run
{"event": "progress", "share": 0.5, "text": "88.1%"}
{"event": "record", "record": "..."}     the run has ended
{"event": "failed", "text": "..."}       it raised; the worker takes the next one
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from ..bench.machine import commit, machine, versions
from . import datasets
from .datasets import Dataset
from .records import Record
from .runs import Run
from .tasks import TASKS
from .training import Session


def main() -> None:
    """Serve the runs on standard input; results go to standard output, all other output to standard error."""
    request = json.loads(sys.stdin.readline())
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=results, flush=True)

    data = datasets.load(request["dataset"], None if request["folder"] is None else Path(request["folder"]))
    for line in sys.stdin:
        asked = json.loads(line)
        emit({"event": "begun"})
        run = Run.from_dict(asked["run"])
        session = Session(
            lambda share, text: emit({"event": "progress", "share": share, "text": text}), Path(asked["checkpoint"])
        )
        try:
            record = perform(run, data, session)
        except Exception as error:  # whatever a run raises is told, and the others go on
            traceback.print_exc()
            emit({"event": "failed", "text": f"{type(error).__name__}: {error}"})
        else:
            emit({"event": "record", "record": record.to_json()})


def perform(run: Run, data: Dataset, session: Session) -> Record:
    """Do the run. Returns its record; raises ValueError for data that are not the run's."""
    if data.checksum != run.checksum:
        raise ValueError(f"{run.name}: expected data of checksum {run.checksum}, got {data.checksum}")
    found = TASKS[run.task].perform(run, data, session)
    return Record(
        key=run.key,
        run=run,
        points=found.points,
        results=found.results,
        nonzeros=found.nonzeros,
        weights=found.weights,
        status=found.status,
        data={
            "name": data.name,
            "checksum": data.checksum,
            "mean": data.mean,
            "std": data.std,
            "train_images": len(data.train_labels),
            "test_images": len(data.test_labels),
        },
        machine=machine(),
        versions=versions(),
        commit=commit(),
    )
