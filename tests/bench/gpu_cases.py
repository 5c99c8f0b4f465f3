# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py for its tests: steps that take no GPU, and what the options of its parts select."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fake_engine import ENGINES

from sparsekernels.bench import suite
from sparsekernels.bench.modules import import_file

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


def step(gpu: ModuleType, name: str, program: str) -> Any:
    return gpu.Step(name, (PYTHON, "-c", program))


def selection_of(options: tuple[str, ...]) -> suite.Selection:
    """As the command line makes it of these."""
    fields = {"case": "cases", "pass": "passes", "block": "blocks", "sparsity": "sparsities", "dtype": "dtypes"}
    fields = {f"--{key}": field for key, field in fields.items()}
    given: dict[str, tuple[Any, ...]] = {}
    for key, value in itertools.pairwise(options):
        if key in fields:
            read = float(value) if key == "--sparsity" else value
            given[fields[key]] = (*given.get(fields[key], ()), read)
    return suite.Selection(device="cuda", quick="--quick" in options, **given)  # type: ignore[arg-type]


def offered(path: str, case: suite.Case) -> list[Any]:
    """The names of the engines in the table beside the suite of that path, as its variants have them."""
    table = {"norms.toml": "norm_peers.toml", "blocks.toml": "block_peers.toml"}[Path(path).name]
    peers = import_file(ROOT / "benchmarks" / "peers" / "environments.py").read_peers(ENGINES / table)
    return [variant for peer in peers.values() for variant in peer.variants]
