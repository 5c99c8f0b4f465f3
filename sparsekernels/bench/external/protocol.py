# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What every engine's program has in common: it makes a job ready, then obeys lines on standard input.

The first line is the job, a JSON object, and the program says whether it can be done. After that:

    run N           run it N times                     {"seconds": 0.31, "interruptions": 2}    of all N together
    output PATH     run it, results to an .npz file    {"output": PATH}

The first answer is {"ready": {"versions": {...}, "details": {...}}}, or {"unavailable": why}; any answer may be
{"error": why}. Answers are JSON, one a line, on the standard output that the program was started with; what engines
print goes to standard error. The program ends when its input does.

Only the standard library and numpy are imported here: this runs in every engine's environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

Job = Mapping[str, Any]
"""kind        "network" or "linear"
name, batch, sparsity, pruning, seed    which network or layer; sparsity as a share
pass        "forward" or "forward+backward"
dtype       "float32" or "bfloat16"
threads     as many as the engine may use
onnx, input, weight, grad_output    the files that the case has
and what else is the engine's own."""

_PR_SET_PDEATHSIG = 1


class Unavailable(Exception):
    """The engine cannot do this job here; the message says why."""


@dataclass(frozen=True)
class Engine:
    """A job made ready.

    call      runs it once
    results   runs it once and returns what the parent checks: "output", and with a backward pass "input gradient" and
              "weight gradient"
    context   entered around every sample, outside the measured time
    versions  of what computes
    details   what else the record should say
    seconds   of so many calls, by another clock than the processor's: a GPU's
    """

    call: Callable[[], object]
    results: Callable[[], Mapping[str, np.ndarray]]
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: Callable[[int], float] | None = None


def serve(prepare: Callable[[Job], Engine]) -> None:
    """Serve one job. Engines are imported by `prepare`: what is not installed is an answer, not a death."""
    with contextlib.suppress(OSError, AttributeError):  # a stopped process would outlive the parent that stopped it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = iter(sys.stdin.readline, "")
    job = next(lines, None)
    if job is None:
        return
    try:
        engine = prepare(json.loads(job))
    except Unavailable as reason:
        _answer(answers, {"unavailable": str(reason)})
        return
    except ImportError as reason:
        _answer(answers, {"unavailable": _text(reason)})
        return
    except Exception as error:
        _answer(answers, {"error": _text(error)})
        return
    gc.collect()
    gc.freeze()  # what the engine holds is not walked by the collections that fall into samples
    _answer(answers, {"ready": {"versions": dict(engine.versions), "details": dict(engine.details)}})
    for line in lines:
        try:
            _answer(answers, _obey(engine, line.rstrip("\n")))
        except Exception as error:
            _answer(answers, {"error": _text(error)})


def _obey(engine: Engine, line: str) -> dict[str, Any]:
    command, _, argument = line.partition(" ")
    if command == "run":
        repeats = range(int(argument))
        with engine.context():
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.perf_counter()
            if engine.seconds is not None:
                seconds = engine.seconds(len(repeats))
            else:
                for _ in repeats:
                    engine.call()
                seconds = time.perf_counter() - start
        interruptions = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before
        return {"seconds": seconds, "interruptions": interruptions}
    if command == "output":
        with engine.context():
            results = engine.results()
        arrays: dict[str, Any] = {name: np.asarray(value, dtype=np.float32) for name, value in results.items()}
        np.savez(argument, **arrays)
        return {"output": argument}
    return {"error": f"expected command to be 'run', 'output', got {command!r}"}


def _answer(file: IO[str], answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=file, flush=True)


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
