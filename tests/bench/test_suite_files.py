# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Suites outside the package, run by their path: the file, the module, and what the process that measures ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsekernels.bench import rmsnorm, runner, suite, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Prepared, Selection, Unavailable, Variant, Verdict
from sparsekernels.timing import CpuClock, Effort
from sparsekernels.usage import Interruptions

MODULE = """
import dataclasses
import helper
from pathlib import Path
from sparsekernels.bench import rmsnorm
from sparsekernels.bench.suite import Prepared, Variant
from sparsekernels.bench.worker import LOG
from sparsekernels.timing import Effort

def variants(case, selection):
    LOG.info("%s begins", case)
    def close():
        with open(helper.LOG, "a") as file:
            file.write(case.name + " closed\\n")
    return [Variant("ours", lambda: Prepared(helper.call), close=close)]

SUITE = dataclasses.replace(rmsnorm.SUITE, variants=variants, full=Effort(0, 1e-4, 3, 3), threads=1)
"""

FILE = """
suite = "mine"
module = "{module}.py"
device = ["cpu"]
dtype = ["float32"]
[[cases]]
group = "a"
name = ["x", "y"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A suite of two cases; a helper module lies beside it."""
    module = f"suite_{tmp_path.name}"  # a name that no other test has imported
    helper = f"helper_{module}"
    (tmp_path / f"{helper}.py").write_text(
        f"import time\nLOG = {str(tmp_path / 'log')!r}\ndef call():\n    time.sleep(1e-3)\n", encoding="utf-8"
    )
    (tmp_path / f"{module}.py").write_text(MODULE.replace("import helper", f"import {helper} as helper"))
    path = tmp_path / "mine.toml"
    path.write_text(FILE.format(module=module), encoding="utf-8")
    return path


class TestLoading:
    def test_a_suite_by_its_path(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(file.parent)
        one = suite.load("mine.toml")
        assert (one.name, one.file, one.address) == ("mine", file, str(file))
        assert [(case.suite, case.name, case.parameters) for case in one.cases(Selection())] == [
            ("mine", "a/x", {}),
            ("mine", "a/y", {}),
        ]
        assert rmsnorm.SUITE.address == "rmsnorm"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("suite = [", "mine.toml: "),
            ('module = "m.py"', "mine.toml: expected suite to be a string, got None"),
            ('suite = "s"\nmodule = 3', "mine.toml: expected module to be a string, got 3"),
            ('suite = "s"\nmodule = "nowhere.py"', "expected a Python file at .*nowhere.py, got none"),
            ('suite = "s"\nmodule = "json.py"', "expected a module of a name of its own, got .*json.py"),
            ('suite = "s"\nmodule = "no_suite_in_it.py"', "expected no_suite_in_it.py to define a SUITE, got None"),
            ('suite = "layers"\nmodule = "m.py"', "mine.toml: expected suite to be none of .*, got 'layers'"),
            ('suite = "s"\nmodule = "fails.py"', "mine.toml: fails.py raised ZeroDivisionError: division by zero"),
            ('suite = "s"\nmodule = "no_python.py"', "mine.toml: no_python.py raised SyntaxError: "),
        ],
    )
    def test_bad_files(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "json.py").write_text("")
        (tmp_path / "fails.py").write_text("1 / 0")
        (tmp_path / "no_python.py").write_text("def")
        (tmp_path / "no_suite_in_it.py").write_text("")
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            suite.load(str(tmp_path / "mine.toml"))

    def test_a_file_that_is_not_of_text(self, tmp_path: Path) -> None:
        (tmp_path / "mine.toml").write_bytes(b'suite = "\xff"')
        with pytest.raises(ValueError, match=r"mine.toml: 'utf-8' codec can't decode"):
            suite.load(str(tmp_path / "mine.toml"))

    def test_bad_tables_are_told_with_the_path_of_their_file(self, file: Path) -> None:
        file.write_text(file.read_text() + "batch = -1")
        with pytest.raises(ValueError, match=r"/mine.toml, table 1: expected batch to be a positive integer, got -1"):
            suite.load(str(file)).cases(Selection())

    def test_no_file(self) -> None:
        with pytest.raises(ValueError, match=r"nowhere.toml: .*No such file"):
            suite.load("nowhere.toml")

    def test_what_its_module_imports_may_be_missing(self, tmp_path: Path) -> None:
        (tmp_path / "needs_what_is_not.py").write_text("import no_such_engine")
        (tmp_path / "mine.toml").write_text('suite = "s"\nmodule = "needs_what_is_not.py"')
        with pytest.raises(Unavailable, match="No module named 'no_such_engine'"):
            suite.load(str(tmp_path / "mine.toml"))


class TestSelection:
    def test_variants_by_glob_pattern(self) -> None:
        selection = Selection(variants=("dense*",))
        assert selection.takes_variant("dense-bf16:random-90")
        assert not selection.takes_variant("converted:random-90")

    def test_seconds(self) -> None:
        effort = rmsnorm.SUITE.effort(Selection(quick=True, seconds=2.5))
        assert effort == Effort(**{**vars(rmsnorm.SUITE.quick), "seconds": 2.5})
        assert rmsnorm.SUITE.effort(Selection()) == rmsnorm.SUITE.full
        for bad in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="expected seconds above 0 and finite, got"):
                Selection(seconds=bad)

    def test_a_case_for_each_pattern(self) -> None:
        case = Case("s", "a/x", "forward", "float32", "cpu", 4, False, {"masks": ["clustered"], "sparsities": [50, 75]})
        assert [one.pattern for one in case.patterns(Selection())] == ["clustered-50", "clustered-75"]
        (one,) = case.patterns(Selection(masks=("random",), sparsities=(90.0, 90.0)))
        assert str(one) == "a/x float32 forward random-90"
        assert (one.parameters["mask"], one.parameters["sparsity"]) == ("random", 90.0)


class TestClosing:
    CASE = Case("rmsnorm", "a/x", "forward", "float32", "cpu", 4, True)

    def measure(self, variants: list[Variant], interruptions: Interruptions | None = None) -> list[Record]:
        effort = Effort(seconds=0, sample=1e-5, least=3, most=3)
        session = worker.Session(CpuClock(), effort, lambda event: None, interruptions or Interruptions())
        return list(worker.measure(rmsnorm.SUITE, self.CASE, variants, session))

    def test_every_variant_is_closed_whatever_became_of_it(self) -> None:
        closed: list[str] = []

        def missing() -> Prepared:
            raise Unavailable("not here")

        made = {
            "ok": lambda: Prepared(lambda: None),
            "wrong": lambda: Prepared(lambda: None, check=lambda: Verdict(1.0, False)),
            "missing": missing,
        }
        variants = [Variant(name, make, close=lambda name=name: closed.append(name)) for name, make in made.items()]
        assert [one.status for one in self.measure(variants)] == ["ok", "wrong", "unavailable"]
        assert closed == ["ok", "wrong", "missing"]

    def test_variants_are_closed_when_the_run_is_cut_short(self) -> None:
        closed: list[str] = []

        def interrupted() -> Prepared:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.measure([Variant("ours", interrupted, close=lambda: closed.append("ours"))])
        assert closed == ["ours"]

    def test_interruptions_elsewhere_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Interruptions, "_now", staticmethod(lambda: 0))
        found, counts = Interruptions(), iter([5, 1005])
        prepared = Prepared(lambda: None, interruptions=lambda: next(counts))
        (record,) = self.measure([Variant("ours", lambda: prepared)], found)
        assert found._count == 1000
        assert record.interruptions == float(f"{found.per_second:.5g}") > 0


class TestRunning:
    def test_the_runner_runs_it(self, file: Path) -> None:
        events = list(runner.run(str(file), Selection()))
        records = [event for event in events if isinstance(event, Record)]
        assert [(one.suite, one.case, one.status, one.threads) for one in records] == [
            ("mine", "a/x", "ok", 1),
            ("mine", "a/y", "ok", 1),
        ]
        said = [event.text for event in events if isinstance(event, runner.Said)]
        assert said == ["a/x float32 forward begins", "a/y float32 forward begins"]
        assert (file.parent / "log").read_text() == "a/x closed\na/y closed\n"

    def test_leaving_closes_the_variants(self, file: Path) -> None:
        (helper,) = file.parent.glob("helper_*.py")
        lines = ("    worker.LOG.info('called')", "    time.sleep(60)")
        helper.write_text("\n".join(("from sparsekernels.bench import worker", helper.read_text().rstrip(), *lines)))
        events: Any = runner.run(str(file), Selection())
        assert runner.Said("called") in events
        events.close()
        assert (file.parent / "log").read_text() == "a/x closed\n"

    def test_two_files_of_one_name(self, file: Path) -> None:
        from sparsekernels.bench.cli import app

        other = file.with_name("other.toml")
        other.write_text(file.read_text())
        result = CliRunner().invoke(app, ["bench", str(file), str(other), "--list"])
        assert result.exit_code == 2
        expected = f"error: expected suites of different names, got two of the name 'mine': {file} and {other}"
        assert expected in " ".join(result.output.split())

    def test_with_others_in_one_command(self, file: Path) -> None:
        from sparsekernels.bench.cli import app

        line = ["bench", str(file), "rmsnorm", "--case", "a/x", "--case", "8x64", "--dtype", "float32", "--quick"]
        result = CliRunner().invoke(app, [*line, "--variant", "ours", "--seconds", "0.001"])
        assert result.exit_code == 0, result.output
        assert "a/x float32 forward begins" in result.stderr
        assert "mine, forward (cpu, 1 thread)" in " ".join(result.output.split())
        assert "rmsnorm, forward+backward (cpu, " in " ".join(result.output.split())
