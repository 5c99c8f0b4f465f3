# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Measures one case with all peers: makes it, starts a process for each variant, checks their results, lets them take
turns, and turns what they say into records.

A case is one pruned network, or one pruned linear layer and a pass. In records it is called network/vgg16-d@64, after
its batch, and its variants openvino:random-90, after its zeros, so that the reports give each sparsity a row.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from children import Child, ChildError
from environments import EXPORT, OURS, Launch, Peer, Variant

from sparsekernels.bench import machine, report
from sparsekernels.bench.record import Record
from sparsekernels.bench.report import Column, Layout, Row
from sparsekernels.bench.suite import Unavailable
from sparsekernels.timing import Effort, Interruptions, Sampler, interleave, median_ratio, spread

SUITE = "peers"

BASELINE = "torch"
"""The variant that a record's `speedup` is taken over."""

SAMPLE = 0.1
"""Seconds that a sample takes at least, so that it shows an engine at its work and not on its way back to it.

After another engine's turn, DeepSparse's first call of VGG16-D at batch 64 takes 20% longer, the second 4%, ours 5% and
1%. The first is not timed where it is short; see `timer.interleave`.
"""

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""The largest error accepted, relative to the largest of the reference: dense torch in float32 on the same weights.

The error of bfloat16 depends on the network more than on the engine: up to twice what torch itself has in bfloat16 is
accepted as well, and random networks need that.
"""


@dataclass(frozen=True)
class Case:
    """What is measured. The name is that of the network, or "1024x1024": outputs by inputs of the linear layer.

    kind      "network" or "linear"
    sparsity  share of zeros in each weight, in percent
    pruning   of `masks.PRUNINGS`
    pass_     "forward", and "forward+backward" for linear layers
    """

    kind: str
    name: str
    batch: int
    sparsity: float
    pass_: str = "forward"
    pruning: str = "random"
    seed: int = 0

    @property
    def full_name(self) -> str:
        """As records have it."""
        return f"{self.kind}/{self.name}@{self.batch}"

    @property
    def pattern(self) -> str:
        """Of the variants' names."""
        return f"{self.pruning}-{self.sparsity:g}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight of a linear layer; of a network nothing."""
        return tuple(map(int, self.name.split("x"))) if self.kind == "linear" else ()

    def __str__(self) -> str:
        return f"{self.full_name} {self.pattern} {self.pass_}"

    def job(self, threads: int) -> dict[str, Any]:
        """What every program is told of it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "shape": self.shape,
            "batch": self.batch,
            "sparsity": round(self.sparsity / 100, 7),
            "pruning": self.pruning,
            "seed": self.seed,
            "pass": self.pass_,
            "threads": threads,
        }


@dataclass(frozen=True)
class Session:
    """What all cases of a run share.

    launch  how to start the program of a peer; raises `Unavailable`
    say     told what begins; `note` what the report should say
    """

    launch: Callable[[Peer], Launch]
    threads: int
    processors: Sequence[int]
    effort: Effort
    say: Callable[[str], None]
    note: Callable[[str], None]


@dataclass
class Outcome:
    """What became of one variant."""

    peer: Peer
    variant: Variant
    status: str = "ok"
    max_error: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    child: Child | None = None


@dataclass(frozen=True)
class Made:
    """The files of a case, what torch's own bfloat16 error is, and why there is no ONNX file, if there is none."""

    folder: Path
    bfloat16_error: float
    onnx_error: str | None

    def inputs(self, case: Case, variant: Variant) -> dict[str, str]:
        """The files that a program reads, by the keys of its job."""
        names = {"input": "input.npy"}
        if case.kind == "network":
            names["onnx"] = "model.onnx"
        else:
            names |= {"weight": f"weight{_suffix(variant)}.npy", "grad_output": "grad_output.npy"}
        return {key: str(self.folder / name) for key, name in names.items()}

    def error(self, path: Path, case: Case, variant: Variant) -> float:
        """The largest error of the results in the file `path`, infinite where they are not comparable."""
        kept = None
        if case.kind == "linear":
            kept = np.load(self.folder / f"weight{_suffix(variant)}.npy") != 0
        with np.load(path) as results, np.load(self.folder / f"reference{_suffix(variant)}.npz") as reference:
            return largest_error(results, reference, kept)


def _suffix(variant: Variant) -> str:
    return "" if variant.blocks is None else "-blocks"


def largest_error(
    results: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], kept: np.ndarray | None = None
) -> float:
    """The largest difference over the largest of the reference, of the result where that is most.

    A weight gradient counts where `kept` is true. Infinite where a result is missing, of another shape or no number.
    """
    worst = 0.0
    for name, truth in reference.items():
        if name not in results or results[name].shape != truth.shape:
            return math.inf
        difference = np.abs(results[name].astype(np.float64) - truth)
        if name == "weight gradient" and kept is not None:
            difference = difference[kept]
        error = float(difference.max(initial=0.0) / np.abs(truth).max())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def measure(case: Case, peers: Mapping[str, Peer], session: Session) -> list[Record]:
    """The records of the case, one for each variant that has such cases. `peers` has `EXPORT` for the exporter.

    Raises `Unavailable` where the case cannot be made.
    """
    outcomes = [
        Outcome(peer, variant)
        for name, peer in peers.items()
        if name != EXPORT
        for variant in peer.variants
        if case.kind in variant.cases
    ]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        session.say(f"{case}: made by torch")
        made = _make(case, peers[EXPORT], outcomes, session, folder)
        turns: dict[str, Sampler] = {}
        failures: dict[str, str] = {}
        for outcome in outcomes:
            session.say(f"{case}: {outcome.variant.name}")
            try:
                sampler = _prepare(case, outcome, made, session, stack)
                sampler(1)
                turns[outcome.variant.name] = _tolerant(sampler, outcome, failures)
            except Unavailable as reason:
                outcome.status = "unavailable"
                failures[outcome.variant.name] = f"unavailable, {reason}"
            except _Wrong as wrong:
                outcome.status = "wrong"
                failures[outcome.variant.name] = str(wrong)
            except ChildError as error:
                outcome.status = "error"
                failures[outcome.variant.name] = str(error)
        session.say(f"{case}: taking turns")
        samples = interleave(turns, replace(session.effort, sample=SAMPLE))
    for name, text in failures.items():
        session.note(f"{case}, {name}: {text}")
    _note_interruptions(case, outcomes, session)
    times = {outcome.variant.name: samples[outcome.variant.name] for outcome in outcomes if outcome.status == "ok"}
    versions = machine.versions() | {key: value for one in outcomes for key, value in one.versions.items()}
    return [_record(case, outcome, times, versions, session.threads) for outcome in outcomes]


class _Wrong(Exception):
    """The results are beyond the tolerance."""


def _make(case: Case, exporter: Peer, outcomes: Sequence[Outcome], session: Session, folder: Path) -> Made:
    """Run the exporter; without its own environment, where that cannot be had: there is no ONNX file then."""
    onnx_error, onnx = None, any(one.peer.onnx for one in outcomes)
    blocks = {one.variant.blocks for one in outcomes if one.variant.blocks is not None}
    fitting = [size for size in blocks if all(length % size == 0 for length in case.shape)]
    try:
        launch = session.launch(exporter if onnx else replace(exporter, requirements=()))
    except Unavailable as reason:
        onnx_error, onnx = str(reason), False
        launch = session.launch(replace(exporter, requirements=()))
    job = {**case.job(session.threads), "folder": str(folder), "blocks": max(fitting, default=None), "onnx": onnx}
    try:
        with Child(launch, session.processors) as child:
            _, details = child.start(job)
    except ChildError as error:
        raise Unavailable(f"it cannot be made: {error}") from error
    return Made(folder, details["bfloat16_error"], onnx_error or details["onnx_error"])


def _prepare(case: Case, outcome: Outcome, made: Made, session: Session, stack: contextlib.ExitStack) -> Sampler:
    """Start the variant's process, give it the job and check its results."""
    peer, variant = outcome.peer, outcome.variant
    if peer.onnx and made.onnx_error is not None:
        raise Unavailable(f"there is no ONNX file: {made.onnx_error}")
    if variant.blocks is not None and not (made.folder / "weight-blocks.npy").exists():
        raise Unavailable(f"{case.name} is not whole blocks of {variant.blocks}x{variant.blocks}")
    launch = session.launch(peer)
    with contextlib.ExitStack() as own:
        child = own.enter_context(Child(launch, session.processors))
        blocks = {} if variant.blocks is None else {"blocks": variant.blocks}
        job = {**case.job(session.threads), **made.inputs(case, variant), "dtype": variant.dtype, **blocks}
        outcome.versions, outcome.details = child.start({**job, **variant.options})
        results = made.folder / f"{variant.name}.npz"
        child.output(results)
        error = made.error(results, case, variant)
        outcome.max_error = _rounded(error) if math.isfinite(error) else None
        accepted = TOLERANCE[variant.dtype]
        if variant.dtype == "bfloat16":
            accepted = max(accepted, 2 * made.bfloat16_error)
        if not error <= accepted:
            raise _Wrong(f"wrong, the largest error is {error:.3g} of the largest value, expected {accepted:.3g}")
        outcome.child = child
        stack.push(own.pop_all())  # it lives until all have been measured
    return child.run


def _tolerant(sampler: Sampler, outcome: Outcome, failures: dict[str, str]) -> Sampler:
    """`sampler`, but where the process fails, the variant has failed and the others take their turns."""

    @functools.wraps(sampler)
    def sample(repeats: int) -> float:
        if outcome.status != "ok":
            return math.inf
        try:
            return sampler(repeats)
        except ChildError as error:
            outcome.status = "error"
            failures[outcome.variant.name] = str(error)
            return math.inf

    return sample


def _note_interruptions(case: Case, outcomes: Sequence[Outcome], session: Session) -> None:
    children = [outcome.child for outcome in outcomes if outcome.child is not None]
    seconds = sum(child.seconds for child in children)
    often = sum(child.interruptions for child in children) / seconds if seconds else 0.0
    if often > Interruptions.DISTURBING:
        session.note(
            f"{case}: other programs took the processor {often:.0f} times a second; these times are disturbed, measure"
            " again on a quiet machine"
        )


def _record(
    case: Case,
    outcome: Outcome,
    times: Mapping[str, Sequence[float]],
    versions: Mapping[str, str],
    threads: int,
) -> Record:
    name = outcome.variant.name
    seconds, ours, baseline = times.get(name), times.get(OURS), times.get(BASELINE)
    details: dict[str, Any] = {"batch": case.batch, "dtype": outcome.variant.dtype, **outcome.details}
    if seconds is not None and ours is not None:
        details["over_ours"] = _rounded(median_ratio(seconds, ours))
    ms: list[float | None] = [None] * 3
    if seconds is not None:
        ms = [_rounded(1e3 * one) for one in spread(seconds)]
    p20, p50, p80 = ms

    return Record(
        suite=SUITE,
        case=case.full_name,
        variant=f"{name}:{case.pattern}",
        pass_=case.pass_,
        device="cpu",
        dtype="float32",
        threads=threads,
        sparsity=round(case.sparsity / 100, 7),
        p20_ms=p20,
        p50_ms=p50,
        p80_ms=p80,
        speedup=None if seconds is None or baseline is None else _rounded(median_ratio(baseline, seconds)),
        ideal_fraction=None,
        max_error=outcome.max_error,
        status=outcome.status,
        machine={**machine.machine(), "allocator": dict(machine.ALLOCATOR)},
        versions=versions,
        commit=machine.commit(),
        details=details,
    )


def _rounded(value: float) -> float:
    """Five digits: more than any measurement carries, and short in the file."""
    return float(f"{value:.5g}")


def column(variant: str) -> Column:
    """The time of `variant`, and behind it in parentheses how many times as long as ours that is."""
    time = report.time_column(variant)

    def text(row: Row) -> str:
        ratio = row[variant].details.get("over_ours") if variant in row and variant != OURS else None
        return time.text(row) if ratio is None else f"{time.text(row)} ({ratio:.2f})"

    return Column(variant, text)


LEGEND = (
    "Times are medians of one call, all of a row taken in turns, and in parentheses how many times as long as ours: "
    "the median over the rounds. The row says how the weights were pruned, and to how many percent zeros. float32, "
    "except that -bf16 computes in bfloat16. torch-bsr: on as many zeros that are whole blocks of 16x16. unavailable, "
    "error, wrong: see the notes."
)


def layout(peers: Mapping[str, Peer]) -> Layout:
    """How the tables show the peers: a column for each variant."""
    names = [variant.name for peer in peers.values() for variant in peer.variants]
    return Layout(tuple(map(column, names)), LEGEND, OURS, tuple(name for name in names if name != OURS))


TEXT_COLUMNS = 1
"""Columns of `tables` that are no figures."""


def tables(records: Sequence[Record], layout: Layout) -> list[report.Table]:
    """A table for the networks, and one for each pass of the linear layers, without the reports' column of dtypes."""
    found = []
    for group in dict.fromkeys(one.group for one in records):
        some = [one for one in records if one.group == group]
        for table in report.tables(some, {SUITE: layout}):
            header, *rows = ((line[0], *line[2:]) for line in (table.header, *table.rows))
            title = table.title.replace(SUITE, f"{SUITE}, {group}", 1)
            found.append(replace(table, title=title, header=header, rows=tuple(rows)))
    return found
