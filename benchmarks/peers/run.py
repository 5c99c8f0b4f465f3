# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Measures other engines beside ours, on the same pruned networks and layers, and prints one table of each kind.

    python benchmarks/peers/run.py --network vgg16-d --batch 64 --sparsity 80 90 95

README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from environments import EXPORT, FOLDER_VARIABLE, OURS, Environments, Peer, default_folder, read_peers
from measure import TEXT_COLUMNS, Case, Session, layout, measure, tables
from rich.console import Console

from sparsekernels.bench import record, report
from sparsekernels.bench.external.process import cores, processors
from sparsekernels.bench.models import MODELS
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Unavailable
from sparsekernels.pruning import PRUNINGS
from sparsekernels.timing import Effort

NETWORKS, LINEARS = ("vgg16-d", "resnet-50"), ("1024x1024",)
"""What is measured where the command names neither a network nor a layer."""

BATCHES, TOKENS, SPARSITIES = (64,), (1024,), (80.0, 90.0, 95.0)

PLAIN_WIDTH = 120
"""Columns for output that goes to a file or a pipe."""


def arguments(line: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    """The options, checked; `names` are those of the peers. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(
        description="Other engines beside sparsekernels on the CPU, on the same pruned networks and linear layers."
        " Each is installed in an environment of its own when it is first measured.",
    )
    several: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    parser.add_argument("--network", metavar="NAME", help=f"of {', '.join(MODELS)}", **several)
    parser.add_argument("--linear", metavar="OUTxIN", help="linear layers, by the shape of the weight", **several)
    parser.add_argument("--batch", type=_positive, metavar="N", help="images, default 64", **several)
    parser.add_argument("--tokens", type=_positive, metavar="N", help="rows of a linear layer, default 1024", **several)
    parser.add_argument("--sparsity", type=float, metavar="PERCENT", help="default 80 90 95", **several)
    parser.add_argument("--pruning", choices=PRUNINGS, default="random", help="where the zeros are")
    parser.add_argument("--peers", metavar="NAME", help=f"of {', '.join(names)}; default all", **several)
    parser.add_argument("--threads", type=_positive, metavar="N", help="of every engine, default one a core")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of interleaved samples for each row of the table; default 20"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here, as JSON lines")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="FOLDER",
        default=default_folder(),
        help=f"where the peers' environments are; default ${FOLDER_VARIABLE}, or .envs beside this program",
    )
    options = parser.parse_args(line)
    _check(parser, "network", options.network, tuple(MODELS))
    _check(parser, "peers", options.peers, names)
    for shape in options.linear:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape):
            parser.error(f"expected linear to be two sizes as in '1024x1024', got {shape!r}")
    for percent in options.sparsity:
        if not 0 <= percent < 100:
            parser.error(f"expected sparsity from 0 to below 100 percent, got {percent:g}")
    if not 0 <= options.seconds < float("inf"):
        parser.error(f"expected seconds of at least 0, got {options.seconds:g}")
    available = len(processors())
    if options.threads is not None and options.threads > available:
        parser.error(f"expected threads from 1 to {available}, the processors of this machine, got {options.threads}")
    if not options.network and not options.linear:
        options.network, options.linear = list(NETWORKS), list(LINEARS)
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive whole number"  # as argparse names the type


def _check(parser: argparse.ArgumentParser, name: str, given: Sequence[str], accepted: Sequence[str]) -> None:
    for value in given:
        if value not in accepted:
            parser.error(f"expected {name} to be {', '.join(map(repr, accepted))}, got {value!r}")


def cases(options: argparse.Namespace) -> list[Case]:
    """What the options ask for, in the order of the tables."""

    def unique(values: Sequence[float], default: Sequence[float]) -> list[float]:
        return list(dict.fromkeys(values or default))

    common = {"pruning": options.pruning}
    sparsities = unique(options.sparsity, SPARSITIES)
    networks = [
        Case("network", name, int(batch), sparsity, **common)
        for name in dict.fromkeys(options.network)
        for batch in unique(options.batch, BATCHES)
        for sparsity in sparsities
    ]
    return networks + [
        Case("linear", shape, int(tokens), sparsity, pass_, **common)
        for pass_ in ("forward", "forward+backward")
        for shape in dict.fromkeys(options.linear)
        for tokens in unique(options.tokens, TOKENS)
        for sparsity in sparsities
    ]


def main(line: Sequence[str] | None = None) -> int:
    """Run the command. Returns 1 where a result was wrong, a peer failed or not all was measured that was to be.

    A peer that is not to be had is no failure.
    """
    known = read_peers()
    options = arguments(line, [name for name in known if name not in (OURS, EXPORT)])
    peers = {name: peer for name, peer in known.items() if not options.peers or name in (*options.peers, OURS, EXPORT)}
    progress = Console(stderr=True, highlight=False)
    notes: list[str] = []

    def say(text: str) -> None:
        progress.print(text, markup=False, soft_wrap=True)

    environments = Environments(options.environments, say)
    threads = options.threads or cores()
    session = Session(
        launch=lambda peer: environments.launch(peer, threads),
        threads=threads,
        processors=processors()[:threads],
        effort=Effort(seconds=options.seconds),
        say=say,
        note=notes.append,
    )
    records: list[Record] = []
    complete = True
    try:
        for case in cases(options):
            try:
                records += measure(case, peers, session)
            except Unavailable as reason:
                notes.append(f"{case}: {reason}")
                complete = False
    except KeyboardInterrupt:
        notes.append("interrupted; this is what was measured until then")
        complete = False
    if not records:
        _fail("\n".join(["nothing was measured", *notes]))
    _show(records, peers, notes, options)
    return int(not complete or any(one.status in ("wrong", "error") for one in records))


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"error: {message}", markup=False, soft_wrap=True)
    sys.exit(2)


def _show(records: list[Record], peers: dict[str, Peer], notes: list[str], options: argparse.Namespace) -> None:
    """Print the tables, and write the files that were asked for."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    found, facts = tables(records, layout(peers)), [*report.provenance(records), *dict.fromkeys(notes)]
    for table in found:
        for piece in report.rich_tables(table.title, table.header, table.rows, console.width, TEXT_COLUMNS):
            console.print(piece)
            console.print()
    for text in (found[0].legend, *facts):
        console.print(text, markup=False, soft_wrap=True)
    if options.json is not None:
        record.write(options.json, records)
    if options.markdown is not None:
        parts = ["# Peers", "", *(f"- {fact}" for fact in facts)]
        for table in found:
            parts += ["", f"## {table.title}", "", report.markdown_table(table.header, table.rows, TEXT_COLUMNS)]
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text("\n".join([*parts, "", found[0].legend]) + "\n", encoding="utf-8")
    for what, path in (("records", options.json), ("report", options.markdown)):
        if path is not None:
            console.print(f"{what}: {path.resolve()}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
