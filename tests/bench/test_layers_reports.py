# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `layers`: tables, plots and comparisons, and the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from test_bench_reports import make_record
from test_cli import one_line, run

from sparsekernels.bench import layers, plot, plot_sparsity, report
from sparsekernels.bench.compare import compare
from sparsekernels.bench.defaults import MEMORY_FORMATS
from sparsekernels.bench.record import Record

DETAILS = {"batch": 64, "count": 2, "gflop": 1.0}


def make_records(case: str = "net/a", speedups: tuple[float, ...] = (0.5, 2.0, 4.0)) -> list[Record]:
    common: dict[str, Any] = {"suite": "layers", "case": case, "max_error": None}
    dense = {**DETAILS, "layout": "channels_last"}
    return [
        make_record("dense", (8.0, 8.0, 8.0), speedup=1.0, details=dense, **common),
        make_record("dense-bf16", (2.0, 2.0, 2.0), speedup=4.0, details=DETAILS, **common),
        *(
            make_record(
                f"sparse:random-{100 * sparsity:g}",
                (8.0 / speedup,) * 3,
                sparsity=sparsity,
                speedup=speedup,
                ideal_fraction=speedup * (1 - sparsity),
                details={**DETAILS, "gflop": 1 - sparsity, "peak_gflops": 250.0},
                **common,
            )
            for sparsity, speedup in zip((0.5, 0.75, 0.875), speedups, strict=True)
        ),
    ]


LAYOUTS = {"layers": layers.SUITE.layout}


class TestReports:
    def test_table(self) -> None:
        (table,) = report.tables(make_records(), LAYOUTS)
        assert table.header == (
            *("case", "dtype", "layers", "dense", "layout", "dense-bf16", "sparse", "speedup", "of ideal"),
            *("sparse GFLOP/s", "of peak", "dense-bf16 / sparse"),
        )
        common = ("fp32", "2", "8.00 ms", "channels_last", "2.00 ms")
        assert table.rows == (
            ("net/a (random-50)", *common, "16.0 ms", "0.50x", "25%", "31.2", "12%", "0.12"),
            ("net/a (random-75)", *common, "4.00 ms", "2.00x", "50%", "62.5", "25%", "0.50"),
            ("net/a (random-87.5)", *common, "2.00 ms", "4.00x", "50%", "62.5", "25%", "1.00"),
        )

    def test_without_a_peak_there_is_no_column(self) -> None:
        records = [dataclasses.replace(one, details=DETAILS) for one in make_records()]
        (table,) = report.tables(records, LAYOUTS)
        assert "of peak" not in table.header
        assert "sparse GFLOP/s" in table.header

    def test_comparison_tells_sparsities_apart(self) -> None:
        changes = compare(make_records(), make_records(speedups=(0.5, 2.0, 8.0)))
        assert [one.verdict for one in changes] == ["same", "same", "same", "same", "faster"]

    @pytest.mark.parametrize(
        ("curve", "expected"),
        [
            ([(0.5, 0.5), (0.75, 2.0)], 1 - 0.125**0.5),
            ([(0.5, 0.5), (0.75, 1.0), (0.875, 2.0)], 0.75),
            ([(0.5, 0.5), (0.75, 0.9)], None),
            ([(0.5, 1.5), (0.75, 2.0)], None),
            ([(0.5, 0.5), (0.75, 2.0), (0.875, 0.5), (0.9, 0.5)], None),
            ([], None),
        ],
    )
    def test_crossover(self, curve: plot_sparsity.Curve, expected: float | None) -> None:
        found = plot_sparsity.crossover(curve)
        assert found == (None if expected is None else pytest.approx(expected))

    def test_medians_are_of_sparsities_that_most_cases_have(self) -> None:
        curves = [[(0.5, 1.0), (0.9, 2.0)], [(0.5, 3.0), (0.9, 6.0)], [(0.5, 2.0), (0.7, 9.0)]]
        assert plot_sparsity.median_curve(curves) == [(0.5, 2.0), (0.9, 4.0)]
        assert plot_sparsity.median_curve([[(0.6, 1.0)], [(0.7, 2.0)]]) == []

    def test_plot(self, tmp_path: Path) -> None:
        records = make_records() + make_records("net/b")
        for name, sparsity in (("a", 0.8), ("b", 0.87)):
            real = {"suite": "layers", "case": f"real/{name}", "sparsity": sparsity, "speedup": 3.0}
            records.append(make_record("sparse:real", **real))
        plot.plot(records, LAYOUTS, tmp_path / "p.svg")
        picture = (tmp_path / "p.svg").read_text()
        texts = ("layers, forward (cpu)", "sparse, random: median, level at 65%", "sparse, real", "dense-bf16: median")
        for text in (*texts, "ideal: 1 / density", "speedup over dense", "87.5%"):
            assert f"<!-- {text} -->" in picture, text

    def test_nothing_to_draw(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nothing to draw"):
            plot.plot(make_records()[:2], LAYOUTS, tmp_path / "p.svg")


def test_command(tmp_path: Path) -> None:
    """One real run of the smallest layer, with every kind of report."""
    options = (
        "--case",
        "lenet-5-caffe/conv1",
        "--pass",
        "forward",
        "--batch",
        "2",
        "--sparsity",
        "90",
        "--threads",
        "1",
    )
    files = ("--json", tmp_path / "r.jsonl", "--markdown", tmp_path / "r.md", "--plot", tmp_path / "p.png")
    result = run("bench", "layers", *options, "--mask", "clustered", *files)
    assert result.exit_code == 0, result.output
    assert "lenet-5-caffe/conv1@2 (clustered-90)" in result.output
    records = [Record.from_json(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(one.variant, one.status) for one in records] == [
        ("dense", "ok"),
        ("dense-bf16", "ok"),
        ("sparse:clustered-90", "ok"),
    ]
    assert json.loads(records[0].to_json())["details"]["layout"] in MEMORY_FORMATS
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    again = run("compare", tmp_path / "r.jsonl", tmp_path / "r.jsonl", "--strict")
    assert "3 same" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sparsity", "100"), "expected sparsity from 0 to below 100 percent, got 100"),
        (("--mask", "even"), "expected mask to be 'random', 'clustered', 'magnitude', got 'even'"),
        (("--dtype", "bfloat16"), "no case of suite layers matches these options"),
        (("--weights", "nowhere.npz"), "'nowhere.npz' does not exist"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], message: str) -> None:
    result = run("bench", "layers", *arguments)
    assert result.exit_code == 2
    assert message in one_line(result.output.replace("│", ""))
