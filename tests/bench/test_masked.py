# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `masked`: its masks, its variants, the check before the timing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsekernels
from sparsekernels.bench import masked, suite, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)
PASSES = ("forward", "forward+backward")
KEYS: dict[str, Any] = {
    "shape": (33, 40, 50),
    "blocks": ["8x8", "7x3"],
    "block_sparsities": [80],
    "masks": ["random", "clustered"],
    "sparsities": [90, 99],
}


def make_case(pass_: str = "forward", dtype: str = "float32") -> Case:
    return Case("masked", "test/33x40x50", pass_, dtype, "cpu", 33, True, KEYS)


def measure(case: Case, selection: Selection) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    found = worker.measure(masked.SUITE, case, masked.variants(case, selection), session)
    return {one.variant: one for one in found}, [note["text"] for note in notes]


def patterns(selection: Selection) -> list[str]:
    return [one.name for one in masked.patterns(make_case(), selection)]


def test_the_masks_are_those_that_are_asked_for() -> None:
    assert patterns(Selection()) == [
        *("8x8-80", "7x3-80"),
        *("random-90", "random-99", "clustered-90", "clustered-99"),
    ]
    assert patterns(Selection(quick=True)) == ["8x8-90", "7x3-90", "random-90", "clustered-90"]
    assert patterns(Selection(blocks=("4x4",), sparsities=(95.0,))) == ["4x4-95"]
    assert patterns(Selection(masks=("random",))) == ["random-90", "random-99"]
    assert masked.SUITE.cases(Selection(masks=("magnitude",))) == []
    assert suite.load("masked").cases(Selection(masks=("clustered",), blocks=("4x4",)))


@pytest.mark.parametrize(("name", "percent"), [("8x8-80", 80.0), ("7x3-80", 80.0), ("random-90", 90.0)])
def test_a_mask_has_as_many_zeros_as_its_name_says(name: str, percent: float) -> None:
    pattern = masked.Pattern(name, percent, (56, 60))
    assert isinstance(pattern.mask, sparsekernels.BlockMask) == name.endswith("80")
    assert pattern.elements.shape == (56, 60)
    assert pattern.elements.float().mean().item() == pytest.approx(1 - percent / 100, abs=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pass_", PASSES)
def test_every_variant_is_right(pass_: str, dtype: str) -> None:
    records, notes = measure(make_case(pass_, dtype), Selection())
    assert {name: (one.status, notes) for name, one in records.items()} == dict.fromkeys(records, ("ok", notes))
    kinds = {one.kind for one in records.values()}
    sampled = {"sampled-addmm"} if (pass_, dtype) == ("forward", "float32") else set()
    assert kinds == {"dense", "dense+mask", "ours", "ours+prepare"} | sampled
    ours = records["ours:random-90"]
    assert ours.max_error is not None
    assert ours.speedup is not None
    assert ours.ideal_fraction == pytest.approx(ours.speedup * 0.1, rel=1e-3)
    share = 3 if pass_ == "forward+backward" else 1
    assert ours.details["gflop"] == pytest.approx(share * 0.1 * 2e-9 * 33 * 40 * 50, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("pass_", "wrong"), [("forward", 0), *(("forward+backward", one) for one in range(3))])
def test_one_wrong_number_is_found(monkeypatch: pytest.MonkeyPatch, pass_: str, wrong: int, dtype: str) -> None:
    right = masked.Inputs.call

    def broken(inputs: masked.Inputs, product: masked.Product) -> Any:
        call = right(inputs, product)

        def run() -> tuple[torch.Tensor, ...]:
            results = [result if result.is_sparse_csr else result.clone() for result in call()]
            if not results[wrong].is_sparse_csr:
                results[wrong].view(-1)[-1] += 1e-3 if dtype == "float32" else 1
            return tuple(results)

        return run

    monkeypatch.setattr(masked.Inputs, "call", broken)
    records, notes = measure(make_case(pass_, dtype), Selection(masks=("random",), sparsities=(90.0,)))
    assert (records["ours:random-90"].status, records["ours:random-90"].p50_ms) == ("wrong", None)
    assert records["ours+prepare:random-90"].status == "wrong"
    assert any("ours:random-90: wrong" in note for note in notes)


def test_a_product_that_ignores_its_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsekernels, "masked_matmul", lambda a, b, mask: a @ b)
    records, _ = measure(make_case(), Selection(masks=("random",), sparsities=(90.0,)))
    assert {one.status for one in records.values() if one.kind.startswith("ours")} == {"wrong"}
    assert records["dense+mask:random-90"].status == "ok"
