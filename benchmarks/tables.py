# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of whole networks and of GPUs in the documentation, made from the records in benchmarks/results.

    python benchmarks/tables.py           names the tables that are not what the records say, and then fails
    python benchmarks/tables.py --write   writes them

A table stands between <!-- table: name --> and <!-- end -->.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "when_it_pays.md"
MACHINES = {"Xeon": "cpu-xeon-amx-2-cores", "EPYC": "cpu-epyc-avx512-2-cores"}
"""The names that the documentation has for the machines, and those of their files."""

NAMES = {
    "lenet-300-100": "LeNet-300-100",
    "lenet-5-caffe": "LeNet-5-Caffe",
    "alexnet-s": "AlexNet-s",
    "vgg16-d": "VGG16-D",
    "wrn-28-2": "WRN-28-2",
    "wrn-16-10": "WRN-16-10",
    "resnet-50": "ResNet-50",
    "efficientnet-lite0": "EfficientNet-Lite0",
}
PEERS = {
    "torch": "torch",
    "torch-bf16": "torch bf16",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO bf16",
    "deepsparse": "DeepSparse 1.8",
    "ours": "ours",
}
IN_SHORT = ("vgg16-d", "wrn-28-2", "wrn-16-10", "resnet-50")
IN_README = (("vgg16-d", "forward"), ("resnet-50", "forward"), ("resnet-50", "step"))
PASSES = {"forward": "forward", "step": "training step"}
BFLOAT16 = ("dense-bf16", "dense-fused-bf16")

Row = Mapping[str, Mapping[str, Any]]
"""The records of a case, by variant."""


def records_of(name: str, machine: str) -> list[dict[str, Any]]:
    lines = (RESULTS / f"{MACHINES[machine]}-{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rows_of(records: Iterable[Mapping[str, Any]], pass_: str) -> dict[str, Row]:
    """By the network's name, in the order of NAMES."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        if record["pass"] == pass_:
            found.setdefault(network_of(record), {})[record["variant"]] = record
    return {name: found[name] for name in NAMES if name in found}


def network_of(record: Mapping[str, Any]) -> str:
    return str(record["case"]).partition("/")[2].partition("@")[0]


def time_of(record: Mapping[str, Any]) -> str:
    ms = float(record["p50_ms"])
    value, unit = (ms * 1e3, "µs") if ms < 1 else (ms, "ms") if ms < 1000 else (ms / 1e3, "s")
    return f"{f'{value:#.3g}'.rstrip('.')} {unit}"


def speedup_of(row: Row, variant: str) -> str:
    record = row.get(variant)
    if record is None or record["status"] == "unavailable":
        return ""
    return f"{record['speedup']:.2f}x" if record["status"] == "ok" else str(record["status"])


def converted(row: Row, percent: int) -> str:
    """The variant that was converted at this sparsity, whatever mask it was pruned with."""
    names = [name for name in row if name.startswith("converted:") and name.endswith(f"-{percent}")]
    return names[0] if names else ""


def beats_bfloat16(row: Row, variant: str) -> bool:
    rivals = [row[name] for name in BFLOAT16 if name in row]
    best = max((float(one["speedup"]) for one in rivals if one["status"] == "ok"), default=float("inf"))
    return variant in row and row[variant]["status"] == "ok" and float(row[variant]["speedup"]) > best


def bold_where_faster(row: Row, percent: int) -> str:
    name = converted(row, percent)
    cell = speedup_of(row, name)
    return f"**{cell}**" if beats_bfloat16(row, name) else cell


def table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = "|---" * left + "|---:" * (len(head) - left) + "|"
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (head, *lines))
    return "\n".join((first, rule, *rest))


def caption(records: Sequence[Mapping[str, Any]]) -> str:
    commits = sorted({short(str(record["commit"])) for record in records})
    torch = sorted({str(record["versions"]["torch"]) for record in records})
    return f"Commit {', '.join(commits)}; torch {', '.join(torch)}."


def short(commit: str) -> str:
    """Seven digits, and whether there were changes."""
    number, plus, rest = commit.partition("+")
    return number[:7] + plus + rest


def whole_networks(machine: str, pass_: str, percents: Sequence[int], file: str = "networks") -> str:
    records = records_of(file, machine)
    fused = any(record["variant"] == "dense-fused-bf16" for record in records if record["pass"] == pass_)
    head = ["network, batch", "dense", "not layers", "bf16", *(["bf16, fused"] if fused else []), "fused"]
    lines = []
    for name, row in rows_of(records, pass_).items():
        dense = row["dense"]
        ninety = row.get(converted(row, 90))
        lines.append(
            [
                f"{NAMES[name]}, {dense['details']['batch']}",
                time_of(dense),
                f"{dense['details']['not_layers']:.0%}",
                speedup_of(row, "dense-bf16"),
                *([speedup_of(row, "dense-fused-bf16")] if fused else []),
                speedup_of(row, "dense-fused"),
                *(bold_where_faster(row, percent) for percent in percents),
                "" if ninety is None else f"{ninety['details']['estimated_speedup']:.1f}x",
            ]
        )
    head = [*head, *(f"{percent}%" for percent in percents), "estimated at 90%"]
    return f"{table(head, lines)}\n\n{caption([one for one in records if one['pass'] == pass_])}"


def masks(machine: str) -> str:
    records = records_of("networks-clustered", machine)
    kinds = [f"{what}:{mask}-90" for what in ("converted", "dropped") for mask in ("clustered", "magnitude")]
    lines = [
        [f"{NAMES[name]}, {row['dense']['details']['batch']}", *(speedup_of(row, kind) for kind in kinds)]
        for name, row in rows_of(records, "forward").items()
    ]
    head = ["network, batch", *(kind.replace(":", ", ").removesuffix("-90") for kind in kinds)]
    return f"{table(head, lines)}\n\n{caption(records)}"


def steps_in_short() -> str:
    percents = 80, 90, 95
    steps = {one: [step for step in records_of("networks", one) if step["pass"] == "step"] for one in ("EPYC", "Xeon")}
    lines = [
        [
            machine,
            f"{NAMES[name]}, batch {row['dense']['details']['batch']}",
            time_of(row["dense"]),
            speedup_of(row, "dense-bf16"),
            *(bold_where_faster(row, percent) for percent in percents),
        ]
        for machine, records in steps.items()
        for name, row in rows_of(records, "step").items()
        if name in IN_SHORT
    ]
    head = ["machine", "training step", "dense", "dense bf16", *(f"{percent}%" for percent in percents)]
    return f"{table(head, lines, left=2)}\n\n{' '.join(f'{one}: {caption(found)}' for one, found in steps.items())}"


def readme() -> str:
    """On both machines, beside the faster of the dense networks in bfloat16."""
    percents = 80, 90, 95
    lines, captions = [], []
    for machine in ("EPYC", "Xeon"):
        shown = []
        for name, pass_ in IN_README:
            row = rows_of(records_of("networks", machine), pass_)[name]
            bfloat16 = max((one for one in BFLOAT16 if one in row), key=lambda one: float(row[one]["speedup"]))
            cells = [f"{NAMES[name]}, batch {row['dense']['details']['batch']}, {PASSES[pass_]}", machine]
            cells += [time_of(row["dense"]), speedup_of(row, bfloat16)]
            lines.append([*cells, *(bold_where_faster(row, percent) for percent in percents)])
            shown += [row[one] for one in ("dense", bfloat16, *(converted(row, percent) for percent in percents))]
        captions.append(f"{machine}: {caption(shown)}")
    head = ["network", "machine", "dense", "dense bf16", *(f"{percent}%" for percent in percents)]
    return f"{table(head, lines, left=2)}\n\n{' '.join(captions)}"


def peers(machine: str) -> str:
    """Times, and their ratios to ours in parentheses; a row for each sparsity."""
    records = [one for one in records_of("peers", machine) if network_of(one) in NAMES]
    rows: dict[tuple[str, float], dict[str, Mapping[str, Any]]] = {}
    for record in records:
        engine = str(record["variant"]).partition(":")[0]
        rows.setdefault((str(record["case"]), float(record["sparsity"])), {})[engine] = record
    lines = []
    for (case, sparsity), row in sorted(rows.items(), key=lambda one: (list(NAMES).index(name_in(one[0][0])), one[0])):
        cells = []
        for engine in PEERS:
            record = row[engine]
            over = "" if engine == "ours" else f" ({record['details']['over_ours']:.2f}x)"
            cells.append(f"**{time_of(record)}**" if engine == "ours" else f"{time_of(record)}{over}")
        batch = row["ours"]["details"]["batch"]
        lines.append([f"{NAMES[name_in(case)]}, batch {batch}, {sparsity:.0%}", *cells])
    return f"{table(['network, sparsity', *PEERS.values()], lines)}\n\n{caption(records)}"


def claims(machine: str) -> str:
    """What sparse momentum's formula says of a pattern that it found, and what the clock says."""
    records = records_of("published-claims", machine)
    order = list(NAMES)
    lines = []
    for record in sorted(records, key=lambda one: (order.index(one["network"]), one["density"])):
        formula = record["formula"]
        cells = [f"{NAMES[record['network']]}, {record['batch']}", f"{record['density']:.0%}"]
        cells += [times(formula["dropped"]), times(formula["fine-grained"])]
        lines.append([*cells, times(record["forward"]), times(record["speedup"])])
    head = ["network, batch", "weights", "formula: channels", "formula: fine-grained", "forward", "training step"]
    return f"{table(head, lines)}\n\n{caption(records)}"


def times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x" if ratio >= 1.1 else f"{ratio:.2f}x"


def name_in(case: str) -> str:
    return case.partition("/")[2].partition("@")[0]


TABLES: Mapping[str, Callable[[], str]] = {
    "forward, EPYC": lambda: whole_networks("EPYC", "forward", (50, 70, 80, 90, 95, 98)),
    "forward, Xeon": lambda: whole_networks("Xeon", "forward", (50, 70, 80, 90, 95, 98)),
    "one image, EPYC": lambda: whole_networks("EPYC", "forward", (80, 90, 95), "networks-one-image"),
    "step, EPYC": lambda: whole_networks("EPYC", "step", (80, 90, 95)),
    "step, Xeon": lambda: whole_networks("Xeon", "step", (80, 90, 95)),
    "masks, EPYC": lambda: masks("EPYC"),
    "in short": readme,
    "steps in short": steps_in_short,
    "peers, Xeon": lambda: peers("Xeon"),
    "published claims, Xeon": lambda: claims("Xeon"),
    **{name: functools.partial(made, RESULTS) for name, made in gpu_tables.TABLES.items()},
}


def main(write: bool) -> int:
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, made in ((name, TABLES[name]()) for name in re.findall(r"<!-- table: (.*?) -->", text)):
            pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)
            found = pattern.search(text)
            if found is None:
                raise SystemExit(f"{page.name}: the table {name} has no end")
            if found[2] != made:
                stale.append(f"{page.name}: {name}")
                text = text[: found.start(2)] + made + text[found.end(2) :]
        if write:
            page.write_text(text, encoding="utf-8")
    for one in stale:
        print(f"{one}: {'written' if write else 'not what the records say; run this with --write'}")
    if not stale:
        print("all tables are what the records say")
    return 0 if write else min(1, len(stale))


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
