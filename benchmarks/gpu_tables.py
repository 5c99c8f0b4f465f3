# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of GPUs in the documentation, from the records in benchmarks/results; what no GPU has measured says so.

`tables.py` beside this writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NOT_YET = "not yet measured"
PERCENTS = (50, 70, 80, 90, 95)

Records = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""By case, pass and variant."""


class Row(NamedTuple):
    """A row of speedups: where its records are, and what it is called."""

    label: str
    suite: str
    case: str
    pass_: str
    variant: str
    percents: tuple[int, ...] = PERCENTS[1:]


OF = {"input-gradient": "gradient to the input", "weight-gradient": "gradient to the weight"}
LINEAR, CONV, FEW = "linear/4096x4096", "conv/512x28", "1-row/8192x8192"
ROWS = (
    *(
        Row(f"linear 4096 to 4096, 4096 rows, {block} blocks", "blocks", LINEAR, "forward", f"block:{block}")
        for block in ("64x64", "32x32")
    ),
    *(
        Row(f"3x3, 512 channels, 28x28, batch 64, {block} blocks", "blocks", CONV, "forward", f"block:{block}")
        for block in ("64x64", "32x32")
    ),
    *(
        Row(f"{what}, 64x64 blocks, {OF[pass_]}", "blocks", case, pass_, "block:64x64", (70, 90, 95))
        for what, case in (("the linear layer", LINEAR), ("the convolution", CONV))
        for pass_ in ("input-gradient", "weight-gradient")
    ),
    Row("linear 8192 to 8192, 1 row, fine-grained", "decode", FEW, "forward", "sparse:random", PERCENTS),
)
NORMS = (
    ("forward", "large", ((262144, 256), (16384, 4096), (1024, 65536))),
    ("backward", "backward", ((65536, 1024), (32768, 2048), (8192, 4096))),
)


def gpus(results: Path) -> list[str]:
    """The names that files of records have: "h200"."""
    found = (re.match(r"gpu-(.+)-[a-z]+$", one.stem) for one in results.glob("gpu-*.jsonl"))
    return sorted({match[1] for match in found if match})


def records_of(results: Path, gpu: str | None, suite: str, dtype: str = "bfloat16") -> Records:
    """Of that GPU, or nothing."""
    file = results / f"gpu-{gpu}-{suite}.jsonl"
    if gpu is None or not file.exists():
        return {}
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(one["case"], one["pass"], one["variant"]): one for one in records if one["dtype"] == dtype}


def speedup(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return NOT_YET
    if record["status"] != "ok":
        return str(record["status"])
    reached = record["details"].get("reachable_fraction")
    return f"{record['speedup']:.2f}x" + ("" if reached is None else f" ({reached:.0%})")


def sparse(results: Path) -> str:
    """Speedups over the best dense layer in bfloat16, in CUDA graphs; in parentheses the share of what is reachable."""
    lines = []
    for gpu in gpus(results) or [None]:
        for row in ROWS:
            records = records_of(results, gpu, row.suite)
            cells = [
                speedup(records.get((row.case, row.pass_, f"{row.variant}-{one}/graph"))) if one in row.percents else ""
                for one in PERCENTS
            ]
            lines.append([row.label, gpu.upper() if gpu else "none yet", *cells])
    return _table(["bfloat16", "GPU", *(f"{one}%" for one in PERCENTS)], lines, 2) + _caption(
        results, "blocks", "decode"
    )


def norms(results: Path) -> str:
    """The share of a copy's rate, and how many times faster than torch's rms_norm, in CUDA graphs."""
    lines = []
    for gpu in gpus(results) or [None]:
        records = records_of(results, gpu, "rmsnorm")
        for pass_, group, shapes in NORMS:
            for rows, columns in shapes:
                found = records.get((f"{group}/{rows}x{columns}", pass_, "ours/graph"))
                if found is None:
                    cells = [NOT_YET, NOT_YET]
                elif found["status"] == "ok":
                    cells = [f"{found['ideal_fraction']:.0%}", f"{found['speedup']:.2f}x"]
                else:
                    cells = [found["status"], ""]
                lines.append([f"{rows}x{columns}, {pass_}", gpu.upper() if gpu else "none yet", *cells])
    return _table(["rows x columns, bfloat16", "GPU", "of a copy's rate", "over torch"], lines, 2) + _caption(
        results, "rmsnorm"
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = "|---" * left + "|---:" * (len(head) - left) + "|"
    first, *rest = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *lines))
    return "\n".join((first, rule, *rest))


def _caption(results: Path, *suites: str) -> str:
    """What the records were measured with."""
    found: dict[str, None] = {}
    for gpu in gpus(results):
        for suite in suites:
            for one in records_of(results, gpu, suite).values():
                versions = one["versions"]
                commit = str(one["commit"])
                short = commit if commit.startswith("sources-") else commit[:7]
                on = f"torch {versions['torch']}, triton {versions.get('triton')}"
                found[f"{one['machine']['gpu']}: commit {short}; {on}"] = None
    return f"\n\n{'. '.join(found)}." if found else ""
