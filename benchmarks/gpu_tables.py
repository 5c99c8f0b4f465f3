# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of GPUs in the documentation, from the records in benchmarks/results; what no GPU has measured says so.

`tables.py` beside this writes them, and `gpu.py` shows them in its report. Where there is a target a cell has it, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NOT_YET = "not yet measured"
PERCENTS = (50, 70, 80, 90, 95)
TRITON_ONLY = "-triton-only"
"""Ends the name of a GPU in files that gpu.py wrote without the CUDA kernels."""

Record = Mapping[str, Any]
Records = Mapping[tuple[str, str, str], Record]
"""By case, pass and variant."""


class Row(NamedTuple):
    """A row of speedups: the part of `make gpu` that leaves its records, which they are, and what it is called.

    targets  by percent, the speedup to reach
    """

    label: str
    part: str
    case: str
    pass_: str
    variant: str
    percents: tuple[int, ...] = PERCENTS[1:]
    targets: Mapping[int, float] = {}


LINEAR, CONV = "linear/4096x4096", "conv/512x28"
LAYERS = (
    ("linear 4096 to 4096, 4096 rows", LINEAR, {64: (2.5, 3.6, 6, 6.5), 32: (2, 2.9, 5, 5.5)}),
    ("3x3, 512 channels, 28x28, batch 64", CONV, {64: (2.2, 3.2, 5, 7), 32: (1.7, 2.5, 4, 6)}),
)
"""By layer: its case, and by block what forward is to reach at 70, 80, 90 and 95%."""

BLOCKS = tuple(
    Row(
        f"{label}, {block}x{block} blocks",
        "blocks",
        case,
        "forward",
        f"block:{block}x{block}",
        targets=dict(zip(PERCENTS[1:], targets, strict=True)),
    )
    for label, case, blocks in LAYERS
    for block, targets in blocks.items()
)

FEW_TARGETS = dict(zip(PERCENTS, (1.3, 2, 3, 4.5, 7), strict=True))


def _few(rows: int, variant: str, what: str, targets: Mapping[int, float]) -> Row:
    group, label = ("1-row", "1 row") if rows == 1 else (f"{rows}-rows", f"{rows} rows")
    return Row(f"{label}, {what}", "decode", f"{group}/8192x8192", "forward", variant, PERCENTS, targets)


FEW = tuple(
    _few(rows, *kind)
    for rows in (1, 2, 4, 8, 16)
    for kind in (
        ("sparse:random", "fine-grained", FEW_TARGETS),
        ("sparse-triton:random", "by the Triton kernel alone", {}),
    )
)

NO_SLOWER = {rows: 1 / (1.05 if rows >= 8192 else 1.12) for rows in (64, 128, 256, 512, 1024, 2048, 4096, 8192)}
"""By rows, the least of dense over ours: no more than 5% slower from 8192 rows on, 12% below."""

MANY = tuple(
    Row(
        f"{rows} rows",
        "rows",
        f"{rows}-rows/4096x4096",
        "forward",
        "sparse:random",
        PERCENTS if rows <= 512 else (50, 90),
        dict.fromkeys(PERCENTS, least),
    )
    for rows, least in NO_SLOWER.items()
)

GRADIENTS = {
    "input-gradient": "gradient to the input",
    "weight-gradient": "gradient to the weight",
    "all": "both, and forward",
}
GRADIENT_PERCENTS = (80, 90, 95)
OF_FORWARD = 0.8
"""A gradient's speedup over that of its forward pass is to be so much at least."""

FORWARD = {(262144, 256): 0.80, (16384, 4096): 0.92, (1024, 65536): 0.97}
BACKWARD = {(65536, 1024): 0.60, (32768, 2048): 0.70, (8192, 4096): 0.85, (4096, 8192): 0.85}
NORMS = (("forward", "large", FORWARD), ("backward", "backward", BACKWARD))
"""By pass, its cases and the share of a copy's rate that is to be reached."""

ONE_ROW = "one-row/1x4096"
HOST_US = 6.0
"""Microseconds that an eager call of one row may take."""

PEERS = ("liger", "quack", "flashinfer")
BESIDE_PEERS = (
    *(("forward", shape) for shape in ((1, 4096), *FORWARD)),
    *(("backward", shape) for shape in ((65536, 1024), (32768, 2048), (16384, 4096))),
)


class Other(NamedTuple):
    """A row of one speedup."""

    label: str
    part: str
    case: str
    pass_: str
    variant: str


SQUARE, WINDOWS = "square/4096x4096x4096", "attention/2x16x4096x64"
OTHERS = (
    *(
        Other(f"masked_matmul 4096x4096x4096, {mask}, {pass_}", "masked", SQUARE, pass_, f"ours:{mask}")
        for pass_ in ("forward", "forward+backward")
        for mask in ("128x128-90", "64x64-90", "32x32-90", "random-99")
    ),
    *(
        Other(f"masked attention, 4096 tokens, {mask}, {pass_}", "masked", WINDOWS, pass_, f"ours:{mask}")
        for pass_ in ("forward", "forward+backward")
        for mask in ("window512-88", "causal-50", "64x64-90")
    ),
    *(
        Other(f"{label}, {kind}", "layers", f"gpu/{case}", "forward", kind)
        for label, case in (
            ("3x3, 256 channels, 14x14", "3x3-256x14"),
            ("3x3, 128 channels, 28x28", "3x3-128x28"),
            ("3x3, 64 channels, 56x56", "3x3-64x56"),
            ("1x1, 1024 to 256 channels, 14x14", "1x1-1024x14"),
        )
        for kind in ("block:32x32-90", "sparse:random-90")
    ),
    *(
        Other(f"ResNet-50, batch 64, {what}, {kind}", "networks", "imagenet/resnet-50", pass_, kind)
        for pass_, what in (("forward", "forward"), ("step", "training step"))
        for kind in ("block:32x32-90", "converted:32x32-90", "converted:random-90")
    ),
    Other("OpenELM-270M, a prompt of 512 tokens", "openelm", "270M/prompt-512", "forward", "ours"),
    Other("OpenELM-270M, token by token", "openelm", "270M/generate-16", "forward", "ours"),
)


def gpus(results: Path) -> list[str]:
    """The names that files of records have: "h200"."""
    found = (re.match(r"gpu-(.+)-[a-z]+$", one.stem) for one in results.glob("gpu-*.jsonl"))
    return sorted({match[1] for match in found if match})


def label_of(gpu: str | None) -> str:
    """As tables call it."""
    if gpu is None:
        return "none yet"
    name = gpu.removesuffix(TRITON_ONLY)
    return name.upper() + (", Triton alone" if name != gpu else "")


def records_of(results: Path, gpu: str | None, part: str, dtype: str = "bfloat16") -> Records:
    """Of that GPU, or nothing."""
    file = results / f"gpu-{gpu}-{part}.jsonl"
    if gpu is None or not file.exists():
        return {}
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(one["case"], one["pass"], one["variant"]): one for one in records if one["dtype"] == dtype}


def with_target(text: str, target: str | None) -> str:
    return text if target is None else f"{text}; target {target}"


def value(record: Record | None, text: Callable[[Record], str]) -> str:
    """What `text` says of a record; that there is none, or what became of it."""
    if record is None:
        return NOT_YET
    return text(record) if record["status"] == "ok" else str(record["status"])


def speedup(record: Record | None) -> str:
    def text(found: Record) -> str:
        reached = found["details"].get("reachable_fraction")
        return f"{found['speedup']:.2f}x" + ("" if reached is None else f" ({reached:.0%})")

    return value(record, text)


def times_faster(ours: Record | None, other: Record | None) -> str:
    """The other's time over ours."""
    if ours is None or ours["status"] != "ok":
        return NOT_YET if ours is None else ""
    return value(other, lambda found: f"{found['p50_ms'] / ours['p50_ms']:.2f}x")


Line = list[str]
Lines = Callable[[Path, str | None], Iterable[Line]]
"""Those of a GPU, or of none."""


def by_percent(rows: Sequence[Row]) -> Lines:
    """A line for each row, with a cell for each of `PERCENTS`."""

    def cell(records: Records, row: Row, percent: int) -> str:
        if percent not in row.percents:
            return ""
        target = row.targets.get(percent)
        found = records.get((row.case, row.pass_, f"{row.variant}-{percent}/graph"))
        return with_target(speedup(found), None if target is None else f"{target:.3g}x")

    def lines(results: Path, gpu: str | None) -> Iterable[Line]:
        for row in rows:
            records = records_of(results, gpu, row.part)
            yield [row.label, label_of(gpu), *(cell(records, row, percent) for percent in PERCENTS)]

    return lines


def _percents(results: Path, rows: Sequence[Row], head: str = "bfloat16") -> str:
    parts = tuple(dict.fromkeys(row.part for row in rows))
    return _page(results, [head, "GPU", *(f"{one}%" for one in PERCENTS)], by_percent(rows), parts)


def in_short(results: Path) -> str:
    """The README's: forward passes in blocks, and the fewest and the most of a few rows."""
    few = [row for row in FEW if row.variant == "sparse:random" and row.case.startswith(("1-", "16-"))]
    few = [row._replace(label=f"linear 8192 to 8192, {row.label}") for row in few]
    return _percents(results, (*BLOCKS, *few))


def blocks(results: Path) -> str:
    """Forward passes in blocks."""
    return _percents(results, BLOCKS)


def few_rows(results: Path) -> str:
    """Single elements on 1 to 16 rows, as a call chooses, and by the Triton kernel."""
    return _percents(results, FEW, "8192 to 8192, bfloat16")


def many_rows(results: Path) -> str:
    """Single elements on 64 to 8192 rows."""
    return _percents(results, MANY, "4096 to 4096, bfloat16")


def gradients(results: Path) -> str:
    """Gradients in blocks, and their speedups over those of the forward passes."""

    def lines(results: Path, gpu: str | None) -> Iterable[Line]:
        records = records_of(results, gpu, "blocks")
        for label, case, sizes in LAYERS:
            for block in sizes:
                for pass_, name in GRADIENTS.items():
                    cells = []
                    for percent in GRADIENT_PERCENTS:
                        variant = f"block:{block}x{block}-{percent}/graph"
                        found, forward = (records.get((case, one, variant)) for one in (pass_, "forward"))
                        cells += [speedup(found), with_target(_of(found, forward), f"{OF_FORWARD:g}")]
                    yield [f"{label}, {block}x{block} blocks, {name}", label_of(gpu), *cells]

    head = [text for percent in GRADIENT_PERCENTS for text in (f"{percent}%", "of forward")]
    return _page(results, ["bfloat16", "GPU", *head], lines, ("blocks",))


def _of(found: Record | None, forward: Record | None) -> str:
    """The speedup of a gradient over that of its forward pass."""
    for one in (found, forward):
        if one is None or one["status"] != "ok":
            return NOT_YET if one is None else str(one["status"])
    assert found is not None
    assert forward is not None
    return f"{found['speedup'] / forward['speedup']:.2f}"


def norms(results: Path) -> str:
    """The share of a copy's rate, and how many times faster than others, in CUDA graphs."""

    def lines(results: Path, gpu: str | None) -> Iterable[Line]:
        records = records_of(results, gpu, "rmsnorm")
        for pass_, group, shapes in NORMS:
            for (rows, columns), target in shapes.items():
                names = ("ours", "torch", "torch.compile", "triton")
                case = f"{group}/{rows}x{columns}"
                ours, *rest = (records.get((case, pass_, f"{one}/graph")) for one in names)
                share = value(ours, lambda found: f"{found['ideal_fraction']:.0%}")
                over = [times_faster(ours, one) for one in rest]
                if (rows, columns) == (4096, 8192):
                    over[1] = ""  # torch.compile is measured where the time for it is well spent
                yield [f"{rows}x{columns}, {pass_}", label_of(gpu), with_target(share, f"{target:.0%}"), *over]

    head = ["rows x columns, bfloat16", "GPU", "of a copy's rate", "over torch", "over torch.compile"]
    return _page(results, [*head, "over our Triton kernel"], lines, ("rmsnorm",))


def host_time(results: Path) -> str:
    """Microseconds of an eager call of one row, calls back to back."""

    def lines(results: Path, gpu: str | None) -> Iterable[Line]:
        records = records_of(results, gpu, "rmsnorm")
        cells = []
        for variant in ("ours", "triton", "torch", "torch.compile"):
            found = records.get((ONE_ROW, "forward", variant))
            cells.append(value(found, lambda found: f"{1e3 * found['p50_ms']:.1f} µs"))
        cells[0] = with_target(cells[0], f"{HOST_US:g} µs")
        yield ["(1, 4096), bfloat16", label_of(gpu), *cells]

    head = ["an eager call", "GPU", "ours", "by our Triton kernel", "torch", "torch.compile"]
    return _page(results, head, lines, ("rmsnorm",))


def norm_peers(results: Path) -> str:
    """How many times as fast as other packages ours is, in CUDA graphs."""

    def lines(results: Path, gpu: str | None) -> Iterable[Line]:
        for pass_, (rows, columns) in BESIDE_PEERS:
            records = records_of(results, gpu, "normpeers" if pass_ == "forward" else "gradpeers")
            case = f"norm/{rows}x{columns}"
            ours = records.get((case, pass_, "ours/graph"))
            cells = [times_faster(ours, records.get((case, pass_, f"{peer}/graph"))) for peer in PEERS]
            yield [f"{rows}x{columns}, {pass_}", label_of(gpu), *cells]

    head = ["rows x columns, bfloat16", "GPU", *(f"over {peer}" for peer in PEERS)]
    return _page(results, head, lines, ("normpeers", "gradpeers"))


def others(results: Path) -> str:
    """Masked products and attention, smaller layers, networks."""

    def lines(results: Path, gpu: str | None) -> Iterable[Line]:
        for row in OTHERS:
            records = records_of(results, gpu, row.part)
            found = records.get((row.case, row.pass_, f"{row.variant}/graph"))
            yield [row.label, label_of(gpu), speedup(found)]

    parts = tuple(dict.fromkeys(row.part for row in OTHERS))
    return _page(results, ["bfloat16", "GPU", "over dense"], lines, parts)


TABLES: Mapping[str, Callable[[Path], str]] = {
    "on a GPU, in short": in_short,
    "blocks on a GPU": blocks,
    "gradients on a GPU": gradients,
    "few rows on a GPU": few_rows,
    "more rows on a GPU": many_rows,
    "RMSNorm on a GPU": norms,
    "an eager call on a GPU": host_time,
    "RMSNorm beside other packages on a GPU": norm_peers,
    "other suites on a GPU": others,
}
"""By the name that it has in the pages."""


def _page(results: Path, head: Sequence[str], lines: Lines, parts: Sequence[str]) -> str:
    """A table of all GPUs, or of none, and what its records were measured with."""
    made = [line for gpu in gpus(results) or [None] for line in lines(results, gpu)]
    return _table(head, made, 2) + _caption(results, *parts)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = "|---" * left + "|---:" * (len(head) - left) + "|"
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (head, *lines))
    return re.sub(r"(?<=\|)  (?=\|)", " ", "\n".join((first, rule, *rest)))


def _caption(results: Path, *parts: str) -> str:
    """What the records were measured with."""
    found: dict[str, None] = {}
    for gpu in gpus(results):
        for part in parts:
            for one in records_of(results, gpu, part).values():
                versions = one["versions"]
                commit = str(one["commit"])
                short = commit if commit.startswith("sources-") else commit[:7]
                on = f"torch {versions['torch']}, triton {versions.get('triton')}"
                found[f"{one['machine']['gpu']}: commit {short}; {on}"] = None
    return f"\n\n{'. '.join(found)}." if found else ""
