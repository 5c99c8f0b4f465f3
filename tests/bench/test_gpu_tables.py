# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu_tables.py: from records of a GPU, and without any."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_bench_reports import MACHINE, make_record

from sparsekernels.bench import blocks, decode, record, rmsnorm
from sparsekernels.bench.modules import import_file
from sparsekernels.bench.suite import Selection

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables() -> ModuleType:
    return import_file(ROOT / "benchmarks" / "gpu_tables.py")


def gpu_record(suite: str, case: str, variant: str, **own: Any) -> record.Record:
    machine = {**MACHINE, "gpu": "NVIDIA H200"}
    own = {"dtype": "bfloat16", "machine": machine, "commit": "0123456789ab", **own}
    return make_record(variant, suite=suite, case=case, device="cuda", **own)


def test_without_records_every_cell_says_so(tables: ModuleType, tmp_path: Path) -> None:
    for text, rows in ((tables.sparse(tmp_path), len(tables.ROWS)), (tables.norms(tmp_path), 6)):
        lines = text.splitlines()[2:]
        assert len(lines) == rows
        for line in lines:
            cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
            assert cells[0] == "none yet"
            assert set(cells[1:]) <= {"", tables.NOT_YET}
            assert tables.NOT_YET in cells


def test_cells_of_records(tables: ModuleType, tmp_path: Path) -> None:
    own = {"speedup": 3.214, "details": {"reachable_fraction": 0.876}}
    found = [
        gpu_record("blocks", "linear/4096x4096", "block:64x64-80/graph", **own),
        gpu_record("blocks", "linear/4096x4096", "block:64x64-80", speedup=9.0),
        gpu_record("blocks", "linear/4096x4096", "block:64x64-90/graph", times=None),
        gpu_record("blocks", "linear/4096x4096", "block:64x64-95/graph", speedup=9.0, dtype="float32"),
    ]
    record.write(tmp_path / "gpu-h200-blocks.jsonl", found)
    first, *_, caption = tables.sparse(tmp_path).splitlines()[2:]
    expected = "| H200 | | not yet measured | 3.21x (88%) | wrong | not yet measured |"
    assert first.endswith(expected)
    assert caption == "NVIDIA H200: commit 0123456; torch 2.13.0, triton None."
    norm = gpu_record("rmsnorm", "large/16384x4096", "ours/graph", ideal_fraction=0.92, speedup=2.5)
    record.write(tmp_path / "gpu-h200-rmsnorm.jsonl", [norm])
    assert "| 16384x4096, forward | H200 | 92% | 2.50x |" in tables.norms(tmp_path)


def test_every_row_is_a_case_that_is_measured(tables: ModuleType) -> None:
    """A table of cases that no suite has would never be filled."""
    selection = Selection(device="cuda", dtypes=("bfloat16",))
    for row in tables.ROWS:
        suite = {"blocks": blocks, "decode": decode}[row.suite].SUITE
        (case,) = (one for one in suite.cases(selection) if (one.name, one.pass_) == (row.case, row.pass_))
        kind, _, mask = row.variant.partition(":")
        offered = case.parameters["blocks"]["bfloat16"] if row.suite == "blocks" else case.parameters["masks"]
        assert mask in offered
        assert kind == ("block" if row.suite == "blocks" else "sparse")
        assert set(row.percents) <= set(case.parameters["sparsities"])
    measured = {(one.name, one.pass_) for one in rmsnorm.SUITE.cases(Selection(device="cuda", quick=True))}
    for pass_, group, shapes in tables.NORMS:
        for rows, columns in shapes:
            assert (f"{group}/{rows}x{columns}", pass_) in measured


def test_the_readme_claims_no_speed_on_a_gpu_that_was_not_measured(tables: ModuleType) -> None:
    """Where there are no records, its tagline and the package's description are about CPUs alone, and it says so."""
    if tables.gpus(ROOT / "benchmarks" / "results"):
        pytest.skip("there are records of a GPU")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tagline = readme.splitlines()[2]
    description = next(
        line for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines() if "description =" in line
    )
    for text in (tagline, description):
        assert "on CPU" in text
        assert "GPU" not in text
    assert "**No GPU has run or measured any of this yet**" in readme
    assert "**Nothing has been measured on a GPU yet**" in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
