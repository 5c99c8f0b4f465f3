# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py: which parts there are, with which kernels, and what they need."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from gpu_cases import PYTHON, ROOT, offered, selection_of, step

from sparsekernels.bench import suite
from sparsekernels.bench.modules import import_file


class TestParts:
    def test_the_most_telling_first(self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu.shutil, "which", lambda _: "/usr/bin/compute-sanitizer")
        parts = gpu.parts(PYTHON, tmp_path, "NVIDIA H200")
        expected = [
            "build",
            "tests",
            "rmsnorm",
            "blocks",
            "decode",
            "rows",
            "masked",
            "layers",
            "networks",
            "openelm",
            "normpeers",
            "gradpeers",
            "blockpeers",
            "memory",
            "tune",
        ]
        assert [part.name for part in parts] == expected
        assert {one.suite for one in gpu.BENCHMARKS.values()} >= set(suite.SUITES) - {"decode"}  # it is of CPUs
        for part in parts:
            assert part.seconds < 540
            assert all(one.command[0] in (PYTHON, "/usr/bin/compute-sanitizer") for one in part.steps)
        monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
        assert "memory" not in [part.name for part in gpu.parts(PYTHON, tmp_path, "NVIDIA H200")]

    def test_every_test_is_in_one_step(self, gpu: ModuleType, tmp_path: Path) -> None:
        (tests,) = (part for part in gpu.parts(PYTHON, tmp_path, "H200") if part.name == "tests")
        *named, others = tests.steps
        paths = [one.command[-1] for one in named]
        assert all((ROOT / path).exists() for path in paths)
        assert [word.removeprefix("--ignore=") for word in others.command if word.startswith("--ignore=")] == paths
        assert all("cuda" in one.command for one in tests.steps)

    @pytest.mark.parametrize(
        ("device", "name"),
        [("NVIDIA H200", "gpu-h200-blocks"), ("NVIDIA A100-SXM4-80GB", "gpu-a100-sxm4-80gb-blocks")],
    )
    def test_names_of_files(self, gpu: ModuleType, device: str, name: str) -> None:
        assert gpu.name_of(device, "blocks") == name

    def test_the_options_are_those_of_the_benchmark(self, gpu: ModuleType, tmp_path: Path) -> None:
        """Each of them measures something."""
        for name, one in gpu.BENCHMARKS.items():
            path = str(ROOT / one.suite) if one.suite.endswith(".toml") else one.suite
            assert suite.load(path).cases(selection_of(one.options)), name
            for engine in one.engines:
                selection = selection_of((*one.brief, "--quick"))
                case, *_ = suite.load(path).cases(selection)
                assert engine in {variant.name.partition("/")[0].partition(":")[0] for variant in offered(path, case)}

    def test_what_is_tuned_is_measured(self, gpu: ModuleType) -> None:
        for name, options in gpu.TUNED.items():
            cases = suite.load(name).cases(selection_of(options))
            assert cases, name
            if name == "few-rows":  # by the Triton kernel, whatever a call would choose
                assert options[-2:] == ("--variant", "sparse-triton")
                assert all("triton" in case.parameters["routes"] for case in cases if case.dtype == "bfloat16")
                assert {case.batch for case in cases} == {1, 2, 4, 8, 16, 64, 128}

    def test_every_case_of_few_rows_is_in_one_part(self, gpu: ModuleType) -> None:
        few_rows = suite.load("few-rows")
        found = [few_rows.cases(selection_of(gpu.BENCHMARKS[name].options)) for name in ("decode", "rows")]
        every = few_rows.cases(suite.Selection(device="cuda"))
        assert sorted(map(str, [*found[0], *found[1]])) == sorted(map(str, every))

    def test_peers_without_a_network_are_given_up_soon(self, gpu: ModuleType, tmp_path: Path) -> None:
        parts = {part.name: part for part in gpu.parts(PYTHON, tmp_path, "H200")}
        steps = parts["normpeers"].steps
        assert [one.name for one in steps] == ["install liger", "install quack", "install flashinfer", "normpeers"]
        for one in (*steps, *parts["blockpeers"].steps, *parts["gradpeers"].steps):
            assert one.environment == {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "15", "PIP_NO_INPUT": "1"}
        assert parts["normpeers"].also == ("benchmarks/peers",)

    def test_the_names_of_files_are_those_that_the_tables_read(self, gpu: ModuleType, tmp_path: Path) -> None:
        tables = import_file(ROOT / "benchmarks" / "gpu_tables.py")
        for kernels, label in ((gpu.ALL, "H200"), (gpu.TRITON_ONLY, "H200, Triton alone"), (gpu.AS_BUILT, "H200")):
            folder = tmp_path / f"of{kernels}"
            folder.mkdir()
            for part in gpu.parts(PYTHON, folder, "NVIDIA H200", kernels):
                for one in part.steps:
                    if "--json" in one.command:
                        Path(one.command[one.command.index("--json") + 1]).touch()
            assert len(list(folder.iterdir())) == len(gpu.BENCHMARKS)
            assert [tables.label_of(name) for name in tables.gpus(folder)] == [label]

    def test_what_takes_no_gpu(
        self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        folder = ["--folder", str(tmp_path / "new")]
        assert gpu.main([*folder, "--list"]) == 0
        listed = capsys.readouterr().out.splitlines()
        assert listed[0].startswith("build       420 s  ")
        assert [line.split()[0] for line in listed[:-1]][-1] == "tune"
        with pytest.raises(SystemExit, match="2"):
            gpu.main([*folder, "--part", "nonsense"])
        assert "expected part to be build, tests, rmsnorm, " in capsys.readouterr().err
        assert gpu.main([*folder, "--report"]) == 1
        assert capsys.readouterr() == ("", f"gpu: expected a folder that a run has left, got {tmp_path / 'new'}\n")
        with pytest.raises(SystemExit, match="a Python whose torch sees a GPU, got .*: its torch finds no CUDA device"):
            gpu.main(folder)
        assert not (tmp_path / "new").exists()

    def test_the_help_says_how_long_and_what_it_needs(
        self, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="0"):
            gpu.main(["--help"])
        lines = capsys.readouterr().out.splitlines()
        own = [part for part in gpu.parts(PYTHON, tmp_path, "H200") if not part.asked_for]
        assert lines[-1] == f"at most {gpu.minutes(own)} minutes in all, beside tune"
        assert "  tests       530 s  pytest, hypothesis, numpy, typer, rich" in lines
        assert "  blocks      420 s  typer, rich" in lines

    def test_a_python_without_torch(self, gpu: ModuleType, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\nexec {PYTHON} -S -c 'import torch'\n")
        python.chmod(0o755)
        with pytest.raises(SystemExit) as error:
            gpu.device_of(str(python))
        assert str(error.value).splitlines() == [
            f"gpu: expected a Python whose torch sees a GPU, got {python}: ModuleNotFoundError: No module named 'torch'"
        ]

    def test_a_torch_for_other_gpus(self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "torch.py").write_text("class version:\n    hip = '7.0'\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(SystemExit, match="got .*: its torch is for ROCm, where all runs on the reference"):
            gpu.device_of(PYTHON)

    def test_the_time_and_the_parts_are_those_of_the_documentation(
        self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
        own = [part for part in gpu.parts(PYTHON, tmp_path, "H200") if not part.asked_for]
        page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
        assert f"at most {gpu.minutes(own)} minutes in all" in page
        table = page[page.index("### `make gpu`") : page.index("Each part takes less than nine minutes")]
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        names = {name for row in rows for name in row.split("`")[1::2]}
        assert names == {part.name for part in own} | {"tune"}


class TestKernels:
    """Which are built and run."""

    def test_what_is_found(self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "ROOT", tmp_path)
        library = tmp_path / "sparsekernels" / "lib"
        library.mkdir(parents=True)
        monkeypatch.setattr(gpu, "nvcc", lambda: None)
        assert gpu.kernels_here(False) == gpu.TRITON_ONLY
        (library / "libsparsekernels_cuda.so").touch()
        assert gpu.kernels_here(False) == gpu.AS_BUILT
        assert gpu.kernels_here(True) == gpu.TRITON_ONLY
        monkeypatch.setattr(gpu, "nvcc", lambda: "/usr/bin/nvcc")
        assert gpu.kernels_here(False) == gpu.ALL

    def test_nvcc(self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        for name in ("CUDACXX", "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "bin").mkdir()
        compiler = tmp_path / "bin" / "nvcc"
        compiler.write_text("#!/bin/sh\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        assert gpu.nvcc() == str(compiler)
        environment = gpu.build(PYTHON, gpu.ALL).steps[0].environment
        assert environment["CMAKE_ARGS"].endswith(f" -DCMAKE_CUDA_COMPILER={compiler}")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert "CMAKE_CUDA_COMPILER" not in gpu.build(PYTHON, gpu.ALL).steps[0].environment["CMAKE_ARGS"]

    def test_of_a_build(self, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CMAKE_ARGS", "-DMINE=1")
        monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
        built = gpu.build(PYTHON, gpu.ALL)
        assert built.steps[0].environment == {
            "SPARSEKERNELS_REQUIRE_KERNELS": "1",
            "CMAKE_ARGS": "-DSPARSEKERNELS_CUDA=on -DSPARSEKERNELS_CUDA_ARCHITECTURES=native -DMINE=1",
        }
        assert built.makes
        without = gpu.build(PYTHON, gpu.TRITON_ONLY)
        assert without.steps[0].environment == {
            "SPARSEKERNELS_REQUIRE_KERNELS": "0",
            "CMAKE_ARGS": "-DSPARSEKERNELS_CUDA=off -DMINE=1",
        }
        assert not without.makes
        assert [one.name for one in gpu.build(PYTHON, gpu.AS_BUILT).steps] == ["info"]

    def test_setup_takes_what_a_build_is_told(self, gpu: ModuleType) -> None:
        """What it does without a compiler is in tests/packaging; that it is told so is here."""
        text = (ROOT / "setup.py").read_text(encoding="utf-8")
        for word in ("-DSPARSEKERNELS_CUDA=off", "-DSPARSEKERNELS_CUDA=on", "SPARSEKERNELS_REQUIRE_KERNELS"):
            assert word in text

    def test_what_ran_with_other_kernels_is_run_again(self, gpu: ModuleType, tmp_path: Path) -> None:
        part = gpu.Part("decode", 60, (step(gpu, "decode", "print('x')"),), kernels=gpu.TRITON_ONLY)
        gpu.work([part], tmp_path, 60)
        state = gpu.State(tmp_path / "state.json")
        assert state.is_complete(part, part.steps[0])
        assert not state.is_complete(dataclasses.replace(part, kernels=gpu.ALL), part.steps[0])

    def test_the_report_says_which_packages_cannot_be_had(self, gpu: ModuleType, tmp_path: Path) -> None:
        note = "norm/1x4096 bfloat16 forward, liger: unavailable, its environment cannot be made: no network"
        part = gpu.Part("normpeers", 60, (step(gpu, "install liger", f"print({note!r})"),))
        assert gpu.work([part], tmp_path, 60) == 0
        assert f"| normpeers/install liger | 0 | ok; {note} |" in gpu.report(tmp_path)

    def test_the_report_says_it(self, gpu: ModuleType, tmp_path: Path) -> None:
        about = {"gpu": "NVIDIA H200", "kernels": gpu.TRITON_ONLY, "missing": {"tests": ["hypothesis"]}}
        (tmp_path / gpu.ABOUT).write_text(json.dumps(about))
        lines = gpu.report(tmp_path).splitlines()
        assert lines[2] == "NVIDIA H200"
        assert lines[3].startswith("**Triton only**: the CUDA kernels ")
        assert lines[4] == "Left out: tests; it needs hypothesis: pip install hypothesis."


class TestMissing:
    def test_by_part(self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = gpu.parts(PYTHON, tmp_path, "H200")
        monkeypatch.setattr(gpu, "_has", lambda _, module: module not in ("hypothesis", "rich"))
        found = gpu.missing_of(PYTHON, parts)
        assert found["tests"] == ["hypothesis", "rich"]
        assert found["blocks"] == ["rich"]
        assert "build" not in found
        monkeypatch.setattr(gpu, "_has", lambda _, module: module != "setuptools")
        assert gpu.missing_of(PYTHON, parts) == {"build": ["setuptools"]}
        assert gpu.missing_of(PYTHON, [gpu.build(PYTHON, gpu.AS_BUILT)]) == {}

    def test_it_is_left_out_and_said(self, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        part = gpu.Part("tests", 60, (step(gpu, "matrix", "raise SystemExit(3)"),))
        after = gpu.Part("decode", 60, (step(gpu, "decode", "pass"),))
        assert gpu.work([part, after], tmp_path, 60, (), {"tests": ["pytest", "hypothesis"]}) == 1
        assert (
            "== tests: left out, it needs pytest, hypothesis: pip install pytest hypothesis" in capsys.readouterr().out
        )
        assert list(json.loads((tmp_path / "state.json").read_text())) == ["decode/decode"]

    def test_every_part_says_what_it_needs(self, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever else than torch, triton and this package the programs of a part import is asked for."""
        package = ROOT / "sparsekernels" / "bench"
        imported = set()
        for file in package.glob("*.py"):  # external/ is for peers, whose parts ask for numpy as well
            imported |= set(re.findall(r"^(?:import|from) (\w+)", file.read_text(), re.M))
        own = {"torch", "sparsekernels", "protocol"}
        assert imported - own - sys.stdlib_module_names == {"typer", "rich"}
        assert all({"typer", "rich"} <= set(gpu.NEEDS[part]) for part in gpu.BENCHMARKS)
        assert set(gpu.NEEDS) == {*gpu.BENCHMARKS, "build", "tests", "memory", "tune"}
