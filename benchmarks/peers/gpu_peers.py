# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the suites of peers on a GPU share: the tensors of a case in files, its variants, and their tables.

Each engine has a process of its own and is measured eager and, on CUDA, in a CUDA graph. `norm_peers.py` and
`block_peers.py` are such suites; `engines/gpu_calls.py` is the other side.
"""

from __future__ import annotations

import abc
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import EXPORT, OURS, Peer, Variant
from peers import column, environments
from torch import Tensor

from sparsekernels.bench import suite
from sparsekernels.bench.external.process import processors
from sparsekernels.bench.external.variant import External
from sparsekernels.bench.report import Layout
from sparsekernels.bench.suite import Case, Selection, Verdict


class Files(abc.ABC):
    """The tensors of a case, written when an engine first asks for them, and the oracle of its results."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @abc.abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """What is written: "x", "weight" and "grad_output"."""

    @abc.abstractmethod
    def check(self, results: Mapping[str, Tensor]) -> Verdict:
        """By the oracle, of results in the dtype and on the device of `tensors`."""

    def told(self) -> Mapping[str, Any]:
        """What else the programs are told of the case."""
        return {}

    def job(self, variant: Variant, graph: bool) -> Mapping[str, Any]:
        """What the program of `variant` is told."""
        tensors = self.tensors()
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=f"{self.case.suite}-")
            for name, tensor in tensors.items():
                np.save(Path(self._folder.name) / f"{name}.npy", tensor.detach().float().cpu().numpy())
        return {
            "pass": self.case.pass_,
            "dtype": self.case.dtype,
            "device": self.case.device,
            "graph": graph,
            **{name: str(Path(self._folder.name) / f"{name}.npy") for name in tensors},
            **self.told(),
            **variant.options,
        }

    def judge(self, path: Path) -> Verdict:
        """The verdict on the results in the file `path`."""
        like = self.tensors()["x"]
        with np.load(path) as found:
            return self.check({name: torch.from_numpy(found[name]).to(like.device, like.dtype) for name in found})

    def close(self) -> None:
        """Remove them."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def variants(
    files: Files, peers: Mapping[str, Peer], selection: Selection, sparsity: float | None = None
) -> list[suite.Variant]:
    """Those of all peers, eager and, on CUDA, in CUDA graphs. sparsity: the share of zeros, where the case has such."""
    threads = selection.threads or torch.get_num_threads()
    return [
        _variant(files, peer, variant, mode, threads, sparsity)
        for mode in ("", *(["/graph"] if files.case.device == "cuda" else []))
        for name, peer in peers.items()
        if name != EXPORT
        for variant in peer.variants
    ]


def _variant(
    files: Files, peer: Peer, variant: Variant, mode: str, threads: int, sparsity: float | None
) -> suite.Variant:
    external = External(
        lambda: files.job(variant, bool(mode)),
        lambda: environments().launch(peer, threads),
        files.judge,
        processors()[:threads],
    )

    def close() -> None:
        external.close()
        files.close()

    pattern = f":{files.case.pattern}" if files.case.pattern else ""
    return suite.Variant(f"{variant.name}{pattern}{mode}", external.prepare, sparsity, close)


def names_of(peers: Mapping[str, Peer]) -> list[str]:
    """Of all variants."""
    return [variant.name for peer in peers.values() for variant in peer.variants]


def layout_of(peers: Mapping[str, Peer], more: str = "", chart: str = "cases") -> Layout:
    """A column for each variant; more: what else the legend says; chart: as `Layout` has it."""
    names = names_of(peers)
    return Layout(
        tuple(map(column, names)),
        "Times are medians of one call, all of a row interleaved, and in parentheses the ratio to ours: the median "
        f"over the rounds. {more}unavailable, error, wrong: see the notes.",
        OURS,
        tuple(name for name in names if name != OURS),
        chart=chart,
    )
