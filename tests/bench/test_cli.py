# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command line, run as a user runs it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from sparsekernels.bench import record, rmsnorm, runner, suite
from sparsekernels.bench.cli import app
from sparsekernels.bench.record import Record

TINY = ("bench", "rmsnorm", "--quick", "--case", "8x64", "--dtype", "float32", "--threads", "1")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One real run of the smallest case, with every kind of report."""
    folder = tmp_path_factory.mktemp("bench") / "new"
    reports = ("--json", folder / "r.jsonl", "--markdown", folder / "docs" / "r.md", "--plot", folder / "r.png")
    return run(*TINY, *reports), folder


def unexpected(*arguments: object) -> Iterator[runner.Event]:
    raise AssertionError("nothing is to be measured")


def one_line(text: str) -> str:
    return " ".join(text.split())


class TestInfo:
    def test_info(self) -> None:
        result = run("info")
        assert result.exit_code == 0
        for text in ("processor", "memory", torch.__version__, "CPU kernels", "CUDA kernels", "rms_norm on cpu"):
            assert text in result.output

    def test_as_a_module(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "sparsekernels", "info"], capture_output=True, text=True, check=True
        )
        assert "CPU kernels" in done.stdout

    def test_help_names_the_commands(self) -> None:
        result = run("--help")
        assert result.exit_code == 0
        assert all(command in result.output for command in ("info", "bench", "compare"))

    def test_info_needs_no_other_library(self) -> None:
        code = "import sys; sys.modules.update(typer=None, rich=None); from sparsekernels._cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, "info"], capture_output=True, text=True, check=True)
        for text in ("processor", torch.__version__, "CPU kernels", "rms_norm on cpu"):
            assert text in done.stdout

    @pytest.mark.parametrize("library", ["typer", "rich"])
    def test_without_its_libraries_it_says_how_to_get_them(self, library: str) -> None:
        code = f"import sys; sys.modules[{library!r}] = None; from sparsekernels._cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"the command line needs {library}: pip install 'sparsekernels[bench]'" in done.stderr
        assert "Traceback" not in done.stderr


class TestBench:
    def test_table(self, measured: tuple[Result, Path]) -> None:
        result, _ = measured
        assert result.exit_code == 0, result.output
        for text in ("rmsnorm, forward (cpu, 1 thread)", "rmsnorm, forward+backward (cpu, 1 thread)", "rows/8x64"):
            assert text in result.output
        for title in ("copy", "torch", "layer_norm", "ours / copy", "ours / layer_norm", "speedup"):
            assert title in result.output

    def test_off_a_terminal_a_line_says_what_is_measured(self, measured: tuple[Result, Path]) -> None:
        result, _ = measured
        for line in ("rmsnorm 1/2: rows/8x64", "rmsnorm 2/2: rows/8x64"):
            assert line in result.stderr

    def test_files(self, measured: tuple[Result, Path]) -> None:
        result, folder = measured
        records = record.read(folder / "r.jsonl")
        assert {(one.case, one.dtype, one.threads, one.status) for one in records} == {
            ("rows/8x64", "float32", 1, "ok")
        }
        assert {one.pass_ for one in records} == {"forward", "forward+backward"}
        assert {one.variant for one in records} == {"ours", "torch", "layer_norm", "copy"}
        assert "![speedup by case](../r.png)" in (folder / "docs" / "r.md").read_text()
        assert (folder / "r.png").read_bytes().startswith(b"\x89PNG")
        for name in ("r.jsonl", "docs/r.md", "r.png"):
            assert str((folder / name).resolve()) in result.output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("bench", "norms"),
                "expected suite to be 'networks', 'layers', 'blocks', 'masked', 'rmsnorm', 'openelm', 'few-rows',"
                " 'decode' or a .toml file, got 'norms'",
            ),
            (
                ("bench", "rmsnorm", "--dtype", "int8"),
                "expected dtype to be 'float32', 'bfloat16', 'float16', 'float64', got 'int8'",
            ),
            (("bench", "rmsnorm", "--device", "tpu"), "expected device to be 'cpu', 'cuda', got 'tpu'"),
            (("bench", "rmsnorm", "--pass", "up"), "'all', 'step', got 'up'"),
            (("bench", "rmsnorm", "--threads", "0"), "Invalid value for '--threads'"),
            (("bench", "rmsnorm", "--batch", "many"), "Invalid value for '--batch'"),
            (
                ("bench", "rmsnorm", "--case", "nothing"),
                "no case of suite rmsnorm matches these options; on this device",
            ),
            ((*TINY, "--variant", "mine"), "no variant matches these options; it has ours, torch, layer_norm"),
            (("bench", "rmsnorm", "--plot", "picture.txt"), "webp, got 'picture.txt'"),
            (("bench", "--network", "vgg16-d", "--case", "*vgg*"), "expected either --network or --case, got both"),
            (("bench", "rmsnorm", "--color"), "No such option: --color"),
            (("compare", "nowhere.jsonl", "nowhere.jsonl"), "'nowhere.jsonl' does not exist"),
        ],
    )
    def test_bad_options(self, arguments: tuple[str, ...], message: str) -> None:
        result = CliRunner(env={"COLUMNS": "400"}).invoke(app, list(arguments))
        assert result.exit_code == 2
        assert message in one_line(result.output)
        assert "Traceback" not in result.output

    def test_a_wrong_variant_is_told_once(self) -> None:
        result = run(*TINY, "--variant", "mine")
        assert result.exit_code == 2
        assert one_line(result.output).count("no variant matches these options; it has ours, torch") == 1
        assert "no case has" not in result.output

    def test_the_list_has_the_selected_variants(self) -> None:
        result = run("bench", "rmsnorm", "--list", "--case", "8x64", "--variant", "o*", "--variant", "copy")
        assert result.exit_code == 0
        assert result.output.splitlines()[-1].strip() == "variants: ours, copy"
        result = run("bench", "rmsnorm", "--list", "--variant", "mine")
        assert result.exit_code == 2
        assert "error: no variant matches these options; there are ours, torch" in one_line(result.output)
        assert "rmsnorm:" not in result.output

    def test_the_list_has_variants_that_only_later_cases_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def variants(case: suite.Case, selection: suite.Selection) -> list[suite.Variant]:
            name = "late" if case.name == "rows/8x64" else "early"
            return [suite.Variant(name, lambda: suite.Prepared(lambda: None))]

        monkeypatch.setattr(suite, "load", lambda name: dataclasses.replace(rmsnorm.SUITE, variants=variants))
        assert "variants: late" in run("bench", "rmsnorm", "--list", "--variant", "late").output
        assert "variants: early" in run("bench", "rmsnorm", "--list").output

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_cuda_without_a_device(self) -> None:
        for device, arguments in (("cuda", ("rmsnorm",)), ("cuda", ("networks",)), ("cuda:1", ("rmsnorm", "--list"))):
            result = run("bench", "--device", device, *arguments)
            assert result.exit_code == 2
            words = f"error: expected device to be 'cpu', got '{device}': torch finds no CUDA device here"
            assert one_line(result.output).strip() == words

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_the_list_of_cuda_cases_needs_no_device(self) -> None:
        result = run("bench", "--device", "cuda", "rmsnorm", "few-rows", "--list", "--dtype", "bfloat16")
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert lines[0].startswith("rmsnorm: ")
        assert lines[1].startswith("  forward: large/262144x256, large/16384x4096, ")
        assert lines[2].startswith("  backward: backward/65536x1024, ")
        assert [line for line in lines if line.startswith("  forward: 1-row/8192x8192, 16-rows/8192x8192, ")]
        assert lines[-1] == "(variants are listed where there is a CUDA device; torch finds none here)"
        none = run("bench", "--device", "cuda", "rmsnorm", "--case", "nothing", "--list")
        assert none.exit_code == 2
        assert "no case of suite rmsnorm matches these options; on this device it has large/" in one_line(none.output)

    def test_a_gpu_with_a_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        result = run("bench", "--device", "cuda:1", "rmsnorm")
        assert result.exit_code == 2
        words = (
            "error: expected device to be 'cpu', 'cuda', got 'cuda:1': which GPU it is says the environment variable"
        )
        assert one_line(result.output).strip() == f"{words} CUDA_VISIBLE_DEVICES=1"

    def test_a_suite_of_another_device(self) -> None:
        path = str(Path(__file__).parents[2] / "benchmarks" / "peers" / "norms.toml")
        result = run("bench", path, "--list")
        assert result.exit_code == 2
        words = "matches these options; it has cases for --device cuda alone"
        assert one_line(result.output).strip().endswith(words)

    @pytest.mark.parametrize(
        ("error", "note"),
        [
            (KeyboardInterrupt(), "was interrupted"),
            (runner.RunnerError("suite 'rmsnorm' died"), "suite 'rmsnorm' died"),
        ],
        ids=["interrupted", "died"],
    )
    def test_what_was_measured_is_kept(
        self,
        measured: tuple[Result, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        note: str,
    ) -> None:
        records = record.read(measured[1] / "r.jsonl")[:2]

        def cut_short(name: str, selection: suite.Selection) -> Iterator[runner.Event]:
            yield from records
            raise error

        monkeypatch.setattr(runner, "run", cut_short)
        result = run(*TINY, "--json", tmp_path / "r.jsonl")
        assert result.exit_code == 1
        assert note in result.output
        assert record.read(tmp_path / "r.jsonl") == records


def steady(one: Record, times: float = 1.0) -> Record:
    """All of its samples the same, so many times its median: whatever else ran while it was measured."""
    assert one.p50_ms is not None
    same = times * one.p50_ms
    return dataclasses.replace(one, p20_ms=same, p50_ms=same, p80_ms=same)


class TestCompare:
    def test_with_itself(self, measured: tuple[Result, Path]) -> None:
        file = measured[1] / "r.jsonl"
        result = run("compare", file, file, "--strict")
        assert result.exit_code == 0
        assert f"{len(record.read(file))} same" in result.output

    def test_what_got_slower(self, measured: tuple[Result, Path], tmp_path: Path) -> None:
        records = record.read(measured[1] / "r.jsonl")
        file = tmp_path / "before.jsonl"
        record.write(file, [steady(records[0]), *records[1:]])
        record.write(tmp_path / "after.jsonl", [steady(records[0], times=10), *records[1:]])
        result = run("compare", file, tmp_path / "after.jsonl", "--changed")
        assert result.exit_code == 0
        assert "10.00" in result.output
        assert f"{len(records) - 1} same, 1 slower" in result.output
        assert result.output.count("rows/8x64") == 1
        assert run("compare", file, tmp_path / "after.jsonl", "--strict").exit_code == 1

    def test_runs_with_other_threads(self, measured: tuple[Result, Path], tmp_path: Path) -> None:
        file = measured[1] / "r.jsonl"
        record.write(tmp_path / "after.jsonl", [dataclasses.replace(one, threads=2) for one in record.read(file)])
        result = run("compare", file, tmp_path / "after.jsonl")
        assert result.exit_code == 0
        assert "the runs differ in threads: 1 before, 2 after" in result.output
        result = run("compare", file, tmp_path / "after.jsonl", "--strict")
        assert result.exit_code == 2
        assert "error: nothing was compared: no variant of a case is in both files" in one_line(result.output)

    def test_what_is_gone(self, measured: tuple[Result, Path], tmp_path: Path) -> None:
        file = measured[1] / "r.jsonl"
        record.write(tmp_path / "after.jsonl", record.read(file)[1:])
        assert run("compare", file, tmp_path / "after.jsonl").exit_code == 0
        assert run("compare", file, tmp_path / "after.jsonl", "--strict").exit_code == 1
        assert run("compare", tmp_path / "after.jsonl", file, "--strict").exit_code == 0

    def test_what_was_disturbed_is_marked(self, measured: tuple[Result, Path], tmp_path: Path) -> None:
        file = measured[1] / "r.jsonl"
        quiet = [dataclasses.replace(one, interruptions=0.0) for one in record.read(file)]
        record.write(tmp_path / "quiet.jsonl", quiet)
        record.write(tmp_path / "after.jsonl", [dataclasses.replace(one, interruptions=200.0) for one in quiet])
        output = one_line(run("compare", tmp_path / "quiet.jsonl", tmp_path / "after.jsonl").output)
        assert "same?" in output
        assert "after: disturbed; other programs preempted the process up to 200 times a second" in output
        assert "before: disturbed" not in output


def test_the_main_benchmark_measures_every_suite() -> None:
    """The run itself takes minutes; `make bench` is its test."""
    assert all(suite.load(name).cases(suite.Selection(quick=True)) for name in suite.SUITES)
