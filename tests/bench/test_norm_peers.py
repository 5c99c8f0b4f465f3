# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `peers-norms`: what of its engines runs on the CPU, in our environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import norm_peers
import numpy as np
import pytest
import torch
from fake_engine import PEERS, linux

from sparsekernels.bench import suite, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)


def make_case(pass_: str, device: str = "cpu") -> Case:
    return Case("peers-norms", "norm/6x64", pass_, "bfloat16", device, 6, True, {"shape": (6, 64)})


def measure(case: Case, names: tuple[str, ...]) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    variants = [one for one in norm_peers.variants(case, Selection(threads=1)) if one.name in names]
    found = worker.measure(norm_peers.SUITE, case, variants, session)
    return {one.variant: one for one in found}, [note["text"] for note in notes]


def test_the_file() -> None:
    cases = suite.load(str(PEERS / "norms.toml")).cases(Selection(device="cuda"))
    assert {case.pass_ for case in cases} == {"forward", "backward"}
    assert ("norm/1x4096", "forward") in {(case.name, case.pass_) for case in cases}


def test_every_engine_is_there_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_peers, "Files", lambda case: SimpleNamespace(case=case, judge=None))
    names = ["torch", "liger", "quack", "flashinfer", "ours"]
    found = [one.name for one in norm_peers.variants(make_case("forward", "cuda"), Selection(threads=1))]
    assert found == [*names, *(f"{name}/graph" for name in names)]
    assert names == norm_peers.NAMES
    for peer in norm_peers.PEERS.values():
        assert peer.engine.is_file()


@linux
@pytest.mark.parametrize("pass_", ["forward", "backward", "forward+backward"])
def test_from_end_to_end(pass_: str) -> None:
    records, notes = measure(make_case(pass_), ("torch", "ours"))
    assert notes == []
    assert {name: one.status for name, one in records.items()} == {"torch": "ok", "ours": "ok"}
    assert records["torch"].details["over_ours"] > 0
    assert records["ours"].max_error is not None
    assert "torch" in records["torch"].versions


@linux
def test_flashinfer_has_no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which its engine says before it looks for the package."""
    bare = replace(norm_peers.PEERS["flashinfer"], requirements=(), python=())
    monkeypatch.setitem(norm_peers.PEERS, "flashinfer", bare)
    records, notes = measure(make_case("backward"), ("flashinfer",))
    assert records["flashinfer"].status == "unavailable"
    assert "flashinfer has no backward pass" in notes[0]


@pytest.mark.parametrize(("name", "wrong"), [("output", 0.0), ("output", 0.5), ("weight gradient", 0.5)])
def test_a_wrong_element_is_found(tmp_path: Path, name: str, wrong: float) -> None:
    files = norm_peers.Files(make_case("backward"))
    with torch.enable_grad():
        results = [one.detach().float() for one in files._oracle._reference(torch.float64)]
    found = dict(zip(norm_peers.RESULTS, (one.numpy() for one in results), strict=True))
    found[name].flat[-1] += wrong
    np.savez(tmp_path / "r.npz", **found)
    assert files.judge(tmp_path / "r.npz").passed == (wrong == 0)
