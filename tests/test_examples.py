# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The programs in examples/ run as they are, and say what their reader wants to see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "examples").iterdir()), ids=lambda path: path.name)
def test_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_prune_and_convert() -> None:
    output = run("prune_and_convert.py")
    assert re.search(r"dense [\d.]+ ms, converted [\d.]+ ms: [\d.]+ times as fast", output)
    difference = re.search(r"largest difference between the outputs: (\S+)", output)
    assert difference is not None
    assert float(difference[1]) < 1e-4


def test_train_with_sparse_layers() -> None:
    output = run("train_with_sparse_layers.py")
    accuracy = re.search(r"accuracy on new images: ([\d.]+)%", output)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert output.count("90.0% of the weights are zero") == 2


def test_sparse_training() -> None:
    output = run("sparse_training.py")
    accuracy = re.search(r"accuracy on new images: ([\d.]+)%", output)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert output.count("10720 nonzeros") == 3
    counts = [int(one) for one in re.findall(r"weight: (\d+) of", output)]
    assert len(counts) == 3
    assert sum(counts) == 10720
