# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command line's files: reports that cannot be written, records that cannot be compared."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import TINY, one_line, run, unexpected

from sparsekernels.bench import record, runner
from sparsekernels.bench.record import Record


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of one real run of the smallest case."""
    file = tmp_path_factory.mktemp("bench") / "r.jsonl"
    assert run(*TINY, "--json", file).exit_code == 0
    return file


@pytest.fixture
def records(file: Path) -> list[Record]:
    return record.read(file)


class TestReports:
    @pytest.mark.parametrize("option", ["--json", "--markdown", "--plot"])
    def test_reports_that_cannot_be_written_fail_before_measuring(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
    ) -> None:
        monkeypatch.setattr(runner, "run", unexpected)
        (tmp_path / "file").write_text("")
        result = run(*TINY, option, tmp_path / "file" / "r.png")
        assert result.exit_code == 2
        assert f"error: cannot write {tmp_path / 'file' / 'r.png'}: " in one_line(result.output)

    def test_the_main_benchmark_needs_its_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "run", unexpected)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bench-report").write_text("a file")
        result = run("bench")
        assert result.exit_code == 2
        assert "error: cannot write bench-report/records.jsonl: " in one_line(result.output)

    def test_a_report_is_not_touched_before_there_are_records(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "run", lambda *arguments: iter(()))
        (tmp_path / "old.jsonl").write_text("old")
        result = run(*TINY, "--json", tmp_path / "old.jsonl", "--markdown", tmp_path / "new" / "r.md")
        assert result.exit_code == 2
        assert "nothing was measured" in result.output
        assert (tmp_path / "old.jsonl").read_text() == "old"
        assert list((tmp_path / "new").iterdir()) == []

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_a_full_disk_fails_before_measuring(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "run", unexpected)
        result = run(*TINY, "--json", "/dev/full")
        assert result.exit_code == 2
        assert "error: cannot write /dev/full: No space left on device" in one_line(result.output)

    def test_no_room_fails_before_measuring(self, tmp_path: Path) -> None:
        """A limit stands in for a full disk: the file can be made, and not be filled."""
        script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
from sparsekernels.bench import cli, runner
def unexpected(*arguments):
    raise AssertionError("nothing is to be measured")
runner.run = unexpected
cli.app({[*TINY, "--json", str(tmp_path / "r.jsonl")]!r})
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert f"error: cannot write {tmp_path / 'r.jsonl'}: File too large" in one_line(done.stderr)
        assert list(tmp_path.iterdir()) == []

    def test_reports_of_one_name_fail_before_measuring(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "run", unexpected)
        result = run(*TINY, "--json", tmp_path / "r", "--markdown", tmp_path / "r")
        assert result.exit_code == 2
        assert "error: expected a file of its own for each report, got" in one_line(result.output)

    def test_a_report_that_fails_after_measuring_costs_no_other(
        self, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The folder becomes a file meanwhile. The other reports are written, and the records are kept elsewhere."""

        def events(*arguments: object) -> Iterator[runner.Event]:
            (tmp_path / "folder").rmdir()
            (tmp_path / "folder").write_text("a file")
            yield from records

        monkeypatch.setattr(runner, "run", events)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        reports = ("--json", tmp_path / "folder" / "r.jsonl", "--markdown", tmp_path / "r.md")
        result = run(*TINY, *reports)
        assert result.exit_code == 2
        assert f"error: cannot write {tmp_path / 'folder' / 'r.jsonl'}: " in one_line(result.output)
        assert "rmsnorm" in (tmp_path / "r.md").read_text()
        (kept,) = tmp_path.glob("sparsekernels-records-*.jsonl")
        assert str(kept) in one_line(result.output)
        assert record.read(kept) == records

    def test_a_plot_that_fails_costs_no_other_report(
        self, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object) -> None:
            raise RuntimeError("no font")

        monkeypatch.setattr(runner, "run", lambda *arguments: iter(records))
        monkeypatch.setattr("sparsekernels.bench.plot.plot", fail)
        reports = ("--json", tmp_path / "r.jsonl", "--plot", tmp_path / "r.png", "--markdown", tmp_path / "r.md")
        result = run(*TINY, *reports)
        assert result.exit_code == 2
        assert f"cannot write {tmp_path / 'r.png'}: RuntimeError: no font" in one_line(result.output)
        assert record.read(tmp_path / "r.jsonl") == records
        assert "r.png" not in (tmp_path / "r.md").read_text()

    def test_the_main_benchmark_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "run", lambda *arguments: iter(()))
        monkeypatch.chdir(tmp_path)
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
        result = run("bench")
        assert "no plot: plots need matplotlib: pip install 'sparsekernels[bench]'" in one_line(result.output)
        assert "nothing was measured" in result.output
        assert "--plot" not in result.output

    @pytest.mark.parametrize(
        ("option", "values", "words"),
        [
            ("--batch", ("0", "-1", "nan", "1.5"), "Invalid value for '--batch'"),
            ("--threads", ("0", "-1", "inf"), "Invalid value for '--threads'"),
            ("--seconds", ("0", "-1", "nan", "inf"), "expected seconds above 0 and finite, got "),
            ("--sparsity", ("-1", "100", "nan", "inf"), "expected sparsity from 0 to below 100 percent, got "),
        ],
    )
    def test_numbers_that_cannot_be(
        self, monkeypatch: pytest.MonkeyPatch, option: str, values: tuple[str, ...], words: str
    ) -> None:
        monkeypatch.setattr(runner, "run", unexpected)
        for value in values:
            result = run("bench", "networks", option, value)
            assert result.exit_code == 2
            assert words in one_line(result.output)


class TestRecords:
    def test_a_file_that_is_not_of_records(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.jsonl").write_text(json.dumps({"suite": "rmsnorm"}))
        result = run("compare", file, tmp_path / "bad.jsonl")
        assert result.exit_code == 2
        assert "line 1: expected a record with case, variant" in one_line(result.output)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"p50_ms": float("nan")}, "expected numbers that are finite, got NaN"),
            ({"speedup": float("inf")}, "expected numbers that are finite, got Infinity"),
            ({"p20_ms": 0.0}, "expected times above 0 that ascend, got p20_ms 0.0"),
            ({"p20_ms": 2.0, "p50_ms": 1.0, "p80_ms": 3.0}, "expected times above 0 that ascend, got p20_ms 2.0"),
            ({"p50_ms": "1.5"}, "expected p50_ms to be a finite number or null, got '1.5'"),
            ({"p50_ms": True}, "expected p50_ms to be a finite number or null, got True"),
            ({"p20_ms": None}, "expected all of p20_ms, p50_ms, p80_ms or none, got p20_ms None"),
            ({"threads": "1"}, "expected threads to be a whole number, got '1'"),
            ({"case": 3}, "expected case to be text, got 3"),
            ({"machine": "mine"}, "expected machine to be an object, got 'mine'"),
            ({"versions": {"torch": 2}}, "expected versions to be an object of texts, got {'torch': 2}"),
            ({"interruptions": [1]}, "expected interruptions to be a finite number or null, got [1]"),
            ({"status": "fine"}, "expected status to be 'ok', 'wrong', 'error', 'unavailable', got 'fine'"),
        ],
    )
    def test_records_that_cannot_be_compared(
        self, file: Path, tmp_path: Path, changes: dict[str, object], words: str
    ) -> None:
        one = json.loads(file.read_text().splitlines()[0])
        (tmp_path / "bad.jsonl").write_text(json.dumps({**one, **changes}))
        for files in ((file, tmp_path / "bad.jsonl"), (tmp_path / "bad.jsonl", file)):
            result = run("compare", *files)
            assert result.exit_code == 2
            assert f"line 1: {words}" in one_line(result.output)
            assert "same" not in result.output

    def test_a_file_of_other_bytes(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe{}")
        result = run("compare", file, tmp_path / "bad.jsonl")
        assert result.exit_code == 2
        assert "bad.jsonl: expected text in UTF-8, got other bytes at 0" in one_line(result.output)
