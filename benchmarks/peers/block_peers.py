# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `peers-blocks`: other packages' linear layers with weights in blocks beside ours, on a GPU.

    sparsekernels bench benchmarks/peers/blocks.toml --device cuda

A case is a layer, a pass and a pattern of blocks: those of the largest norms of a normal weight are kept, as in the
suite `blocks`, whose oracle judges the results. The engines are in engines/block_peers.toml; each has a process of its
own and is measured eager and in a CUDA graph. The pass "all" is the output and the gradients to input and weight.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_peers
import torch
from environments import ENGINES, OURS, read_peers
from peers import SAMPLE
from torch import Tensor

from sparsekernels.bench import suite
from sparsekernels.bench.block_layer import Oracle
from sparsekernels.bench.defaults import QUICK_SPARSITIES
from sparsekernels.bench.external.process import cores
from sparsekernels.bench.layer import RESULTS, Inputs, Layer
from sparsekernels.bench.suite import Case, Selection, Suite, Verdict
from sparsekernels.bench.suite_keys import block_of
from sparsekernels.formats import BlockSparse
from sparsekernels.timing import Effort

PEERS = read_peers(ENGINES / "block_peers.toml")


class Files(gpu_peers.Files):
    """The tensors of a case; the weight is dense, with zeros in whole blocks."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        block, percent = case.parameters["pattern"]
        self._block, self.sparsity = block_of(block), round(percent / 100, 7)
        assert case.batch is not None
        layer = Layer(tuple(case.parameters["shape"]), case.batch)
        self._inputs = Inputs(layer, dtype=getattr(torch, case.dtype), device=case.device)
        self._oracle = Oracle(case.pass_, self._inputs)

    @functools.cached_property
    def weight(self) -> BlockSparse:
        return BlockSparse.from_dense(self._inputs.weight, block=self._block, sparsity=self.sparsity)

    @functools.cached_property
    def _tensors(self) -> Mapping[str, Tensor]:
        given = self._inputs
        return {"x": given.input, "weight": self.weight.to_dense(), "grad_output": given.grad_output}

    def tensors(self) -> Mapping[str, Tensor]:
        return self._tensors

    def told(self) -> Mapping[str, Any]:
        return {"kind": "block", "block": self._block}

    def check(self, results: Mapping[str, Tensor]) -> Verdict:
        """A gradient to the weight is dense; its elements in the blocks that are kept count."""
        found = {**results}
        if "weight gradient" in found:
            found["weight gradient"] = self.weight.values_of(found["weight gradient"])
        return self._oracle.judge(tuple(found[name] for name in RESULTS[self.case.pass_]), self.weight)


def variants(case: Case, selection: Selection) -> list[suite.Variant]:
    """Those of all peers, eager and, on CUDA, in CUDA graphs."""
    files = Files(case)
    return gpu_peers.variants(files, PEERS, selection, files.sparsity)


class _Blocks(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases, one for each pattern; none where zeros are asked for that lie elsewhere."""
        return [] if selection.masks else [_with(*one) for one in self._patterns(selection)]

    def _patterns(self, selection: Selection) -> list[tuple[Case, str, float]]:
        found = []
        for case in super().cases(selection):
            own = case.parameters["blocks"]
            blocks = selection.blocks or (own[:1] if selection.quick else own)
            sparsities = QUICK_SPARSITIES if selection.quick else case.parameters["sparsities"]
            sparsities = selection.sparsities or sparsities
            found += [(case, block, one) for block in dict.fromkeys(blocks) for one in dict.fromkeys(sparsities)]
        return found


def _with(case: Case, block: str, percent: float) -> Case:
    parameters = {**case.parameters, "pattern": (block, percent)}
    return replace(case, pattern=f"{block}-{percent:g}", parameters=parameters)


NAMES = gpu_peers.names_of(PEERS)

SUITE = _Blocks(
    name=Path(__file__).stem,
    about="other packages' linear layers with weights in blocks beside ours, on a GPU",
    variants=variants,
    baseline="torch",
    ideal=None,
    full=Effort(seconds=4, sample=SAMPLE),
    quick=Effort(seconds=2, sample=SAMPLE),
    layout=gpu_peers.layout_of(
        PEERS,
        "The row says which blocks and how many percent of them are zero. torch: the dense layer. Inputs and outputs "
        "are dense for all engines: what one has to convert of them is within its time. ",
        "sparsity",
    ),
    sparse=True,
    in_blocks=True,
    rival=OURS,
    threads=cores(),
)
