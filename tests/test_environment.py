# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is warned of when the package is imported: variables that nothing reads, and kernels that were not built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekernels._environment import PREFIX, VARIABLES

ROOT = Path(__file__).parent.parent
RENAMED = f"{PREFIX}CPU_PROGRAMS"


def importing(folder: Path, package: Path, given: dict[str, str]) -> tuple[str, str]:
    """What a program that imports the package in `package` prints as errors, and its line that does."""
    program = folder / "program.py"
    program.write_text("import warnings\nimport sparsekernels\n", encoding="utf-8")
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment = {**others, "PYTHONPATH": str(package), "PYTHONWARNINGS": "default", **given}
    ran = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=True)
    return ran.stderr, f"{program}:2: UserWarning: sparsekernels: "


@pytest.mark.parametrize(
    ("given", "is_warned"),
    [
        ({RENAMED: "0"}, True),
        ({RENAMED: "0", "SPARSEKERNELS_QUIET": "1"}, False),
        ({"SPARSEKERNELS_CPU_JIT": "64", "OTHER": "1"}, False),
    ],
    ids=["unknown", "quiet", "known"],
)
def test_unknown_variables_are_warned_of(tmp_path: Path, given: dict[str, str], is_warned: bool) -> None:
    told, line = importing(tmp_path, ROOT, given)
    assert ("without effect" in told) == is_warned
    expected = f"{line}expected environment variables among {', '.join(VARIABLES)}, got {RENAMED}, without effect"
    assert told.count(expected) == is_warned


@pytest.mark.parametrize("given", [{}, {"SPARSEKERNELS_QUIET": "1"}], ids=["loud", "quiet"])
def test_missing_kernels_are_warned_of(tmp_path: Path, given: dict[str, str]) -> None:
    shutil.copytree(
        ROOT / "sparsekernels", tmp_path / "sparsekernels", ignore=shutil.ignore_patterns("lib", "__pycache__")
    )
    told, line = importing(tmp_path, tmp_path, given)
    assert told.count("were not built") == (not given)
    assert told.count(f"{line}the CPU kernels were not built: nothing was compiled here.") == (not given)
