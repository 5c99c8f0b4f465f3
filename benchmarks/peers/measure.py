# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""One case with all peers: it is made, and each variant is one of the benchmark's whose samples come from a process of
its own. `sparsekernels.bench.worker` checks them, interleaves the samples and writes the records.

A case is one pruned network, or one pruned linear layer and a pass. In records it is called network/vgg16-d@64, after
its batch, and its variants openvino:random-90, after its zeros, so that the reports give each sparsity a row.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from environments import EXPORT, OURS, Peer, Variant

from sparsekernels.bench import machine, report, suite, worker
from sparsekernels.bench.external.process import Child, ChildError, Launch
from sparsekernels.bench.record import Record
from sparsekernels.bench.report import Column, Layout, Row
from sparsekernels.bench.suite import Unavailable
from sparsekernels.timing import CpuClock, Effort, Interruptions

SUITE = "peers"

BASELINE = "torch"
"""The variant that a record's `speedup` is taken over."""

SAMPLE = 0.1
"""Seconds that a sample takes at least, so that it shows an engine at its work and not on its way back to it.

After another engine's turn, DeepSparse's first call of VGG16-D at batch 64 takes 20% longer, the second 4%, ours 5% and
1%. The first is not timed where it is short; see `timing.interleave`.
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
    measured = [
        (peer, variant)
        for name, peer in peers.items()
        if name != EXPORT
        for variant in peer.variants
        if case.kind in variant.cases
    ]
    children: list[Child] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        session.say(f"{case}: made by torch")
        made = _make(case, peers[EXPORT], measured, session, folder)
        variants = [
            suite.Variant(
                f"{variant.name}:{case.pattern}",
                functools.partial(_prepare, case, peer, variant, made, session, stack, children),
                round(case.sparsity / 100, 7),
            )
            for peer, variant in measured
        ]
        turns = worker.Session(
            CpuClock(), replace(session.effort, sample=SAMPLE), lambda event: session.note(event["text"])
        )
        row = suite.Case(SUITE, case.full_name, case.pass_, "float32", "cpu", case.batch, quick=False)
        records = list(worker.measure(_suite(variants, peers, session.effort), row, variants, turns))
    interruptions = _interruptions(children)
    if interruptions > Interruptions.DISTURBING:
        session.note(
            f"{case}: other programs took the processor {interruptions:.0f} times a second; these times are disturbed,"
            " measure again on a quiet machine"
        )
    return [
        replace(
            record,
            interruptions=interruptions,
            threads=session.threads,
            ideal_fraction=None,
            machine={**record.machine, "allocator": dict(machine.ALLOCATOR)},
            details={"batch": case.batch, "dtype": variant.dtype, **record.details},
        )
        for record, (_, variant) in zip(records, measured, strict=True)
    ]


def _suite(variants: Sequence[suite.Variant], peers: Mapping[str, Peer], effort: Effort) -> suite.Suite:
    return suite.Suite(
        name=SUITE,
        about="other engines beside ours",
        variants=lambda *_: variants,
        baseline=BASELINE,
        ideal=None,
        full=effort,
        quick=effort,
        layout=layout(peers),
        rival=OURS,
    )


def _make(case: Case, exporter: Peer, measured: Sequence[tuple[Peer, Variant]], session: Session, folder: Path) -> Made:
    """Run the exporter; without its own environment, where that cannot be had: there is no ONNX file then."""
    onnx_error, onnx = None, any(peer.onnx for peer, _ in measured)
    blocks = {variant.blocks for _, variant in measured if variant.blocks is not None}
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


def _prepare(
    case: Case,
    peer: Peer,
    variant: Variant,
    made: Made,
    session: Session,
    stack: contextlib.ExitStack,
    children: list[Child],
) -> suite.Prepared:
    """Start the variant's process and give it the job. It lives until all have been measured."""
    session.say(f"{case}: {variant.name}")
    if peer.onnx and made.onnx_error is not None:
        raise Unavailable(f"there is no ONNX file: {made.onnx_error}")
    if variant.blocks is not None and not (made.folder / "weight-blocks.npy").exists():
        raise Unavailable(f"{case.name} is not whole blocks of {variant.blocks}x{variant.blocks}")
    child = stack.enter_context(Child(session.launch(peer), session.processors))
    blocks = {} if variant.blocks is None else {"blocks": variant.blocks}
    job = {**case.job(session.threads), **made.inputs(case, variant), "dtype": variant.dtype, **blocks}
    with _closed_on_failure(child):
        versions, details = child.start({**job, **variant.options})
    children.append(child)

    def check() -> suite.Verdict:
        results = made.folder / f"{variant.name}.npz"
        with _closed_on_failure(child):
            child.output(results)
        error, accepted = made.error(results, case, variant), TOLERANCE[variant.dtype]
        if variant.dtype == "bfloat16":
            accepted = max(accepted, 2 * made.bfloat16_error)
        passed = error <= accepted
        if not passed:
            child.close()
        return suite.Verdict(error, passed, f" of the largest value, expected {accepted:.3g}")

    return suite.Prepared(
        functools.partial(child.run, 1), check=check, details=details, sampler=child.run, versions=versions
    )


@contextlib.contextmanager
def _closed_on_failure(child: Child) -> Iterator[None]:
    """What fails holds no memory while the others are measured."""
    try:
        yield
    except BaseException:
        child.close()
        raise


def _interruptions(children: Sequence[Child]) -> float:
    """How often a second something else took the processor from them, while they were sampled."""
    seconds = sum(child.seconds for child in children)
    return float(f"{sum(child.interruptions for child in children) / seconds:.5g}") if seconds else 0.0


def column(variant: str) -> Column:
    """The time of `variant`, and behind it in parentheses how many times as long as ours that is."""
    time = report.time_column(variant)

    def text(row: Row) -> str:
        ratio = row[variant].details.get("over_ours") if variant in row and variant != OURS else None
        return time.text(row) if ratio is None else f"{time.text(row)} ({ratio:.2f})"

    return Column(variant, text)


LEGEND = (
    "Times are medians of one call, all of a row interleaved, and in parentheses the ratio to ours: "
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
