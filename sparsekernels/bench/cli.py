# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: `sparsekernels info | bench | compare`; `_cli.py` adds `experiment`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import compare as comparison
from . import info as information
from . import outputs, record, report, runner, suite
from .console import WIDTH, console_of, failure
from .machine import cores
from .models import MODELS
from .record import Record, parts
from .suite import Selection, Suite, Unavailable

app = typer.Typer(
    help="Sparse and fused kernels for PyTorch: what is here, how fast it is, what changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT_FOLDER = Path("bench-report")
"""Where the main benchmark leaves its report, unless told otherwise."""


@app.command()
def info() -> None:
    """What this machine has, what was built, and what will be used on each device."""
    print(information.text())


@app.command()
def bench(
    suite_names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITE...",
            help=f"{', '.join(suite.SUITES)}, or the path of a suite's .toml file; without any the main benchmark.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="|".join(suite.DEVICES), help="Where to run.")] = "cpu",
    dtype: Annotated[
        list[str] | None, typer.Option(metavar="|".join(suite.DTYPES), help="Only these; repeat for several.")
    ] = None,
    pass_: Annotated[
        list[str] | None, typer.Option("--pass", metavar="|".join(suite.PASSES), help="Only these; repeat for several.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only such networks, 'vgg16-d', of the suite networks or a named one."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Only cases of this batch size; networks and layers are measured with this one."),
    ] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(metavar="PERCENT", help="Only this share of zeros; repeat for several.")
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option(metavar="|".join(suite.PRUNINGS), help="Only zeros in such places.")
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROWSxCOLUMNS", help="Only zeros in whole blocks of this size, 32x32; repeat for several."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Also the pruned AlexNet's layers in this .npz.")
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only such cases, 'vgg16-d/conv1_2', 'decode' or '*x64', as --list has them; repeat for several.",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Only these, such as 'ours' or 'dense*'; repeat for several.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on CPU; without it what the suite says, or torch takes.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Above 0, for the samples of each case; without it what the suite says.")
    ] = None,
    quick: Annotated[
        bool | None, typer.Option("--quick/--full", help="Fewer cases in less time; without a SUITE the default.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the records here, as JSON lines.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", dir_okay=False, help="Write the tables here.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", dir_okay=False, help="Draw here; the ending says as what.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the cases and their variants, and measure nothing.")
    ] = False,
) -> None:
    """Measure, and print a table. Options narrow down what is measured.

    Exits with 1 where a variant gave a wrong result, or failed.
    """
    if network and case:
        raise failure("expected either --network or --case, got both")
    names = list(dict.fromkeys(suite_names or ()))
    main_benchmark = not names and not network
    if main_benchmark and not (json_file or markdown_file or plot_file):
        json_file = DEFAULT_FOLDER / "records.jsonl"
        markdown_file = DEFAULT_FOLDER / "report.md"
        if importlib.util.find_spec("matplotlib") is not None:
            plot_file = DEFAULT_FOLDER / "speedup.png"
        elif not listed:
            console_of(stderr=True).print(f"no plot: {_NEEDS_MATPLOTLIB}", markup=False, soft_wrap=True)
    has_cuda = torch.cuda.is_available()
    if device.startswith("cuda:") and has_cuda:
        raise failure(
            f"expected device to be {', '.join(map(repr, suite.DEVICES))}, got {device!r}: which GPU it is says the"
            f" environment variable CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')}"
        )
    if device.startswith("cuda") and not has_cuda and not (listed and device == "cuda"):
        raise failure(f"expected device to be 'cpu', got {device!r}: torch finds no CUDA device here")
    try:
        selection = Selection(
            device=device,
            dtypes=tuple(dtype or ()),
            passes=tuple(pass_ or ()),
            cases=tuple(case or network or ()),
            batches=tuple(batch or ()),
            variants=tuple(variant or ()),
            sparsities=tuple(sparsity or ()),
            masks=tuple(mask or ()),
            blocks=tuple(block or ()),
            weights=None if weights is None else str(weights.resolve()),
            quick=main_benchmark if quick is None else quick,
            threads=threads,
            seconds=seconds,
        )
        if network:
            names = names or ["networks"]
            _check_networks(network, names)
        suites = _suites(names or list(suite.SUITES), selection)
    except ValueError as error:
        raise failure(str(error)) from None
    if threads is not None and threads > cores():
        raise failure(f"expected threads from 1 to {cores()}, the processors open to this program, got {threads}")
    if listed:
        _list(suites, selection)
        return
    if plot_file is not None:
        _check_plot_format(plot_file)
    try:
        outputs.check_writable(json_file, markdown_file, plot_file)
    except ValueError as error:
        raise failure(str(error)) from None
    records, notes, complete = _measure(suites, selection)
    if not records:
        raise failure("\n".join(["nothing was measured", *notes]))
    layouts = {one.name: one.layout for one in suites}

    written = outputs.write(records, layouts, notes, json_file, markdown_file, plot_file)
    console = console_of()
    for table in report.tables(records, layouts):
        for piece in report.rich_tables(table.title, table.header, table.rows, min(console.width, WIDTH)):
            console.print(piece)
            console.print()
    for one in suites:
        console.print(f"{one.name}: {one.layout.legend}", markup=False)
    for line in (*notes, *report.provenance(records)):
        console.print(line, markup=False, soft_wrap=True)
    for line in written.lines:
        console.print(line, markup=False, soft_wrap=True)
    if written.failures:
        raise failure("\n".join(written.failures))
    if not complete or any(one.status in ("wrong", "error") for one in records):
        raise typer.Exit(1)


def _check_networks(networks: list[str], names: list[str]) -> None:
    """Fail for a suite without networks, and for a network that no suite has."""
    known: dict[str, None] = {}
    for name in names:
        try:
            one = suite.load(name)
        except Unavailable as reason:
            raise failure(f"suite {name} cannot run here: {reason}") from None
        found = [case.name.partition("/")[2] for case in suite.read_cases(one.name, one.file)]
        own = {network: None for network in found if network in MODELS}
        if not own:
            raise failure(f"expected a suite of networks with --network, such as 'networks', got {name!r}")
        known |= own
    for network in networks:
        if network not in known:
            raise failure(f"expected network to be {', '.join(map(repr, known))}, got {network!r}")


def _list(suites: list[Suite], selection: Selection) -> None:
    """Print the names of the cases and, by the first case of each pass that has any, of the selected variants.

    Variants are made on the device of the cases: where it is not here, the cases are all.
    """
    if selection.device == "cuda" and not torch.cuda.is_available():
        print("\n".join(_cases(suites, selection)))
        return
    lines = []
    offered: dict[str, None] = {}
    for one in suites:
        found = []
        cases = one.cases(selection)
        for pass_ in dict.fromkeys(case.pass_ for case in cases):
            some = [case for case in cases if case.pass_ == pass_]
            for case in some:
                names = [variant.name for variant in one.variants(case, selection)]
                offered |= dict.fromkeys(names)
                if kinds := dict.fromkeys(parts(name)[0] for name in names if selection.takes_variant(name)):
                    found.append(f"  {pass_}: {', '.join(dict.fromkeys(case.name for case in some))}")
                    found.append(f"    variants: {', '.join(kinds)}")
                    break
        if found:
            lines += [f"{one.name}: {one.about}", *found]
    if not lines:
        raise failure(f"no variant matches these options; there are {', '.join(offered)}")
    print("\n".join(lines))


def _cases(suites: list[Suite], selection: Selection) -> list[str]:
    """The lines of `_list` but for the variants."""
    lines = []
    for one in suites:
        cases = one.cases(selection)
        lines.append(f"{one.name}: {one.about}")
        for pass_ in dict.fromkeys(case.pass_ for case in cases):
            names = dict.fromkeys(case.name for case in cases if case.pass_ == pass_)
            lines.append(f"  {pass_}: {', '.join(names)}")
    return [*lines, "(variants are listed where there is a CUDA device; torch finds none here)"]


def _suites(names: list[str], selection: Selection) -> list[Suite]:
    """The suites that have something to measure; an error where none has."""
    found, reasons = [], []
    loaded: dict[str, str] = {}
    for name in names:
        try:
            one = suite.load(name)
        except Unavailable as reason:
            reasons.append(f"suite {name} cannot run here: {reason}")
            continue
        if one.name in loaded:
            raise failure(
                f"expected suites of different names, got two of the name {one.name!r}: {loaded[one.name]} and"
                f" {one.address}"
            )
        loaded[one.name] = one.address
        if one.cases(selection):
            found.append(one)
        else:
            every = dict.fromkeys(c.name for c in one.cases(Selection(device=selection.device)))
            others = [device for device in suite.DEVICES if one.cases(Selection(device=device))]
            has = f"on this device it has {', '.join(every)}"
            if not every:
                has = f"it has cases for --device {' and '.join(others)} alone" if others else "it has none"
            reasons.append(f"no case of suite {name} matches these options; {has}")
    if not found:
        raise failure("; ".join(reasons))
    for line in reasons:
        console_of(stderr=True).print(line, markup=False, soft_wrap=True)
    return found


def _measure(suites: list[Suite], selection: Selection) -> tuple[list[Record], list[str], bool]:
    """Run `suites` under a progress bar each. Returns the records, the notes, and whether every suite ran to its end.

    Where the process that measures a suite dies, what it measured until then counts and the next suite runs; where the
    user interrupts it, no other does.
    """
    records: list[Record] = []
    notes: list[str] = []
    complete = True
    bars = (TextColumn("{task.fields[suite]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bars, TextColumn("{task.description}", markup=False), console=console_of(stderr=True)) as progress:
        for one in suites:
            task = progress.add_task("starting", suite=one.name, total=len(one.cases(selection)))
            started = 0
            try:
                for event in runner.run(one.address, selection):
                    if isinstance(event, Record):
                        records.append(event)
                    elif isinstance(event, runner.Note):
                        notes.append(event.text)
                    elif isinstance(event, runner.Said):
                        progress.console.print(event.text, markup=False, soft_wrap=True)
                    elif isinstance(event, runner.CaseStarted):
                        progress.update(task, completed=started, description=event.text)
                        started += 1
                        if not progress.console.is_terminal:  # which gets a bar only when all is done
                            line = f"{one.name} {started}/{progress.tasks[task].total:.0f}: {event.text}"
                            progress.console.print(line, markup=False, soft_wrap=True)
                progress.update(task, completed=started, description="done")
            except runner.RunnerError as error:
                notes.append(str(error))
                progress.update(task, description="died")
                complete = False
            except KeyboardInterrupt:
                notes.append(f"suite {one.name!r} was interrupted; this is what was measured until then")
                return records, notes, False
    return records, notes, complete


_NEEDS_MATPLOTLIB = "plots need matplotlib: pip install 'sparsekernels[bench]'"


def _check_plot_format(path: Path) -> None:
    """Fail now and not after minutes of measuring."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise failure(f"--plot: {_NEEDS_MATPLOTLIB}") from None
    accepted = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix[1:] not in accepted:
        raise failure(f"expected --plot with an ending of {', '.join(accepted)}, got {str(path)!r}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Records of the earlier run or runs.", exists=True, dir_okay=False)],
    after: Annotated[Path, typer.Argument(help="Records of the later run or runs.", exists=True, dir_okay=False)],
    changed: Annotated[bool, typer.Option("--changed", help="Leave out what stayed the same.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where anything got worse or is gone.")] = False,
) -> None:
    """Compare two files of records.

    A variant is faster or slower only where the middle 60% of its samples do not overlap between the runs. A file
    may hold several runs, one after the other: then the middle 60% of the runs, by their medians, count. A verdict
    with a question mark, "slower?", is one on times that were disturbed in either run; lines below say by what. With
    --strict, two files that have no variant of a case in common are an error.
    """
    try:
        old, new = record.read(before), record.read(after)
    except OSError as error:
        raise failure(f"cannot read {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise failure(str(error)) from error
    changes = comparison.compare(old, new)
    console = console_of()
    rows = [comparison.row(one) for one in changes if not (changed and one.verdict == "same")]
    console.print(report.rich_table(f"{before} to {after}", comparison.HEADER, rows, text_columns=4))
    console.print(comparison.summary(changes) or "no records", markup=False)
    for line in (*comparison.differences(old, new), *comparison.disturbances(old, new)):
        console.print(line, markup=False, soft_wrap=True)
    if strict and all(one.before is None or one.after is None for one in changes):
        raise failure("nothing was compared: no variant of a case is in both files with the same number of threads")
    if strict and any(one.worse for one in changes):
        raise typer.Exit(1)
