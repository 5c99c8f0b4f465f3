# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `peers-blocks`: a case for each pattern, and what of its engines runs on the CPU, in our environment.

blksprs is its stand-in of `fake_blksprs.py` here: how it is called, and what comes out for the layer, not its kernels.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import block_peers
import fake_blksprs
import gpu_blocks
import numpy as np
import pytest
import torch
from fake_engine import PEERS, linux
from gpu_calls import engine_of
from protocol import Unavailable

from sparsekernels.bench import suite, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection, Verdict
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)
VARIANTS = {variant.name: variant for peer in block_peers.PEERS.values() for variant in peer.variants}


def make_case(pass_: str, block: str = "16x16", device: str = "cpu", dtype: str = "float32") -> Case:
    """Three rows of blocks by four, and two of the input."""
    parameters = {"shape": (48, 64), "pattern": (block, 75.0)}
    return Case("peers-blocks", "linear/48x64", pass_, dtype, device, 32, True, parameters, True, f"{block}-75")


@pytest.fixture
def files() -> Iterator[list[block_peers.Files]]:
    """Of cases, which are closed at the end."""
    found: list[block_peers.Files] = []
    yield found
    for one in found:
        one.close()


@pytest.fixture(autouse=True)
def blksprs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stand-in."""
    version = importlib.metadata.version
    monkeypatch.setitem(sys.modules, "blksprs", fake_blksprs.module())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5" if name == "blksprs" else version(name))


def in_this_process(files: block_peers.Files, name: str, folder: Path) -> dict[str, Verdict]:
    """By the way to write the call, the verdict on it."""
    job = files.job(VARIANTS[name], graph=False)
    make, package = gpu_blocks.WAYS[job["way"]]
    ways = make(job)
    weight = torch.from_numpy(np.load(job["weight"])).to(getattr(torch, job["dtype"]))
    found = {}
    for way in ways(weight):
        engine = engine_of(job, lambda weight, way=way: {way: ways(weight)[way]}, package)
        with engine.context():
            engine.call()  # the caches are filled by it
            np.savez(folder / "results.npz", **engine.results())
        found[way] = files.judge(folder / "results.npz")
    return found


def test_the_file() -> None:
    loaded = suite.load(str(PEERS / "blocks.toml"))
    cases = loaded.cases(Selection(device="cuda"))
    patterns = [f"{block}-{percent}" for block in ("64x64", "32x32", "16x16") for percent in (80, 90, 95)]
    assert [(case.pass_, case.pattern) for case in cases] == [
        (pass_, pattern) for pass_ in ("forward", "all") for pattern in patterns
    ]
    assert {case.name for case in cases} == {"linear/4096x4096"}
    quick = loaded.cases(Selection(device="cuda", quick=True, passes=("all",)))
    assert [case.pattern for case in quick] == patterns[:3]
    chosen = Selection(device="cuda", blocks=("8x8",), sparsities=(50.0,), batches=(64,), passes=("forward",))
    (case,) = loaded.cases(chosen)
    assert (case.name, case.batch, case.parameters["pattern"]) == ("linear/4096x4096@64", 64, ("8x8", 50.0))
    assert loaded.cases(Selection(device="cuda", masks=("random",))) == []


def test_every_engine_is_there_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["torch", "torch-bsr", "blksprs", "ours"]
    monkeypatch.setattr(block_peers, "Files", lambda case: SimpleNamespace(case=case, sparsity=0.75, judge=None))
    found = block_peers.variants(make_case("forward", device="cuda"), Selection(threads=1))
    assert [one.name for one in found] == [f"{name}:16x16-75{mode}" for mode in ("", "/graph") for name in names]
    assert {one.sparsity for one in found} == {0.75}
    assert names == block_peers.NAMES
    assert block_peers.PEERS["blksprs"].beside_ours


@linux
def test_from_end_to_end() -> None:
    notes: list[dict[str, Any]] = []
    case, names = make_case("all"), ("torch", "torch-bsr", "ours")
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    variants = [one for one in block_peers.variants(case, Selection(threads=1)) if one.name.partition(":")[0] in names]
    found: dict[str, Record] = {one.kind: one for one in worker.measure(block_peers.SUITE, case, variants, session)}
    assert {name: one.status for name, one in found.items()} == {
        "torch": "ok",
        "torch-bsr": "unavailable",
        "ours": "ok",
    }
    (note,) = notes
    assert "torch has no gradients of a product with a weight in BSR" in note["text"]
    assert found["torch"].details["over_ours"] > 0
    assert found["torch"].details["way"] in ("contiguous", "transposed")
    assert found["ours"].speedup is not None
    assert found["ours"].sparsity == 0.75
    assert found["ours"].max_error is not None
    assert "sparsekernels" in found["ours"].versions


WAYS = {
    "torch": {"contiguous", "transposed"},
    "torch-bsr": {"linear", "product"},
    "blksprs": {
        f"{one}, {other}"
        for one in ("to_sparse", "to_sparse_row_striped")
        for other in ("to_dense", "to_dense_row_striped")
    },
    "ours": {""},
}


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
@pytest.mark.parametrize(
    ("name", "pass_", "dtype"),
    [
        (name, pass_, dtype)
        for name in ("torch", "blksprs", "ours")
        for pass_ in ("forward", "all")
        for dtype in ("float32", "bfloat16")
    ]
    + [("torch-bsr", "forward", "float32")],  # on the CPU torch has it in float32 alone
)
def test_every_way_is_right(files: list[block_peers.Files], tmp_path: Path, name: str, pass_: str, dtype: str) -> None:
    files.append(block_peers.Files(make_case(pass_, dtype=dtype)))
    verdicts = in_this_process(files[0], name, tmp_path)
    assert set(verdicts) == WAYS[name]
    for way, verdict in verdicts.items():
        assert verdict.passed, (way, verdict)


@pytest.mark.parametrize(
    ("name", "pass_", "block", "text"),
    [
        ("torch-bsr", "all", "16x16", "no gradients"),
        ("torch-bsr", "forward", "32x32", r"^\[48, 64\] is not whole blocks of 32x32$"),
        ("blksprs", "forward", "32x32", r"^\[48, 64\] is not whole blocks of 32x32$"),
        ("blksprs", "forward", "16x8", "square blocks alone, whose size is a power of two from 16 on"),
        ("blksprs", "forward", "8x8", "square blocks alone"),
        ("blksprs", "forward", "48x48", "square blocks alone"),
    ],
)
def test_what_an_engine_cannot_do_is_told(
    files: list[block_peers.Files], name: str, pass_: str, block: str, text: str
) -> None:
    files.append(block_peers.Files(make_case(pass_, block)))
    with pytest.raises(Unavailable, match=text):
        gpu_blocks.prepare(files[0].job(VARIANTS[name], graph=False))


def test_rows_that_are_not_whole_blocks(files: list[block_peers.Files]) -> None:
    files.append(block_peers.Files(replace(make_case("forward"), batch=30)))
    with pytest.raises(Unavailable, match=r"\[30, 64\] is not whole blocks of 16x16"):
        gpu_blocks.prepare(files[0].job(VARIANTS["blksprs"], graph=False))


@pytest.mark.parametrize(
    ("name", "kept", "wrong", "passes"),
    [
        ("output", None, 0.0, True),
        ("output", None, 0.5, False),
        ("input gradient", None, 0.5, False),
        ("weight gradient", True, 0.5, False),
        ("weight gradient", False, 0.5, True),
    ],
)
def test_a_wrong_element_is_found(tmp_path: Path, name: str, kept: bool | None, wrong: float, passes: bool) -> None:
    """Of a gradient to the weight, where the weight has a block."""
    files = block_peers.Files(make_case("all"))
    tensors = files.tensors()
    x, weight, grad = (tensors[name].double() for name in ("x", "weight", "grad_output"))
    found = {"output": x @ weight.t(), "input gradient": grad @ weight, "weight gradient": grad.t() @ x}
    place = -1 if kept is None else int(torch.nonzero((weight.flatten() != 0) == kept)[0])
    found[name].flatten()[place] += wrong
    np.savez(tmp_path / "results.npz", **{name: one.numpy() for name, one in found.items()})
    assert files.judge(tmp_path / "results.npz").passed == passes
