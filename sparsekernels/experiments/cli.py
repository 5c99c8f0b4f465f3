# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command `sparsekernels experiment NAME`: does the runs that are missing, and reports all of them."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..bench.console import WIDTH, console_of, failure
from ..bench.machine import cores, machine
from ..bench.report import NothingToDraw, rich_tables
from . import datasets, pool, reports, suites
from .records import File, Record
from .records import read as read_records
from .runs import DEVICES, Run
from .suites import Selection, Suite
from .tasks import TASKS

DEFAULT_FOLDER = Path("experiment-report")
"""An experiment's files are in a folder of its name below this one, unless told otherwise."""

RECORDS, REPORT, PLOT, CHECKPOINTS = "records.jsonl", "report.md", "plot.png", "checkpoints"


def experiment(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"{', '.join(suites.SUITES)}, or the path of a suite's .toml file.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder of the images' idx files; without it ${datasets.VARIABLE}, or the system's package."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="|".join(datasets.DATASETS), help="In place of the suite's.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many; in place of the suite's.")] = None,
    densities: Annotated[
        str | None,
        typer.Option(metavar="PERCENT,...", help="Of the weights that are left, as 5,10,20; in place of the suite's."),
    ] = None,
    network: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for several.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for several.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In place of the suite's.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many training images.")] = None,
    device: Annotated[str | None, typer.Option(metavar="|".join(DEVICES), help="Where to train.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The short form: fewer runs of fewer steps.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; without it what the suite says.")] = None,
    folder: Annotated[
        Path | None, typer.Option(file_okay=False, help=f"For all files; without it {DEFAULT_FOLDER}/NAME.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the runs and which are done, and do none.")] = False,
) -> None:
    """Train networks on real images, and write records, a report and a plot.

    Runs that are in the folder's records already are not done again: the same command goes on where it was interrupted.
    Exits with 1 where a run failed, or the experiment was interrupted.
    """
    given = {"dataset": dataset, "epochs": epochs, "images": images, "device": device}
    try:
        suite = suites.load(name)
        selection = Selection(
            quick=quick,
            seeds=seeds,
            densities=_densities(densities),
            networks=tuple(network or ()),
            methods=tuple(method or ()),
            settings={key: value for key, value in given.items() if value is not None},
        )
        asked_for = suite.dataset(selection)
        loaded = datasets.load(asked_for, data)
        runs, left_out = _fit(suite.runs(selection, loaded.checksum), selection)
        for run in runs:
            used = loaded.first(run.settings["images"], run.settings["test_images"])
            images, held = len(used.train_labels), TASKS[run.task].held_back(run)
            if held >= images:
                raise ValueError(f"{run.name}: expected more than the {held} images held back, got {images}")
            datasets.check_batch(run.settings["batch"], images - held)
    except (ValueError, datasets.DataError) as error:
        raise failure(str(error)) from None
    del loaded
    _check_machine(runs)
    folder = DEFAULT_FOLDER / suite.name if folder is None else folder
    records_file = folder / RECORDS
    try:
        if listed:
            _list(runs, _done(read_records(records_file), runs, suite))
            print(*left_out, sep="\n", end="\n" if left_out else "")
            return
        with File.opened(records_file) as file:
            failures, interrupted = _perform(suite, runs, file, data, jobs, folder / CHECKPOINTS)
            records = list(_done(file.records, runs, suite).values())
            missing = len(runs) - len(records)
            notes = (
                [f"{missing} of {len(runs)} runs are missing; the same command goes on with them"] if missing else []
            )
            notes += left_out
            notes += [f"{one.run.name} diverged: it counts as chance" for one in records if one.status == "diverged"]
            _report(suite, records, folder, [*notes, *failures])
    except (ValueError, OSError) as error:
        raise failure(str(error)) from None
    if failures or interrupted:
        raise typer.Exit(1)


def _densities(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--densities: expected percents with commas between, as 5,10,20, got {text!r}") from None
    suites.check_densities("--densities", values)
    return tuple(dict.fromkeys(values))


def _fit(runs: Sequence[Run], selection: Selection) -> tuple[list[Run], list[str]]:
    """Those of `runs` that this machine makes in bearable time, or that are asked for by name; and why not the others.

    Raises ValueError where none is left.
    """
    fit, reasons = [], {}
    for run in runs:
        reason = TASKS[run.task].left_out(run)
        if reason is None or run.method in selection.methods:
            fit.append(run)
        else:
            reasons[run.method] = reason
    notes = [f"{method} is left out: {reason}; --method {method!r} asks for it" for method, reason in reasons.items()]
    if not fit:
        raise ValueError("; ".join(notes))
    return fit, notes


def _check_machine(runs: Sequence[Run]) -> None:
    for run in runs:
        threads, device = run.settings["threads"], run.settings["device"]
        if threads > cores():
            raise failure(f"{run.name}: expected threads from 1 to {cores()}, the processors here, got {threads}")
        if device == "cuda" and not torch.cuda.is_available():
            raise failure(f"expected device to be 'cpu', got {device!r}: torch finds no CUDA device here")


def _done(records: Sequence[Record], runs: Sequence[Run], suite: Suite) -> dict[str, Record]:
    """The records of `runs` by key, in their order. Where times count, those of other machines are not taken."""
    here = machine()
    found: dict[str, Record] = {}
    for record in records:
        if not suite.timed or all(record.machine.get(key) == here[key] for key in ("cpu", "cores", "gpu")):
            found.setdefault(record.key, record)
    return {run.key: found[run.key] for run in runs if run.key in found}


def _list(runs: Sequence[Run], done: dict[str, Record]) -> None:
    for run in runs:
        record = done.get(run.key)
        state = "missing" if record is None else f"{record.accuracy:.2f}% in {record.seconds:.0f} s"
        print(f"{run.name}, {run.settings['epochs']} epochs: {state}")
    print(f"{len(done)} of {len(runs)} runs are done")


@dataclass
class _Bars:
    """What is to be seen of the runs: a bar for all and one for each that is at work; off a terminal, lines."""

    progress: Progress
    overall: TaskID
    done: int
    total: int

    def __post_init__(self) -> None:
        self._tasks: dict[str, TaskID] = {}

    def show(self, event: pool.Event) -> None:
        key = event.run.key
        if isinstance(event, pool.Started):
            if key in self._tasks:  # its first process died before it had begun
                return
            self._tasks[key] = self.progress.add_task("", name=f"  {event.run.name}", total=1.0, count="")
            return
        if isinstance(event, pool.Progress):
            self.progress.update(self._tasks[key], completed=event.share, description=event.text)
            return
        self.progress.remove_task(self._tasks.pop(key))
        if isinstance(event, pool.Finished):
            self.done += 1
            self.progress.update(self.overall, completed=self.done, count=f"{self.done}/{self.total}")
            record = event.record
            text = f"{record.accuracy:.2f}% in {record.seconds:.0f} s" if record.status == "ok" else "diverged"
            line = f"{self.done}/{self.total} {event.run.name}: {text}"
        else:
            line = f"{event.run.name} failed: {event.text}"
        self.progress.console.print(line, markup=False, soft_wrap=True)


def _perform(
    suite: Suite, runs: Sequence[Run], file: File, data: Path | None, jobs: int | None, checkpoints: Path
) -> tuple[list[str], bool]:
    """Do what is missing. Returns what failed, and whether the user interrupted."""
    done = _done(file.records, runs, suite)
    missing = [run for run in runs if run.key not in done]
    at_a_time = jobs or suite.jobs or max(1, cores() // max(run.settings["threads"] for run in runs))
    failures: list[str] = []
    columns = (TextColumn("{task.fields[name]}", markup=False), BarColumn(), TextColumn("{task.fields[count]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, *times, console=console_of(stderr=True)) as progress:
        count = f"{len(done)}/{len(runs)}"
        overall = progress.add_task("", name=suite.name, total=len(runs), completed=len(done), count=count)
        bars = _Bars(progress, overall, len(done), len(runs))
        events = pool.perform(missing, data, at_a_time, checkpoints, file.kept_open)
        try:
            with _terminated_as_interrupted(), contextlib.closing(events):
                for event in events:
                    if isinstance(event, pool.Finished):
                        file.append(event.record)
                    elif isinstance(event, pool.Failed):
                        failures.append(f"{event.run.name} failed: {event.text}")
                    bars.show(event)
        except KeyboardInterrupt:
            return failures, True
    with contextlib.suppress(OSError):  # where one that failed left its own
        checkpoints.rmdir()
    return failures, False


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """What ends a program, such as `timeout`, ends it as Ctrl-C does: the runs' processes end as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(suite: Suite, records: list[Record], folder: Path, notes: list[str]) -> None:
    """Print the tables and write the report and the plot."""
    console = console_of()
    written = [f"records: {(folder / RECORDS).resolve()}"]
    if records:
        report = reports.REPORTS[suite.report]
        picture = None
        if importlib.util.find_spec("matplotlib") is None:
            written.append("no plot: plots need matplotlib: pip install 'sparsekernels[bench]'")
        else:
            try:
                reports.plot(records, report, folder / PLOT)
                picture = PLOT
                written.append(f"plot: {(folder / PLOT).resolve()}")
            except NothingToDraw as reason:
                written.append(f"no plot: {reason}")
        text = reports.markdown(suite.name, suite.about, records, report, picture, notes)
        _replace(folder / REPORT, text)
        written.append(f"report: {(folder / REPORT).resolve()}")
        for table in report.tables(records):
            for piece in rich_tables(table.title, table.header, table.rows, min(console.width, WIDTH)):
                console.print(piece)
                console.print()
            console.print(table.legend, markup=False)
        notes = [*report.words(records), *notes]
    for line in (*notes, *written):
        console.print(line, markup=False, soft_wrap=True)


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
