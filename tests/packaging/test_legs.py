# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What tests/legs.sh says of its legs, and its exit status: legs that all were skipped are no success."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LEGS = Path(__file__).parents[1] / "legs.sh"
UNABLE = {"CLANG": "no-such-compiler", "PYTHON310": "no-such-python"}

pytestmark = pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="a script of bash")


def run(tmp_path: Path, *legs: str, python: str) -> subprocess.CompletedProcess[str]:
    """By an environment whose Python is a script."""
    script, interpreter = tmp_path / "tests" / "legs.sh", tmp_path / "python"
    script.parent.mkdir()
    shutil.copy(LEGS, script)
    interpreter.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    interpreter.chmod(0o755)
    environment = {**os.environ, **UNABLE, "PYTHON": str(interpreter)}
    return subprocess.run(["bash", script, *legs], env=environment, capture_output=True, text=True, check=False)


def test_legs_that_all_were_skipped(tmp_path: Path) -> None:
    found = run(tmp_path, "clang", "torch-2.10", python="exit 1")
    assert found.returncode == 77
    assert found.stdout.splitlines() == [
        "SKIP clang: there is no no-such-compiler",
        "SKIP torch-2.10: there is no Python 3.10 as no-such-python",
        "nothing was tested: all legs were skipped",
    ]


def test_one_leg_that_ran_is_a_success(tmp_path: Path) -> None:
    found = run(tmp_path, "clang", "avx2", python="echo avx2: 5 passed | tr : ' '")
    assert found.returncode == 0, found.stdout
    assert "PASS avx2: avx2  5 passed" in found.stdout
    assert "SKIP clang" in found.stdout


def test_one_leg_that_failed_is_a_failure(tmp_path: Path) -> None:
    found = run(tmp_path, "avx2", "clang", python="exit 3")
    assert found.returncode == 1
    assert "FAIL avx2" in found.stdout
    assert found.stdout.endswith("failed: avx2\n")


def test_a_leg_that_there_is_not(tmp_path: Path) -> None:
    found = run(tmp_path, "avx3", python="exit 1")
    assert found.returncode == 2
    assert "got 'avx3'" in found.stderr
