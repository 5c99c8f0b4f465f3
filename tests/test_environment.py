# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A variable of the environment that has our prefix, and that nothing reads, is warned of when we are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekernels._environment import PREFIX, VARIABLES

ROOT = Path(__file__).parent.parent
RENAMED = f"{PREFIX}CPU_PROGRAMS"


@pytest.mark.parametrize(
    ("given", "is_warned"),
    [
        ({RENAMED: "0"}, True),
        ({RENAMED: "0", "SPARSEKERNELS_QUIET": "1"}, False),
        ({"SPARSEKERNELS_CPU_JIT": "64", "OTHER": "1"}, False),
    ],
    ids=["unknown", "quiet", "known"],
)
def test_unknown_variables_are_warned_of(given: dict[str, str], is_warned: bool) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment = {**others, "PYTHONPATH": str(ROOT), **given}
    command = [sys.executable, "-c", "import sparsekernels"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0
    expected = f"expected environment variables among {', '.join(VARIABLES)}, got {RENAMED}, without effect"
    assert ran.stderr.count(expected) == is_warned
