"""The programs in the documentation run, and its tables are those of the records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekernels import _library

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "convert.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 7
    exec(compile("\n".join(blocks), "convert.md", "exec"), {})
    assert "layers are converted" in capsys.readouterr().out


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
def test_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "layers are converted" in shown
    assert "0 norms replaced" in shown


def test_tables_are_those_of_the_records() -> None:
    found = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))
OF_SEVERAL_COMMITS = {"cpu-xeon-amx-2-cores-networks.jsonl"}
"""As the page that shows them says."""


def test_there_are_records() -> None:
    assert {path.name for path in RECORDS} > OF_SEVERAL_COMMITS


@pytest.mark.parametrize(
    "path", [one for one in RECORDS if one.name not in OF_SEVERAL_COMMITS], ids=lambda one: one.stem
)
def test_records_are_of_one_commit_and_machine(path: Path) -> None:
    """That somebody can check out: rows that were taken again, one by one, would be chosen rows."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    commits = {record["commit"] for record in records}
    assert len(commits) == 1, commits
    assert len({json.dumps(record["machine"], sort_keys=True) for record in records}) == 1
    assert not any("dirty" in commit for commit in commits), commits
