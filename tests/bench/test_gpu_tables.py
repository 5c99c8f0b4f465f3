# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu_tables.py: from records of a GPU, and without any."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gpu_cases import selection_of
from test_bench_reports import MACHINE, make_record

from sparsekernels.bench import attention, record, suite
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


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


ROWS_OF = {
    "on a GPU, in short": 6,
    "blocks on a GPU": 4,
    "gradients on a GPU": 12,
    "few rows on a GPU": 10,
    "more rows on a GPU": 8,
    "RMSNorm on a GPU": 7,
    "an eager call on a GPU": 1,
    "RMSNorm beside other packages on a GPU": 7,
    "other suites on a GPU": 30,
}


@pytest.mark.parametrize("name", ROWS_OF)
def test_without_records_every_cell_says_so(tables: ModuleType, tmp_path: Path, name: str) -> None:
    assert list(tables.TABLES) == list(ROWS_OF)
    head, _, *lines = tables.TABLES[name](tmp_path).splitlines()
    assert len(lines) == ROWS_OF[name]
    for line in lines:
        cells = cells_of(line)
        assert len(cells) == len(cells_of(head))
        assert cells[1] == "none yet"
        assert {cell.partition(";")[0] for cell in cells[2:]} <= {"", tables.NOT_YET}
        assert tables.NOT_YET in cells[2] or tables.NOT_YET in cells[3]


def test_every_target_of_the_plan_has_its_cell(tables: ModuleType, tmp_path: Path) -> None:
    """Those for an H100 in bfloat16: blocks of 64 and 32, few rows, gradients, RMSNorm, the host."""

    def targets(name: str) -> list[list[str]]:
        lines = tables.TABLES[name](tmp_path).splitlines()[2:]
        return [[cell.partition("; target ")[2] for cell in cells_of(line)[2:]] for line in lines]

    assert targets("blocks on a GPU") == [
        ["", "2.5x", "3.6x", "6x", "6.5x"],
        ["", "2x", "2.9x", "5x", "5.5x"],
        ["", "2.2x", "3.2x", "5x", "7x"],
        ["", "1.7x", "2.5x", "4x", "6x"],
    ]
    few = ["1.3x", "2x", "3x", "4.5x", "7x"]
    assert targets("few rows on a GPU") == [few, [""] * 5] * 5
    assert targets("on a GPU, in short") == [*targets("blocks on a GPU"), few, few]
    assert targets("gradients on a GPU") == [["", "0.8"] * 3] * 12
    assert [row[0] for row in targets("more rows on a GPU")] == ["0.893x"] * 7 + ["0.952x"]
    shares = ["80%", "92%", "97%", "60%", "70%", "85%", "85%"]
    assert [row[0] for row in targets("RMSNorm on a GPU")] == shares
    assert targets("an eager call on a GPU") == [["6 µs", "", "", ""]]


def test_cells_of_records(tables: ModuleType, tmp_path: Path) -> None:
    own = {"speedup": 3.214, "details": {"reachable_fraction": 0.876}}
    found = [
        gpu_record("blocks", "linear/4096x4096", "block:64x64-80/graph", **own),
        gpu_record("blocks", "linear/4096x4096", "block:64x64-80", speedup=9.0),
        gpu_record("blocks", "linear/4096x4096", "block:64x64-90/graph", times=None),
        gpu_record("blocks", "linear/4096x4096", "block:64x64-95/graph", speedup=9.0, dtype="float32"),
    ]
    gradient = {"pass_": "input-gradient", "speedup": 2.4105, "details": {}}
    found.append(gpu_record("blocks", "linear/4096x4096", "block:64x64-80/graph", **gradient))
    found.append(gpu_record("blocks", "linear/4096x4096", "block:64x64-90/graph", **gradient))
    record.write(tmp_path / "gpu-h200-blocks.jsonl", found)
    for name in ("blocks on a GPU", "on a GPU, in short"):
        first, *_, caption = tables.TABLES[name](tmp_path).splitlines()[2:]
        expected = (
            "| H200 | | not yet measured; target 2.5x | 3.21x (88%); target 3.6x | wrong; target 6x"
            " | not yet measured; target 6.5x |"
        )
        assert first.endswith(expected)
        assert caption == "NVIDIA H200: commit 0123456; torch 2.13.0, triton None."
    line = tables.gradients(tmp_path).splitlines()[2]
    assert cells_of(line)[2:] == [
        "2.41x",
        "0.75; target 0.8",
        "2.41x",
        "wrong; target 0.8",
        "not yet measured",
        "not yet measured; target 0.8",
    ]


def norm_record(variant: str, ms: float, **own: Any) -> record.Record:
    found = gpu_record("rmsnorm", "large/16384x4096", f"{variant}/graph", times=(ms, ms, ms), **own)
    assert found.p50_ms == ms
    return found


def test_cells_of_norms(tables: ModuleType, tmp_path: Path) -> None:
    norms = [
        norm_record("ours", 2.0, ideal_fraction=0.92),
        norm_record("torch", 5.0),
        norm_record("torch.compile", 3.0),
        norm_record("triton", 2.5),
        gpu_record("rmsnorm", "one-row/1x4096", "ours", times=(0.005, 0.0054, 0.006)),
    ]
    record.write(tmp_path / "gpu-h200-rmsnorm.jsonl", norms)
    expected = "| 16384x4096, forward | H200 | 92%; target 92% | 2.50x | 1.50x | 1.25x |"
    assert expected in tables.norms(tmp_path)
    host = tables.host_time(tmp_path).splitlines()[2]
    assert cells_of(host) == ["(1, 4096), bfloat16", "H200", "5.4 µs; target 6 µs", *["not yet measured"] * 3]
    record.write(tmp_path / "gpu-h200-rmsnorm.jsonl", [norm_record("ours", 2.0, ideal_fraction=0.9)])
    assert "| 90%; target 92% | not yet measured | not yet measured |" in tables.norms(tmp_path)


def test_cells_of_other_packages(tables: ModuleType, tmp_path: Path) -> None:
    for part, pass_ in (("normpeers", "forward"), ("gradpeers", "backward")):
        own = {"pass_": pass_, "suite": "peers-norms", "case": "norm/16384x4096"}
        found = [
            gpu_record(variant="ours/graph", times=(1.0, 1.0, 1.0), **own),
            gpu_record(variant="liger/graph", times=(1.5, 1.5, 1.5), **own),
            gpu_record(variant="quack/graph", times=None, status="unavailable", **own),
        ]
        record.write(tmp_path / f"gpu-h200-{part}.jsonl", found)
    text = tables.norm_peers(tmp_path)
    for pass_ in ("forward", "backward"):
        assert f"| 16384x4096, {pass_} | H200 | 1.50x | unavailable | not yet measured |" in text


def selected(suite_: suite.Suite, options: tuple[str, ...]) -> list[suite.Case]:
    return suite_.cases(selection_of((*options, "--dtype", "bfloat16")))


def test_every_row_is_a_case_that_is_measured(tables: ModuleType) -> None:
    """A table of cases that no part of `make gpu` has would never be filled."""
    gpu = import_file(ROOT / "benchmarks" / "gpu.py")

    def case_of(part: str, name: str, pass_: str) -> suite.Case:
        one = gpu.BENCHMARKS[part]
        of = suite.load(str(ROOT / one.suite) if one.suite.endswith(".toml") else one.suite)
        (found,) = (case for case in selected(of, one.options) if (case.name, case.pass_) == (name, pass_))
        return found

    for row in (*tables.BLOCKS, *tables.FEW, *tables.MANY):
        case = case_of(row.part, row.case, row.pass_)
        kind, _, mask = row.variant.partition(":")
        offered = case.parameters["blocks"]["bfloat16"] if row.part == "blocks" else case.parameters["masks"]
        assert mask in offered
        assert kind == "block" if row.part == "blocks" else kind == "sparse" or "triton" in case.parameters["routes"]
        assert set(row.percents) <= set(case.parameters["sparsities"])
    for _, name, sizes in tables.LAYERS:
        for pass_ in tables.GRADIENTS:
            parameters = case_of("blocks", name, pass_).parameters
            assert {f"{block}x{block}" for block in sizes} <= set(parameters["blocks"]["bfloat16"])
            assert set(tables.GRADIENT_PERCENTS) <= set(parameters["sparsities"])
    for pass_, group, shapes in tables.NORMS:
        for rows, columns in shapes:
            parameters = case_of("rmsnorm", f"{group}/{rows}x{columns}", pass_).parameters
            assert pass_ in parameters.get("quick_compile", ()) or (rows, columns) == (4096, 8192)
    assert case_of("rmsnorm", tables.ONE_ROW, "forward").parameters["quick_compile"]
    for pass_, (rows, columns) in tables.BESIDE_PEERS:
        case_of("normpeers" if pass_ == "forward" else "gradpeers", f"norm/{rows}x{columns}", pass_)
    for row in tables.OTHERS:
        case = case_of(row.part, row.case, row.pass_)
        assert row.variant in variants_of(row.part, case), row


def variants_of(part: str, case: suite.Case) -> set[str]:
    """By the keys of the case, without making its tensors."""
    keys = case.parameters
    if part == "openelm":
        return {"ours"}
    if "windows" in keys:
        masks = [one.name for one in attention.patterns(case, Selection(device="cuda"))]
        return {f"ours:{name}" for name in masks}
    if part == "masked":
        in_blocks = [f"{block}-{percent:g}" for block in keys["blocks"] for percent in keys["block_sparsities"]]
        single = [f"{mask}-{percent:g}" for mask in keys["masks"] for percent in keys["sparsities"]]
        return {f"ours:{name}" for name in (*in_blocks, *single)}
    percents = [f"{percent:g}" for percent in keys["sparsities"]]
    blocks = {f"{kind}:{one}-{of}" for kind in ("block", "converted") for one in keys["blocks"] for of in percents}
    return blocks | {f"{kind}:random-{of}" for kind in ("sparse", "converted") for of in percents}


def test_the_readme_has_the_short_table_and_a_link_to_all(tables: ModuleType) -> None:
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/benchmarks.md"))
    assert re.findall(r"<!-- table: (.*on a GPU.*) -->", readme) == ["on a GPU, in short"]
    assert "[All tables](docs/benchmarks.md#on-a-gpu)" in readme
    shown = re.findall(r"<!-- table: (.*on a GPU.*) -->", page)
    assert shown == [name for name in tables.TABLES if name != "on a GPU, in short"]


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
