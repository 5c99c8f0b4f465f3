# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The child process that measures. `runner.py` starts it and reads what it says: one JSON object a line.

{"event": "cases", "total": 28}        how many there will be
{"event": "case", "text": "..."}       the one that starts
{"event": "said", "text": "..."}       what a suite does that takes long
{"event": "note", "text": "..."}       why a variant has no time
{"event": "record", "record": {...}}   a result
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..timing import Clock, Effort, Sampler, clock_of, interleave, median_ratio, spread
from ..usage import Interruptions
from .devices import autotuned
from .machine import commit, machine, versions
from .record import Record, parts
from .suite import Case, Prepared, Selection, Suite, Unavailable, Variant, load, named

Emit = Callable[[dict[str, Any]], None]

LOG = logging.getLogger("sparsekernels.bench")
"""What suites say here of what takes long is passed on, and the command line prints it."""


@dataclass(frozen=True)
class Session:
    """What all cases of a run share. `emit` sends a message to the parent process."""

    clock: Clock
    effort: Effort
    emit: Emit
    interruptions: Interruptions = field(default_factory=Interruptions)


@dataclass
class Outcome:
    """What became of one variant of a case."""

    status: str = "ok"
    max_error: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sampler: Sampler | None = None
    interruptions: Callable[[], int] = lambda: 0


class _Teller(logging.Handler):
    """Passes on what suites say."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit({"event": "said", "text": record.getMessage()})


def main() -> None:
    """Run the request on standard input; results go to standard output, all other output to standard error."""
    request = json.loads(sys.stdin.read())
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # compilers print what they like; it must not come between the records

    def emit(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=results, flush=True)

    LOG.setLevel(logging.INFO)
    LOG.addHandler(_Teller(emit))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that variants are closed
    suite = load(request["suite"])
    gc.collect()
    gc.freeze()  # a thousand modules, which the collection before each case would walk in a tenth of a second
    run(suite, Selection(**{k: _frozen(v) for k, v in request["selection"].items()}), emit)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def run(suite: Suite, selection: Selection, emit: Emit) -> None:
    """Measure the selected cases of `suite`, reporting through `emit`."""
    threads = selection.threads or suite.threads
    if threads is not None:
        torch.set_num_threads(threads)
    with autotuned(selection.device):
        _run(suite, selection, emit)


def _run(suite: Suite, selection: Selection, emit: Emit) -> None:
    cases = suite.cases(selection)
    emit({"event": "cases", "total": len(cases)})
    session = Session(clock_of(selection.device), suite.effort(selection), emit)
    missing = dict.fromkeys(selection.variants)
    names: dict[str, None] = {}  # of the variants of cases that have none of those selected
    without = []
    for case in cases:
        emit({"event": "case", "text": str(case)})
        offered = suite.variants(case, selection)
        missing = {one: None for one in missing if not any(named(variant.name, one) for variant in offered)}
        variants = [variant for variant in offered if selection.takes_variant(variant.name)]
        if not variants:
            names |= dict.fromkeys(variant.name for variant in offered)
            without.append(str(case))
        for record in measure(suite, case, variants, session):
            emit({"event": "record", "record": json.loads(record.to_json())})
    if without:
        where = suite.name if len(without) == len(cases) else f"{suite.name} {', '.join(without)}"
        emit({"event": "note", "text": f"{where}: no variant matches these options; it has {', '.join(names)}"})
    for one in missing if len(without) < len(cases) else ():
        emit({"event": "note", "text": f"{suite.name}: no case has a variant {one!r}"})
    if session.interruptions.per_second > Interruptions.DISTURBING:
        often = f"{session.interruptions.per_second:.0f} times a second"
        text = f"{suite.name}: other programs preempted the process {often}"
        emit({"event": "note", "text": f"{text}; these times are disturbed, measure again on a quiet machine"})


def measure(suite: Suite, case: Case, variants: list[Variant], session: Session) -> Iterator[Record]:
    """The records of one case, one a variant. Only a variant whose result is right is timed."""
    try:
        yield from _records(suite, case, variants, session)
    finally:
        for variant in variants:
            variant.close()


def _records(suite: Suite, case: Case, variants: list[Variant], session: Session) -> Iterator[Record]:
    outcomes = {variant.name: _attempt(case, variant, session) for variant in variants}
    samplers = {
        name: _tolerant(one.sampler, one, _where(case, name), session)
        for name, one in outcomes.items()
        if one.sampler is not None
    }
    interruptions = Interruptions()

    def elsewhere() -> int:
        return sum(one.interruptions() for one in outcomes.values())

    with _only_young_garbage(), interruptions.counted(elsewhere):
        samples = interleave(samplers, session.effort)
    session.interruptions.add(interruptions)
    times = {name: seconds for name, seconds in samples.items() if outcomes[name].status == "ok"}
    own_versions = {key: value for one in outcomes.values() for key, value in one.versions.items()}
    for variant in variants:
        name, outcome = variant.name, outcomes[variant.name]
        seconds = times.get(name)
        ms: list[float | None] = [None] * 3
        if seconds is not None:
            ms = [_rounded(1e3 * one) for one in spread(seconds)]
        p20, p50, p80 = ms
        details = dict(outcome.details)
        if suite.rival is not None:
            over = _ratio(seconds, _beside(suite.rival, name, times))
            details |= {} if over is None else {f"over_{suite.rival}": over}
        ideal_fraction = _ideal_fraction(suite, variant, times)
        if suite.floor is not None and variant.sparsity is not None:
            least = _against(suite.floor, name, times)
            if least is not None and ideal_fraction is not None:
                details["reachable_fraction"] = max(least, ideal_fraction)
            cap = _ratio(_beside(suite.baseline, name, times), _beside(suite.floor, name, times))
            details |= {} if cap is None else {"traffic_cap": cap}
        yield Record(
            suite=suite.name,
            case=case.name,
            variant=name,
            pass_=case.pass_,
            device=case.device,
            dtype=case.dtype,
            threads=torch.get_num_threads(),
            sparsity=variant.sparsity,
            p20_ms=p20,
            p50_ms=p50,
            p80_ms=p80,
            speedup=_against(suite.baseline, name, times),
            ideal_fraction=ideal_fraction,
            max_error=outcome.max_error,
            status=outcome.status,
            machine=machine(),
            versions=versions() | own_versions,
            commit=commit(),
            details=details,
            interruptions=_rounded(interruptions.per_second),
        )


@contextlib.contextmanager
def _only_young_garbage() -> Iterator[None]:
    """What there is already is not walked by the collections that fall into the samples inside."""
    gc.collect()
    thresholds = gc.get_threshold()
    gc.set_threshold(*thresholds[:2], sys.maxsize >> 32)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _attempt(case: Case, variant: Variant, session: Session) -> Outcome:
    """Prepare one variant, check it and warm it up."""
    where, outcome = _where(case, variant.name), Outcome()
    try:
        prepared = variant.prepare()
        outcome.details, outcome.versions = prepared.details, prepared.versions
        verdict = None if prepared.check is None else prepared.check()
        if verdict is not None:
            outcome.max_error = _rounded(verdict.max_error) if math.isfinite(verdict.max_error) else None
            if not verdict.passed:
                outcome.status = "wrong"
                text = f"{where}: wrong, the largest error is {verdict.max_error:.3g}{verdict.words}"
                session.emit({"event": "note", "text": text})
                return outcome
        sampler = _sampler(prepared, session.clock)
        if not prepared.warm:
            sampler(1)
        outcome.sampler, outcome.interruptions = sampler, prepared.interruptions
    except Unavailable as reason:
        outcome.status = "unavailable"
        session.emit({"event": "note", "text": f"{where}: unavailable, {reason}"})
    except Exception as error:  # whatever a variant raises is a result to report, and the others go on
        outcome.status = "error"
        session.emit({"event": "note", "text": f"{where}: {type(error).__name__}: {error}"})
    return outcome


def _where(case: Case, name: str) -> str:
    return f"{replace(case, pattern='')}, {name}"


def _sampler(prepared: Prepared, clock: Clock) -> Sampler:
    if prepared.sampler is not None:
        return prepared.sampler

    def sample(repeats: int) -> float:
        with prepared.context():
            return clock.seconds(prepared.call, repeats) / (repeats * prepared.calls)

    return sample


def _tolerant(sampler: Sampler, outcome: Outcome, where: str, session: Session) -> Sampler:
    """`sampler`, but where it raises, the variant has failed and the others continue."""

    def sample(repeats: int) -> float:
        if outcome.status == "ok":
            try:
                return sampler(repeats)
            except Exception as error:
                outcome.status = "error"
                session.emit({"event": "note", "text": f"{where}: {type(error).__name__}: {error}"})
        return math.inf

    return sample


def _ideal_fraction(suite: Suite, variant: Variant, times: dict[str, list[float]]) -> float | None:
    """Time of the ideal over that of `variant`: the suite's, or where zeros are skipped the baseline's by density."""
    if variant.sparsity is None:
        return None if suite.ideal is None else _against(suite.ideal, variant.name, times)
    speedup = _against(suite.baseline, variant.name, times)
    return None if speedup is None else _rounded(speedup * (1 - variant.sparsity))


def _against(reference: str, name: str, times: dict[str, list[float]]) -> float | None:
    """Time of `reference`, in the row of `name`, over that of `name`."""
    return _ratio(_beside(reference, name, times), times.get(name))


def _beside(kind: str, name: str, times: dict[str, list[float]]) -> list[float] | None:
    """The samples of the variant `kind` in the mode of `name`: the one without a pattern, or of the same pattern."""
    _, pattern, _ = parts(name)
    _, slash, mode = name.partition("/")
    return times.get(f"{kind}{slash}{mode}", times.get(f"{kind}:{pattern}{slash}{mode}"))


def _ratio(numerators: list[float] | None, denominators: list[float] | None) -> float | None:
    if numerators is None or denominators is None:
        return None
    return _rounded(median_ratio(numerators, denominators))


def _rounded(value: float) -> float:
    """Five digits: more than any measurement carries, and short in the file."""
    return float(f"{value:.5g}")


if __name__ == "__main__":
    main()
