# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The folders of the peers on the path of imports, and the fake engine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import fake_cuda
import pytest
from fake_engine import ENGINES, PEERS, launch_in

from sparsekernels.bench.external import process
from sparsekernels.bench.external.process import Launch
from sparsekernels.bench.modules import import_file

sys.path[:0] = [str(PEERS), str(ENGINES), str(process.PROTOCOL.parent)]


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites outside of the package put their folders on the path of imports, which engines inherit."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def fake(tmp_path: Path) -> Launch:
    """The program of the fake engine."""
    return launch_in(tmp_path)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[fake_cuda.Graph]:
    """A CUDA device that is the CPU; what it is given counts captures and replays."""
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, with parts that take no GPU, and time limits of this test."""
    module = import_file(Path(__file__).parents[2] / "benchmarks" / "gpu.py")
    monkeypatch.setattr(module, "LEAST", 0.0)
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    monkeypatch.setattr(module, "digest", lambda names: "+".join(sorted(names)))
    return module
