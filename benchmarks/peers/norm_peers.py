# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `peers-norms`: other packages' RMSNorm beside ours on a GPU, each in a process of its own.

    sparsekernels bench benchmarks/peers/norms.toml --device cuda

The engines are in engines/norm_peers.toml; each is measured eager and in a CUDA graph. The oracle of the suite
`rmsnorm` judges their results.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpu_peers
from environments import ENGINES, OURS, read_peers
from peers import SAMPLE
from torch import Tensor

from sparsekernels.bench import rmsnorm, suite
from sparsekernels.bench.external.process import cores
from sparsekernels.bench.suite import Case, Selection, Suite, Verdict
from sparsekernels.timing import Effort

PEERS = read_peers(ENGINES / "norm_peers.toml")
RESULTS = ("output", "input gradient", "weight gradient")


class Files(gpu_peers.Files):
    """The tensors of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._inputs = rmsnorm.make_input(case, 0)
        self._oracle = rmsnorm.Oracle(case, self._inputs)

    def tensors(self) -> Mapping[str, Tensor]:
        return {name: getattr(self._inputs, name) for name in ("x", "weight", "grad_output")}

    def told(self) -> Mapping[str, Any]:
        return {"kind": "norm", "eps": rmsnorm.EPS}

    def check(self, results: Mapping[str, Tensor]) -> Verdict:
        return self._oracle.check(tuple(results[name] for name in RESULTS if name in results))


def variants(case: Case, selection: Selection) -> list[suite.Variant]:
    """Those of all peers, eager and, on CUDA, in CUDA graphs."""
    return gpu_peers.variants(Files(case), PEERS, selection)


NAMES = gpu_peers.names_of(PEERS)

SUITE = Suite(
    name=Path(__file__).stem,
    about="other packages' RMSNorm beside ours, on a GPU",
    variants=variants,
    baseline="torch",
    ideal=None,
    full=Effort(seconds=4, sample=SAMPLE),
    quick=Effort(seconds=2, sample=SAMPLE),
    layout=gpu_peers.layout_of(PEERS),
    rival=OURS,
    threads=cores(),
)
