# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py: what is run, what is not run again, and what is left when time is up."""

from __future__ import annotations

import dataclasses
import json
import tarfile
import time
from pathlib import Path
from types import ModuleType

import pytest
from gpu_cases import PYTHON, ROOT, step
from test_bench_reports import make_record

from sparsekernels.bench import record
from sparsekernels.bench.modules import import_file


class TestWork:
    def test_what_is_complete_is_not_run_again(self, gpu: ModuleType, tmp_path: Path) -> None:
        count = f"open({str(tmp_path / 'count')!r}, 'a').write"
        first = step(gpu, "first", f"{count}('1')")
        second = step(gpu, "second", f"{count}('2'); raise SystemExit(1)")
        part = gpu.Part("tests", 60, (first, second), ("tests",))
        assert gpu.work([part], tmp_path, 60) == 1
        assert gpu.work([part], tmp_path, 60) == 0
        assert (tmp_path / "count").read_text() == "12"
        gpu.work([part], tmp_path, 60, ["tests"])
        assert (tmp_path / "count").read_text() == "1212"
        state = gpu.State(tmp_path / "state.json")
        assert [state.word(part, one) for one in part.steps] == ["ok", "FAILED (1)"]
        assert state.word(part, gpu.Step("third", ())) == "not run"

    def test_other_sources_are_run_again(
        self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        part = gpu.Part("decode", 60, (step(gpu, "decode", "print('x')"),))
        gpu.work([part], tmp_path, 60)
        assert gpu.State(tmp_path / "state.json").is_complete(part, part.steps[0])
        monkeypatch.setattr(gpu, "digest", lambda names: "other")
        state = gpu.State(tmp_path / "state.json")
        assert not state.is_complete(part, part.steps[0])
        assert state.word(part, part.steps[0]) == "of other sources"

    def test_a_step_is_told_to_stop_and_writes_what_it_has(self, gpu: ModuleType, tmp_path: Path) -> None:
        file = str(tmp_path / "late")
        program = f"""
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open({file!r}, 'w').write('what it had')
"""
        part = gpu.Part("decode", 60, (step(gpu, "decode", program), step(gpu, "more", "pass")))
        begin = time.monotonic()
        gpu.work([part], tmp_path, gpu.PATIENCE + 2)
        assert time.monotonic() - begin < 20
        assert Path(file).read_text() == "what it had"
        entry = json.loads((tmp_path / "state.json").read_text())["decode/decode"]
        assert entry["cut"]
        state = gpu.State(tmp_path / "state.json")
        assert state.word(part, part.steps[0]) == "cut short"
        assert not state.is_complete(part, part.steps[0])

    def test_what_takes_all_of_its_time_is_not_begun_again(self, gpu: ModuleType, tmp_path: Path) -> None:
        """It would keep the others from their turn."""
        slow = step(gpu, "slow", "import time; time.sleep(60)")
        part = gpu.Part("decode", 12, (slow, step(gpu, "next", "pass")))
        gpu.work([part], tmp_path, 60)
        state = gpu.State(tmp_path / "state.json")
        assert state.word(part, slow) == "cut short at its limit"
        assert state.is_complete(part, slow)
        begin = time.monotonic()
        gpu.work([part], tmp_path, 60)
        assert time.monotonic() - begin < 5
        assert [gpu.State(tmp_path / "state.json").word(part, one) for one in part.steps][1] == "ok"

    def test_nothing_is_begun_without_time(
        self, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        part = gpu.Part("decode", 60, (step(gpu, "decode", "raise SystemExit(3)"),))
        assert gpu.work([part], tmp_path, gpu.PATIENCE) == 0
        assert "== decode, decode: no time left" in capsys.readouterr().out
        assert not (tmp_path / "state.json").exists()

    def test_a_build_that_fails_ends_it(
        self, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Unless the kernels are to be left out anyway."""
        build = gpu.Part("build", 60, (step(gpu, "kernels", "raise SystemExit(1)"),), makes="*sparsekernels_cuda*")
        after = gpu.Part("decode", 60, (step(gpu, "decode", "pass"),))
        assert gpu.work([build, after], tmp_path, 60) == 1
        assert "decode/decode" not in json.loads((tmp_path / "state.json").read_text())
        assert "== to go on without the CUDA kernels: --triton-only" in capsys.readouterr().out
        assert gpu.work([build, after], tmp_path, 60) == 1  # and so again: it is not complete
        assert "decode/decode" not in json.loads((tmp_path / "state.json").read_text())
        assert gpu.work([dataclasses.replace(build, makes="", kernels=gpu.TRITON_ONLY), after], tmp_path, 60) == 1
        assert "decode/decode" in json.loads((tmp_path / "state.json").read_text())

    def test_a_build_is_made_again_where_it_is_gone(
        self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gpu, "ROOT", tmp_path)
        build = gpu.Part("build", 60, (), makes=gpu.CUDA_LIBRARY)
        assert not gpu._is_gone(gpu.Part("build", 60, ()))
        assert gpu._is_gone(build)
        (tmp_path / "sparsekernels" / "lib").mkdir(parents=True)
        (tmp_path / "sparsekernels" / "lib" / "no_cuda.txt").touch()
        assert gpu._is_gone(build)
        (tmp_path / "sparsekernels" / "lib" / "libsparsekernels_cuda.so").touch()
        assert not gpu._is_gone(build)

    def test_the_environment_of_a_step(self, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SPARSEKERNELS_COMMIT", raising=False)
        program = "import os; print(os.environ['SPARSEKERNELS_COMMIT'], os.environ['OWN'])"
        one = dataclasses.replace(step(gpu, "a", program), environment={"OWN": "x"})
        code, cut, output = gpu.run(one, 30, tmp_path / "log.txt")
        assert (code, cut) == (0, False)
        assert output.split() == ["sources-CMakeLists.txt+cmake+csrc+setup.py+sparsekernels", "x"]
        assert (tmp_path / "log.txt").read_text().startswith(f"== a: {PYTHON} -c ")


class TestDigest:
    def test_what_it_is_of(self, tmp_path: Path) -> None:
        digest = import_file(ROOT / "benchmarks" / "gpu.py").digest.__wrapped__
        (tmp_path / "package").mkdir()
        source, other = tmp_path / "package" / "a.py", tmp_path / "package" / "a.so"
        source.write_text("1")
        other.write_text("1")
        before = digest(("package",), tmp_path)
        other.write_text("2")
        assert digest(("package",), tmp_path) == before
        hidden = tmp_path / "package" / ".envs" / "b.py"  # environments of peers are made below what is measured
        hidden.parent.mkdir()
        hidden.write_text("1")
        assert digest(("package",), tmp_path) == before
        source.write_text("2")
        assert digest(("package",), tmp_path) != before


class TestSaid:
    def test_of_tests(self, gpu: ModuleType) -> None:
        output = "....F\n\nFAILED tests/a.py::test_b[cuda] - AssertionError\n== 1 failed, 4 passed in 0.12s ==\n"
        part = gpu.Part("tests", 1, ())
        assert gpu.last_lines(part, output) == output.splitlines()[2:]
        assert gpu.outcome(part, 5) == "no tests"
        assert gpu.outcome(gpu.Part("blocks", 1, ()), 5) == "FAILED (5)"

    def test_of_benchmarks(self, gpu: ModuleType) -> None:
        wrong = "linear/a bfloat16 forward, block:32x32-90: wrong, the largest error is 1"
        assert gpu.last_lines(gpu.Part("blocks", 1, ()), f"a table\n{wrong}\nblocks: Medians") == [wrong]
        missing = "norm/1x4096 bfloat16 forward, liger: unavailable, its environment cannot be made: no network"
        refused = "tune_triton.py: error: expected a GPU to measure on"
        assert gpu.last_lines(gpu.Part("normpeers", 1, ()), f"{missing}\nx\n{refused}\n") == [missing, refused]

    def records(self, folder: Path) -> None:
        own = {"suite": "layers", "device": "cuda", "dtype": "bfloat16", "case": "gpu/linear"}
        found = [make_record("dense", **own)]
        for mode, speedup in (("", 2.0), ("/graph", 3.0)):
            for percent in (80, 90):
                sparse = {"sparsity": percent / 100, "speedup": speedup, "details": {"reachable_fraction": 0.5}}
                found.append(make_record(f"block:32x32-{percent}{mode}", **own, **sparse))
        record.write(folder / "gpu-h200-layers.jsonl", found)

    def test_a_short_table(self, gpu: ModuleType, tmp_path: Path) -> None:
        assert gpu.short_table(tmp_path, "layers") == ["layers: no records"]
        self.records(tmp_path)
        head, line = gpu.short_table(tmp_path, "layers")
        assert head == "layers: over dense in a CUDA graph, and eager after the slash"
        assert line == (
            "gpu/linear forward bfloat16 block 32x32  80%: 3.00x (50%) / 2.00x (50%)  90%: 3.00x (50%) / 2.00x (50%)"
        )

    def test_a_report_of_all(self, gpu: ModuleType, tmp_path: Path) -> None:
        self.records(tmp_path)
        part = gpu.Part("tests", 60, (step(gpu, "matrix", "print('== 3 passed in 1s ==')"),), ("tests",))
        gpu.work([part], tmp_path, 60)
        text = gpu.report(tmp_path)
        assert "| tests/matrix | 0 | ok; 3 passed in 1s |" in text
        assert "## layers, forward (cuda)" in text
        assert "## Few rows on a GPU" in text
        assert "| 1 row, fine-grained | H200 | not yet measured; target 1.3x |" in text

    def test_a_report_of_both_parts_of_a_suite(self, gpu: ModuleType, tmp_path: Path) -> None:
        for part, case in (("decode", "1-row/8192x8192"), ("rows", "64-rows/4096x4096")):
            own = {"suite": "few-rows", "device": "cuda", "dtype": "bfloat16", "case": case}
            record.write(tmp_path / f"gpu-h200-{part}.jsonl", [make_record("dense", **own)])
        text = gpu.report(tmp_path)
        assert "1-row/8192x8192" in text
        assert "64-rows/4096x4096" in text
        assert gpu.short_table(tmp_path, "rows") == ["rows: over dense in a CUDA graph, and eager after the slash"]

    def test_an_archive_to_carry_away(self, gpu: ModuleType, tmp_path: Path) -> None:
        folder = tmp_path / "gpu-report"
        folder.mkdir()
        (folder / "state.json").write_text("{}")
        with tarfile.open(gpu.archive(folder)) as file:
            assert file.getnames() == ["gpu-report", "gpu-report/state.json"]
