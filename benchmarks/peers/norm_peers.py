# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `peers-norms`: other packages' RMSNorm beside ours on a GPU, each in a process of its own.

    sparsekernels bench benchmarks/peers/norms.toml --device cuda

The engines are in engines/norm_peers.toml; each is measured eager and in a CUDA graph. The oracle of the suite
`rmsnorm` judges their results.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import ENGINES, EXPORT, OURS, Peer, Variant, read_peers
from peers import SAMPLE, column, environments

from sparsekernels.bench import rmsnorm, suite
from sparsekernels.bench.external.process import cores, processors
from sparsekernels.bench.external.variant import External
from sparsekernels.bench.report import Layout
from sparsekernels.bench.suite import Case, Selection, Suite, Verdict
from sparsekernels.timing import Effort

PEERS = read_peers(ENGINES / "norm_peers.toml")
RESULTS = ("output", "input gradient", "weight gradient")


@dataclass
class Files:
    """The tensors of a case, written when an engine first asks for them."""

    case: Case
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._inputs = rmsnorm.make_input(self.case, 0)
        self._oracle = rmsnorm.Oracle(self.case, self._inputs)

    def job(self, variant: Variant, graph: bool) -> Mapping[str, Any]:
        """What the program of `variant` is told."""
        names = ("x", "weight", "grad_output")
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="peers-norms-")
            for name in names:
                tensor: torch.Tensor = getattr(self._inputs, name)
                np.save(Path(self._folder.name) / f"{name}.npy", tensor.detach().float().cpu().numpy())
        return {
            "kind": "norm",
            "pass": self.case.pass_,
            "dtype": self.case.dtype,
            "device": self.case.device,
            "graph": graph,
            "eps": rmsnorm.EPS,
            **{name: str(Path(self._folder.name) / f"{name}.npy") for name in names},
            **variant.options,
        }

    def judge(self, path: Path) -> Verdict:
        """By the oracle of the suite `rmsnorm`."""
        like = self._inputs.x
        with np.load(path) as found:
            results = [torch.from_numpy(found[name]).to(like.device, like.dtype) for name in RESULTS if name in found]
        return self._oracle.check(tuple(results))

    def close(self) -> None:
        """Remove them."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def variants(case: Case, selection: Selection) -> list[suite.Variant]:
    """Those of all peers, eager and, on CUDA, in CUDA graphs."""
    files, threads = Files(case), selection.threads or torch.get_num_threads()
    return [
        _variant(files, peer, variant, mode, threads)
        for mode in ("", *(["/graph"] if case.device == "cuda" else []))
        for name, peer in PEERS.items()
        if name != EXPORT
        for variant in peer.variants
    ]


def _variant(files: Files, peer: Peer, variant: Variant, mode: str, threads: int) -> suite.Variant:
    external = External(
        lambda: files.job(variant, bool(mode)),
        lambda: environments().launch(peer, threads),
        files.judge,
        processors()[:threads],
    )

    def close() -> None:
        external.close()
        files.close()

    return suite.Variant(f"{variant.name}{mode}", external.prepare, close=close)


NAMES = [variant.name for peer in PEERS.values() for variant in peer.variants]

SUITE = Suite(
    name=Path(__file__).stem,
    about="other packages' RMSNorm beside ours, on a GPU",
    variants=variants,
    baseline="torch",
    ideal=None,
    full=Effort(seconds=4, sample=SAMPLE),
    quick=Effort(seconds=2, sample=SAMPLE),
    layout=Layout(
        tuple(map(column, NAMES)),
        "Times are medians of one call, all of a row interleaved, and in parentheses the ratio to ours: the median "
        "over the rounds. unavailable, error, wrong: see the notes.",
        OURS,
        tuple(name for name in NAMES if name != OURS),
    ),
    rival=OURS,
    threads=cores(),
)
