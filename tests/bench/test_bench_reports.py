# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Records, and what is made of them: comparisons, tables, markdown, the plot."""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from sparsekernels.bench import plot, record, report, rmsnorm, suite
from sparsekernels.bench.compare import change, compare, differences, disturbances, row, summary, together
from sparsekernels.bench.record import KEYS, Record

MACHINE = {"cpu": "A processor", "isa": "avx2", "cores": 2, "memory_gib": 8, "gpu": None, "allocator": {"A": "1"}}


def make_record(
    variant: str = "ours", times: tuple[float, float, float] | None = (0.9, 1.0, 1.1), **other: Any
) -> Record:
    p20, p50, p80 = times or (None, None, None)
    values: dict[str, Any] = {
        "suite": "rmsnorm",
        "case": "decode/1x2048",
        "variant": variant,
        "pass_": "forward",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "sparsity": None,
        "p20_ms": p20,
        "p50_ms": p50,
        "p80_ms": p80,
        "speedup": None,
        "ideal_fraction": None,
        "max_error": 0.0,
        "status": "ok" if times else "wrong",
        "machine": MACHINE,
        "versions": {"torch": "2.13.0"},
        "commit": "abc",
    }
    return Record(**{**values, **other})


class TestRecords:
    def test_keys(self) -> None:
        expected = "suite case variant pass device dtype threads sparsity p20_ms p50_ms p80_ms speedup ideal_fraction"
        assert list(KEYS) == f"{expected} max_error status machine versions commit details interruptions".split()

    def test_round_trip(self, tmp_path: Path) -> None:
        records = [make_record(), make_record("torch", None), make_record("copy", sparsity=0.9, max_error=None)]
        record.write(tmp_path / "new" / "r.jsonl", records)
        assert record.read(tmp_path / "new" / "r.jsonl") == records
        lines = (tmp_path / "new" / "r.jsonl").read_text().splitlines()
        assert [list(json.loads(line)) for line in lines] == [list(KEYS)] * 3

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2"),
            ("[]", "line 2: expected a record to be a JSON object, got list"),
            ('{"suite": "x"}', "line 2: expected a record with case, variant, .*, got one without"),
            (make_record().to_json()[:-1] + ', "color": 1}', "line 2: expected no keys but a record's, got color"),
            (make_record().to_json().replace('"ok"', '"fine"'), "line 2: expected status to be 'ok', .*, got 'fine'"),
        ],
    )
    def test_bad_lines_are_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "r.jsonl"
        path.write_text(f"{make_record().to_json()}\n{line}\n")
        with pytest.raises(ValueError, match=message):
            record.read(path)

    def test_files_from_before_there_were_all_keys(self) -> None:
        value = json.loads(make_record().to_json())
        del value["details"], value["interruptions"]
        assert Record.from_json(json.dumps(value)) == make_record(details={}, interruptions=None)

    @pytest.mark.parametrize(
        ("variant", "expected"),
        [
            ("ours", ("ours", "", "")),
            ("ours/graph", ("ours", "", "graph")),
            ("sparse:random-90", ("sparse", "random-90", "")),
            ("sparse:random-90/graph", ("sparse", "random-90", "graph")),
        ],
    )
    def test_parts_of_a_variants_name(self, variant: str, expected: tuple[str, str, str]) -> None:
        one = make_record(variant)
        assert (one.kind, one.pattern, one.mode) == expected

    def test_only_ok_has_times(self) -> None:
        with pytest.raises(ValueError, match="if and only if"):
            make_record(status="wrong")
        with pytest.raises(ValueError, match="if and only if"):
            make_record(times=None, status="ok")


class TestCompare:
    @pytest.mark.parametrize(
        ("before", "after", "verdict", "worse"),
        [
            ((0.9, 1.0, 1.1), (0.4, 0.5, 0.6), "faster", False),
            ((0.9, 1.0, 1.1), (1.2, 1.3, 1.4), "slower", True),
            ((0.9, 1.0, 1.1), (1.05, 1.3, 1.4), "same", False),
            ((0.9, 1.0, 1.1), (0.7, 0.8, 0.95), "same", False),
            ((0.9, 1.0, 1.1), None, "now wrong", True),
            (None, (0.9, 1.0, 1.1), "now ok", False),
            (None, None, "wrong", False),
        ],
    )
    def test_verdicts(self, before: Any, after: Any, verdict: str, worse: bool) -> None:
        found = change(make_record(times=before), make_record(times=after))
        assert (found.verdict, found.worse) == (verdict, worse)
        if before and after:
            assert found.ratio == pytest.approx(after[1] / before[1])
        else:
            assert found.ratio is None

    def test_records_are_matched_by_what_they_measure(self) -> None:
        before = [make_record("ours"), make_record("torch"), make_record("gone"), make_record("ours", threads=1)]
        after = [make_record("torch"), make_record("ours", (0.1, 0.2, 0.3)), make_record("new")]
        changes = compare(before, after)
        names = [(one.after or one.before).variant for one in changes]  # type: ignore[union-attr]
        assert list(zip(names, (one.verdict for one in changes), strict=True)) == [
            ("torch", "same"),
            ("ours", "faster"),
            ("new", "new"),
            ("gone", "gone"),
            ("ours", "gone"),
        ]
        assert summary(changes) == "2 gone, 1 same, 1 faster, 1 new"

    @pytest.mark.parametrize(
        ("before", "after", "verdict"),
        [
            ((1.0, 1.2), (1.5, 1.6), "slower"),
            ((1.0, 1.3), (1.1, 1.6), "same"),
            ((1.5, 1.6), (1.0, 1.2), "faster"),
            ((1.0,), (1.5, 1.6), "slower"),
            ((1.0, 1.0, 1.0, 1.1, 1.1, 3.0), (1.2, 1.2, 1.2, 1.2, 1.3, 1.3), "slower"),
            ((1.0, 1.0, 2.0, 2.0, 1.0, 2.0), (2.0, 2.0, 1.0, 2.0, 1.0, 2.0), "same"),
        ],
    )
    def test_several_runs_in_a_file(self, before: Any, after: Any, verdict: str) -> None:
        """The middle of the runs decides: one that was disturbed hides nothing."""
        old, new = ([make_record(times=(0.95 * time, time, 1.05 * time)) for time in run] for run in (before, after))
        (found,) = compare(old, new)
        assert found.verdict == verdict
        assert found.ratio == pytest.approx(statistics.median(after) / statistics.median(before))

    def test_several_runs_are_disturbed_where_most_are_and_wrong_where_one_is(self) -> None:
        quiet, loud = make_record(interruptions=10.0), make_record(interruptions=130.0)
        assert compare([quiet, loud, loud], [quiet])[0].is_disturbed
        assert compare([quiet], [loud, quiet, loud])[0].is_disturbed
        assert not compare([quiet, quiet, loud], [quiet])[0].is_disturbed
        assert compare([quiet], [make_record(times=None), quiet])[0].verdict == "now wrong"
        unknown = make_record()
        assert disturbances([together([quiet, unknown])], [quiet]) == [
            "before: 1 of 1 records do not say whether other programs disturbed them"
        ]

    def test_what_is_gone_is_worse_if_it_was_ok(self) -> None:
        assert change(make_record(), None).worse
        assert not change(make_record(times=None), None).worse
        assert not change(None, make_record()).worse

    def test_differences_in_threads(self) -> None:
        one, two = make_record(threads=1), make_record(threads=2)
        assert differences([one], [two]) == ["the runs differ in threads: 1 before, 2 after"]
        assert differences([one, two], [one]) == ["the runs differ in threads: 1 and 2 before, 1 after"]

    def test_differences_between_the_machines(self) -> None:
        other = make_record(machine={**MACHINE, "cpu": "Another"}, versions={"torch": "2.14.0"})
        assert differences([make_record()], [make_record()]) == []
        assert differences([make_record()], [other]) == [
            "the runs differ in cpu: A processor before, Another after",
            "the runs differ in torch: 2.13.0 before, 2.14.0 after",
        ]

    @pytest.mark.parametrize(
        ("quiet", "other", "mark"),
        [
            ({}, {}, ""),
            ({"interruptions": 20.0}, {"interruptions": 50.0}, ""),
            ({"interruptions": 20.0}, {"interruptions": 130.0}, "?"),
            ({}, {"times": (0.9, 1.0, 1.4)}, "?"),
            ({}, {"times": (0.9, 1.0, 1.3)}, ""),
            ({}, {"times": None, "interruptions": 130.0}, ""),
        ],
    )
    def test_a_verdict_on_disturbed_times_is_marked(self, quiet: Any, other: Any, mark: str) -> None:
        """Whichever run it was."""
        one, two = make_record(**quiet), make_record(**other)
        for item in (change(one, two), change(two, one)):
            assert row(item)[-1] == f"{item.verdict}{mark}"
        assert row(change(None, two))[-1] == "new"

    def test_what_disturbed_the_runs_is_said(self) -> None:
        quiet = [make_record(case=case, interruptions=10.0) for case in ("a/1", "a/2")]
        assert disturbances(quiet, quiet) == []
        other = [
            make_record(case="a/1", interruptions=130.4),
            make_record(case="a/2", interruptions=90.0, times=(1.0, 1.2, 1.6)),
            make_record(case="a/3", interruptions=500.0, times=None),
            make_record(case="a/4"),
        ]
        assert disturbances(other, quiet) == [
            "before: disturbed; other programs preempted the process up to 130 times a second in 2 of 3 records;"
            " measure again on a quiet machine",
            "before: noisy; the middle 60% of the samples differ by more than 1.5x in 1 of 3 records",
            "before: 1 of 3 records do not say whether other programs disturbed them",
        ]
        assert [line.partition(":")[0] for line in disturbances(quiet, other)] == ["after"] * 3


RECORDS = [
    make_record("ours", (0.001, 0.002, 0.003), speedup=2.5, ideal_fraction=0.5),
    make_record("torch", (0.004, 0.005, 0.006), speedup=1.0),
    make_record("layer_norm", (0.003, 0.004, 0.005), max_error=None),
    make_record("copy", (0.001, 0.001, 0.001), max_error=None),
    make_record("ours", None, dtype="bfloat16"),
    make_record("torch", (40.0, 41.25, 42.0), dtype="bfloat16"),
]
LAYOUTS = {"rmsnorm": rmsnorm.SUITE.layout}


class TestReports:
    def test_table(self) -> None:
        (table,) = report.tables(RECORDS, LAYOUTS)
        assert table.title == "rmsnorm, forward (cpu, 2 threads)"
        assert table.header == ("case", "dtype", "copy", "torch", "layer_norm", "ours", *table.header[6:])
        assert table.header[6:] == ("ours / copy", "ours / layer_norm", "speedup")
        assert table.rows == (
            ("decode/1x2048", "fp32", "1.00 us", "5.00 us", "4.00 us", "2.00 us", "2.00", "0.50", "2.50x"),
            ("decode/1x2048", "bf16", "", "41.2 ms", "", "wrong", "", "", ""),
        )

    def test_a_mode_has_its_own_row(self) -> None:
        records = [make_record("ours", device="cuda"), make_record("ours/graph", (0.1, 0.2, 0.3), device="cuda")]
        (table,) = report.tables(records, LAYOUTS)
        assert table.title == "rmsnorm, forward (cuda)"
        assert table.header == ("case", "dtype", "ours", "ours GB/s")
        assert [row[:3] for row in table.rows] == [
            ("decode/1x2048", "fp32", "1.00 ms"),
            ("decode/1x2048 (graph)", "fp32", "200 us"),
        ]

    def test_a_pattern_has_its_own_row_with_what_has_none(self) -> None:
        patterns = [make_record(f"ours:{name}", speedup=float(name[-2:])) for name in ("random-80", "random-90")]
        records = [make_record("torch"), *patterns, make_record("torch", case="decode/8x64")]
        rows = report.rows(records)
        assert {label: {kind: one.variant for kind, one in row.items()} for (label, _), row in rows.items()} == {
            "decode/1x2048 (random-80)": {"torch": "torch", "ours": "ours:random-80"},
            "decode/1x2048 (random-90)": {"torch": "torch", "ours": "ours:random-90"},
            "decode/8x64": {"torch": "torch"},
        }

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0009996, "1.00 us"),
            (0.0421, "42.1 us"),
            (0.9994, "999 us"),
            (0.9996, "1.00 ms"),
            (41.26, "41.3 ms"),
            (2500.0, "2.50 s"),
        ],
    )
    def test_times(self, value: float, text: str) -> None:
        assert report.milliseconds(value) == text

    def test_markdown(self) -> None:
        legend = rmsnorm.SUITE.layout.legend
        assert report.markdown(RECORDS[:2], LAYOUTS, "speedup.png") == (
            "# Benchmark\n\n"
            "- A processor, 2 cores, 8 GiB, kernels avx2; torch 2.13.0; commit abc; allocator: A=1\n\n"
            "![speedup by case](speedup.png)\n\n"
            "## rmsnorm, forward (cpu, 2 threads)\n\n"
            "| case | dtype | torch | ours | speedup |\n"
            "| --- | --- | ---: | ---: | ---: |\n"
            "| decode/1x2048 | fp32 | 5.00 us | 2.00 us | 2.50x |\n\n"
            f"{legend}\n"
        )

    def test_terminal_shows_every_cell_as_it_is(self) -> None:
        from rich.console import Console

        console = Console(width=120, file=io.StringIO())
        for table in report.rich_tables("[title]", ("case", "dtype", "ours"), [("[a]", "b", "1.00 us")], 80):
            console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "[title]" in text
        assert "[a]" in text
        assert "1.00 us" in text

    @pytest.mark.parametrize(("width", "pieces"), [(80, 1), (45, 1), (44, 2), (30, 3)])
    def test_a_narrow_terminal_gets_several_tables(self, width: int, pieces: int) -> None:
        from rich.console import Console

        header = ("case", "dtype", "its time", "speedup", "of the ideal")
        body = [("a/longer-name", "fp32", "1.00 ms", "12.34x", "56%")]
        console = Console(width=width, file=io.StringIO())
        tables = report.rich_tables("title", header, body, width)
        for table in tables:
            console.print(table)
        assert len(tables) == pieces
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert max(map(len, lines)) <= width
        shown = [line.split() for line in lines if line.startswith("a/longer-name")]
        assert len(shown) == pieces
        assert [cell for line in shown for cell in line[2:]] == ["1.00", "ms", "12.34x", "56%"]
        assert all(line[:2] == ["a/longer-name", "fp32"] for line in shown)
        text = " ".join(lines)
        assert all(word in text for name in header for word in name.split())

    def test_points_of_the_plot(self) -> None:
        names, found = plot.points(RECORDS, LAYOUTS["rmsnorm"])
        assert names == ["decode/1x2048  fp32"]
        assert found == {"torch": [(0, 2.5)], "layer_norm": [(0, 2.0)]}

    def test_plot(self, tmp_path: Path) -> None:
        both = [*RECORDS, *(dataclasses.replace(one, pass_="forward+backward") for one in RECORDS)]
        plot.plot(both, LAYOUTS, tmp_path / "new" / "p.svg")
        picture = (tmp_path / "new" / "p.svg").read_text()
        for text in ("rmsnorm, forward+backward (cpu)", "than layer_norm", "A processor", "torch 2.13.0"):
            assert f"<!-- {text}" in picture or text in picture
        assert "than torch.compile" not in picture

    def test_nothing_to_draw(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nothing to draw"):
            plot.plot(RECORDS[:1], LAYOUTS, tmp_path / "p.png")
        assert list(tmp_path.iterdir()) == []

    def test_bytes_moved(self) -> None:
        one = make_record(case="large/1024x2048", device="cuda", dtype="bfloat16", pass_="backward")
        assert rmsnorm.gigabytes(one) == pytest.approx(1024 * 2048 * 2 * 3 * 1e-9)
        assert rmsnorm.gigabytes(make_record()) is None


@pytest.mark.parametrize("name", suite.SUITES)
def test_each_column_has_a_name_of_its_own(name: str) -> None:
    titles = [column.title for column in suite.load(name).layout.columns]
    assert len(set(titles)) == len(titles)


def test_each_rival_has_a_symbol_of_its_own() -> None:
    assert len(plot.STYLES) == len(set(plot.STYLES)) == 64
    assert plot.STYLES[0] != plot.STYLES[8]
