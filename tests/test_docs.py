"""The programs in the documentation run, and its tables are those of the records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import sparsekernels as sk
from sparsekernels import _library

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONVERTED = ("[1-9]" if _library.isa() == "avx512" else "") + r"\d* of \d+ layers are converted"
"""Other instruction sets may gain nothing from the small models of the documentation."""


NEEDS_KERNELS = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def blocks_of(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run(blocks: list[str], name: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    namespace = {} if namespace is None else namespace
    exec(compile("\n".join(blocks), name, "exec"), namespace)
    return namespace


@NEEDS_KERNELS
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(DOCS / "convert.md")
    assert len(blocks) == 7
    run(blocks, "convert.md")
    assert re.search(CONVERTED, capsys.readouterr().out)


@NEEDS_KERNELS
def test_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    (convert,) = blocks_of(ROOT / "README.md")
    left = run([convert], "README.md")
    assert re.search(CONVERTED, capsys.readouterr().out)
    assert left["scores"].shape == (64, 10)
    assert not any(isinstance(one, sk.nn.SparseConv2d | sk.nn.SparseLinear) for one in left["model"].modules())


def test_the_readme_installs_by_line_20() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("pip install .") for line in lines[:20])


def test_rms_norm_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    norm, norms = blocks_of(DOCS / "rms_norm.md")
    left = run([norm], "rms_norm.md")
    assert left["y"].shape == left["residual"].shape == (4, 512, 2048)
    left["model"] = nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 8))
    run([norms], "rms_norm.md", left)
    assert isinstance(left["model"][0], sk.nn.RMSNorm)
    assert "1 norms replaced" in capsys.readouterr().out


@NEEDS_KERNELS
def test_sparse_layers_in_use() -> None:
    blocks = blocks_of(DOCS / "sparse_layers.md")
    assert len(blocks) == 4
    left = run(blocks, "sparse_layers.md")
    assert left["y"].shape == (100, 1024)
    momentum = left["optimizer"].state[left["layer"].weight]["momentum_buffer"]
    assert not momentum[~left["layer"].mask].any()


def test_every_page_with_programs_is_run() -> None:
    run_here = {"README.md", "convert.md", "rms_norm.md", "sparse_layers.md"}
    with_blocks = {path.name for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md")) if blocks_of(path)}
    assert with_blocks - {"api.md"} == run_here


def test_tables_are_those_of_the_records() -> None:
    found = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))
OF_SEVERAL_COMMITS = {"cpu-xeon-amx-2-cores-networks.jsonl"}
"""As the page that shows them says."""


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
