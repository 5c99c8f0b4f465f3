# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `peers-masked`: a case for each mask, and what of its engines runs in our environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import environments
import masked_peers
import numpy as np
import pytest
from fake_engine import PEERS

from sparsekernels.bench import suite, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)


def cases(selection: Selection) -> list[Case]:
    """Those of the file, on matrices of few numbers."""
    found = suite.load(str(PEERS / "masked.toml")).cases(selection)
    small = []
    for case in found:
        pattern = replace(case.parameters["pattern"], shape=(64, 96))
        small.append(replace(case, parameters={**case.parameters, "shape": (64, 40, 96), "pattern": pattern}))
    return small


def measure(case: Case, names: tuple[str, ...]) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    variants = [one for one in masked_peers.variants(case, Selection(threads=1)) if one.name.partition(":")[0] in names]
    found = worker.measure(masked_peers.SUITE, case, variants, session)
    return {one.kind: one for one in found}, [note["text"] for note in notes]


def test_a_case_for_each_mask() -> None:
    expected = [f"32x32-{percent}" for percent in (80, 90, 95)]
    expected += [f"{kind}-{percent}" for kind in ("random", "clustered") for percent in (90, 97, 99)]
    assert [case.pattern for case in cases(Selection())] == expected
    assert [case.pattern for case in cases(Selection(blocks=("64x64",), sparsities=(50.0,)))] == ["64x64-50"]
    assert cases(Selection(masks=("magnitude",))) == []


def test_every_engine_is_there() -> None:
    names = [variant.name for peer in masked_peers.PEERS.values() for variant in peer.variants]
    assert names == ["torch", "torch-sampled", "mlx", "graphblas", "ours"]
    assert environments.EXPORT in masked_peers.PEERS
    for peer in masked_peers.PEERS.values():
        assert peer.engine.is_file()


@pytest.mark.parametrize("pattern", ["32x32-50", "random-90"])
def test_from_end_to_end(pattern: str) -> None:
    kind, _, percent = pattern.rpartition("-")
    chosen = {"blocks": (kind,)} if kind[0].isdecimal() else {"masks": (kind,)}
    (case,) = cases(Selection(sparsities=(float(percent),), **chosen))
    records, notes = measure(case, ("torch", "torch-sampled", "ours"))
    assert notes == []
    assert {name: one.status for name, one in records.items()} == dict.fromkeys(
        ("torch", "torch-sampled", "ours"), "ok"
    )
    assert records["torch"].details["over_ours"] > 0
    assert records["ours"].sparsity == float(percent) / 100


def test_mlx_has_some_blocks_alone() -> None:
    (case,) = cases(Selection(masks=("random",), sparsities=(90.0,)))
    engine = PEERS / "engines" / "mlx_.py"
    bare = replace(masked_peers.PEERS["mlx"], requirements=(), python=(), engine=engine)
    variant = masked_peers._variant(masked_peers.Files(case, 1), bare, bare.variants[0], 0.9)
    notes: list[dict[str, Any]] = []
    (found,) = worker.measure(masked_peers.SUITE, case, [variant], worker.Session(CpuClock(), BRIEF, notes.append))
    assert found.status == "unavailable"
    assert "blocks of 32x32 and 64x64" in notes[0]["text"]


def test_a_wrong_element_is_found(tmp_path: Path) -> None:
    (case,) = cases(Selection(masks=("random",), sparsities=(90.0,)))
    files = masked_peers.Files(case, 1)
    a, b = (files._inputs.a.numpy(), files._inputs.b.numpy())
    kept = files.pattern.elements.numpy()
    right = np.where(kept, a @ b, 0)
    for wrong in (0.0, 1e-2):
        changed = right.copy()
        changed[-1, -1] += wrong
        np.savez(tmp_path / "r.npz", output=changed)
        assert files.judge(tmp_path / "r.npz").passed == (wrong == 0)
    files.close()
