# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `peers-masked`: other engines' masked products beside ours, each in a process of its own.

    sparsekernels bench benchmarks/peers/masked.toml

A case is a shape and a mask, as the suite `masked` of the package makes them. The engines are in
engines/masked_peers.toml.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import ENGINES, OURS, Peer, Variant, read_peers
from peers import SAMPLE, column, environments

from sparsekernels.bench import masked, suite
from sparsekernels.bench.external.process import cores, processors
from sparsekernels.bench.external.variant import External
from sparsekernels.bench.report import Layout
from sparsekernels.bench.suite import Case, Selection, Suite, Verdict
from sparsekernels.bench.suite_keys import block_of
from sparsekernels.timing import Effort

PEERS = read_peers(ENGINES / "masked_peers.toml")


@dataclass
class Files:
    """The matrices and the mask of a case, written when an engine first asks for them."""

    case: Case
    threads: int
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.pattern: masked.Pattern = self.case.parameters["pattern"]
        self._inputs = masked.Inputs(self.case)
        self._oracle = masked.Oracle(self._inputs)

    def job(self, variant: Variant) -> Mapping[str, Any]:
        """What the program of `variant` is told: the files, and the block where the mask is made of such."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="peers-masked-")
            arrays = {"a": self._inputs.a, "b": self._inputs.b, "mask": self.pattern.elements}
            if not isinstance(self.pattern.mask, torch.Tensor):
                arrays["blocks"] = self.pattern.mask.blocks
            for name, tensor in arrays.items():
                np.save(Path(self._folder.name) / f"{name}.npy", tensor.numpy())
        kind, _, _ = self.pattern.name.rpartition("-")
        return {
            "kind": "masked",
            "pass": self.case.pass_,
            "dtype": variant.dtype,
            "threads": self.threads,
            "block": block_of(kind) if kind[0].isdecimal() else None,
            **{name: str(Path(self._folder.name) / f"{name}.npy") for name in ("a", "b", "mask", "blocks")},
            **variant.options,
        }

    def judge(self, path: Path) -> Verdict:
        """By the oracle of the suite `masked`."""
        with np.load(path) as results:
            output = torch.from_numpy(results["output"])
        return self._oracle.judge((output,), self.pattern.elements)

    def close(self) -> None:
        """Remove them."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def variants(case: Case, selection: Selection) -> list[suite.Variant]:
    """Those of all peers."""
    threads = selection.threads or torch.get_num_threads()
    files = Files(case, threads)
    share = round(files.pattern.percent / 100, 7)
    return [
        _variant(files, peer, variant, share)
        for peer in PEERS.values()
        for variant in peer.variants
        if "masked" in variant.cases
    ]


def _variant(files: Files, peer: Peer, variant: Variant, share: float) -> suite.Variant:
    external = External(
        lambda: files.job(variant),
        lambda: environments().launch(peer, files.threads),
        files.judge,
        processors()[: files.threads],
    )

    def close() -> None:
        external.close()
        files.close()

    return suite.Variant(f"{variant.name}:{files.case.pattern}", external.prepare, share, close)


class _Masked(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases, one for each mask."""
        if "magnitude" in selection.masks:
            return []
        return [
            replace(case, pattern=pattern.name, parameters={**case.parameters, "pattern": pattern})
            for case in super().cases(selection)
            for pattern in masked.patterns(case, selection)
        ]


NAMES = [variant.name for peer in PEERS.values() for variant in peer.variants]

SUITE = _Masked(
    name=Path(__file__).stem,
    about="other engines' masked products beside ours",
    variants=variants,
    baseline="torch",
    ideal=None,
    full=Effort(seconds=8, sample=SAMPLE),
    quick=Effort(seconds=3, sample=SAMPLE),
    layout=Layout(
        tuple(map(column, NAMES)),
        "Times are medians of one call, all of a row interleaved, and in parentheses the ratio to ours: the median "
        "over the rounds. torch: the dense product, and then the mask. Masks are prepared beforehand for all engines.",
        OURS,
        tuple(name for name in NAMES if name != OURS),
        chart="sparsity",
    ),
    sparse=True,
    in_blocks=True,
    rival=OURS,
    threads=cores(),
)
