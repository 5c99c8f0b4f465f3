# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which tests `make gpu` runs, and --every: conftest.py of this folder, in a run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

FILE = """
import pytest

@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_by_parameter(device, backend): pass

@pytest.mark.skipif(True, reason="needs a GPU: here is none")
def test_skipped_elsewhere(): pass

def test_neither(): pass
"""
OF_FILE = """
DEVICE = "cuda"

def test_of_its_file(): pass
"""


def collected(folder: Path, *options: str) -> list[str]:
    (folder / "test_one.py").write_text(FILE)
    (folder / "test_other.py").write_text(OF_FILE)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "--collect-only", "-q"]
    paths = os.pathsep.join([str(TESTS), str(TESTS / "conversion"), *filter(None, sys.path)])
    done = subprocess.run(
        [*command, "-o", "markers=cuda", "-o", "addopts=", *options, "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def test_what_is_selected(tmp_path: Path) -> None:
    """Of the four that run on a GPU, by a parameter (two), a reason and their file, the first and the fourth."""
    assert collected(tmp_path, "-m", "cuda", "--every", "3") == ["test_by_parameter[cuda-cuda]", "test_of_its_file"]
