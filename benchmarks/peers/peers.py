# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suites `peers-networks` and `peers-linear`: other engines beside ours, on the same pruned weights.

    sparsekernels bench benchmarks/peers/networks.toml benchmarks/peers/linear.toml

A case is one pruned network, or one pruned linear layer and a pass; each pattern of zeros is a case of its own, since
all engines hold their models at once. Every variant of engines/peers.toml runs in a process, and most in an
environment, of its own. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from environments import EXPORT, OURS, Environments, Peer, Variant, default_folder, read_peers
from files import Files, job_of

from sparsekernels.bench import report, suite
from sparsekernels.bench.external.process import Launch, cores, processors
from sparsekernels.bench.external.variant import External
from sparsekernels.bench.report import Column, Layout, Row
from sparsekernels.bench.suite import Case, Selection, Suite, Unavailable
from sparsekernels.bench.worker import LOG
from sparsekernels.timing import Effort

if sys.platform != "linux":
    raise Unavailable("processes are stopped and pinned as Linux does it")

BASELINE = "torch"
"""The variant that a record's `speedup` is taken over."""

SAMPLE = 0.1
"""Seconds that a sample takes at least, so that it shows an engine at its work and not on its way back to it.

After another engine's turn, DeepSparse's first call of VGG16-D at batch 64 takes 20% longer, the second 4%, ours 5% and
1%. The first is not timed where it is short; see `timing.interleave`.
"""

PEERS = read_peers()


@functools.cache
def environments() -> Environments:
    """The environments, each made when it is first needed."""
    return Environments(default_folder(), LOG.info)


def variants(case: Case, selection: Selection) -> list[suite.Variant]:
    """Those of all peers that have such cases."""
    return made_of(PEERS, case, selection, environments().launch)


def made_of(
    peers: Mapping[str, Peer], case: Case, selection: Selection, launch: Callable[[Peer, int], Launch]
) -> list[suite.Variant]:
    """The variants of `peers` that have such cases. `peers` has `EXPORT` for the exporter."""
    threads = selection.threads or torch.get_num_threads()
    job = job_of(case, threads)
    offered = [
        (peer, variant)
        for name, peer in peers.items()
        if name != EXPORT
        for variant in peer.variants
        if job["kind"] in variant.cases
    ]
    measured = [pair for pair in offered if selection.takes_variant(name_of(pair[1], case))]
    exporter, bare = peers[EXPORT], replace(peers[EXPORT], requirements=())

    def export(onnx: bool) -> Launch:
        LOG.info("%s: made by torch", case)
        return launch(exporter if onnx else bare, threads)

    files = Files(
        job,
        export,
        processors()[:threads],
        onnx=any(peer.onnx for peer, _ in measured),
        blocks=frozenset(variant.blocks for _, variant in measured if variant.blocks is not None),
    )
    return [_variant(case, files, peer, variant, lambda peer=peer: launch(peer, threads)) for peer, variant in offered]


def name_of(variant: Variant, case: Case) -> str:
    """As records have it."""
    return f"{variant.name}:{case.pattern}"


def _variant(case: Case, files: Files, peer: Peer, variant: Variant, launch: Callable[[], Launch]) -> suite.Variant:
    def job() -> dict[str, object]:
        found = files.job_for(variant, peer.onnx)
        LOG.info("%s: %s", case, variant.name)
        return found

    external = External(job, launch, functools.partial(files.judge, variant), files.processors)

    def prepare() -> suite.Prepared:
        prepared = external.prepare()
        return replace(prepared, details={"batch": case.batch, "dtype": variant.dtype, **prepared.details})

    def close() -> None:
        external.close()
        files.close()

    return suite.Variant(name_of(variant, case), prepare, files.job["sparsity"], close)


def column(variant: str) -> Column:
    """The time of `variant`, and its ratio to ours in parentheses."""
    time = report.time_column(variant)

    def text(row: Row) -> str:
        ratio = row[variant].details.get("over_ours") if variant in row and variant != OURS else None
        return time.text(row) if ratio is None else f"{time.text(row)} ({ratio:.2f})"

    return Column(variant, text)


LEGEND = (
    "Times are medians of one call, all of a row interleaved, and in parentheses the ratio to ours: "
    "the median over the rounds. The row says how the weights were pruned, and to how many percent zeros. float32, "
    "except that -bf16 computes in bfloat16. torch-bsr: on as many zeros that are whole blocks of 16x16. unavailable, "
    "error, wrong: see the notes."
)


def layout(peers: Mapping[str, Peer]) -> Layout:
    """How the tables show the peers: a column for each variant."""
    names = [variant.name for peer in peers.values() for variant in peer.variants]
    rivals = tuple(name for name in names if name != OURS)
    columns = *map(column, names), report.ratio_column("openvino-bf16", "ours-bf16")
    return Layout(columns, LEGEND, OURS, rivals, chart="sparsity")


SUITE = Suite(
    name=Path(__file__).stem,
    about="other engines beside ours",
    variants=variants,
    baseline=BASELINE,
    ideal=None,
    full=Effort(seconds=20, sample=SAMPLE),
    quick=Effort(seconds=5, sample=SAMPLE),
    layout=layout(PEERS),
    sparse=True,
    in_blocks=True,
    rival=OURS,
    threads=cores(),
    by_pattern=True,
)
