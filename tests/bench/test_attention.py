# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The cases of the suite `masked` that are attention: their masks, their variants, the check before the timing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import sparsekernels
from sparsekernels.bench import attention, masked, suite, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)
KEYS: dict[str, Any] = {
    "shape": (2, 2, 96, 16),
    "windows": [32, 0],
    "blocks": ["16x16"],
    "block_sparsities": [80],
    "masks": ["random"],
    "sparsities": [90],
}


def make_case(pass_: str = "forward", dtype: str = "float32") -> Case:
    return Case("masked", "attention/2x2x96x16", pass_, dtype, "cpu", 2, True, KEYS)


def measure(case: Case, selection: Selection) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    found = worker.measure(masked.SUITE, case, masked.variants(case, selection), session)
    return {one.variant: one for one in found}, [note["text"] for note in notes]


def test_the_suite_has_such_cases() -> None:
    cases = [case for case in suite.load("masked").cases(Selection()) if "windows" in case.parameters]
    assert {(case.name, case.pass_, case.dtype) for case in cases} == {
        (name, pass_, dtype)
        for name, pass_ in (
            ("attention/4x8x1024x64", "forward"),
            ("attention/4x8x1024x64", "forward+backward"),
            ("decode/1x32x4096x128", "forward"),
        )
        for dtype in ("float32", "bfloat16")
    }


def test_the_masks_are_those_that_are_asked_for() -> None:
    def names(selection: Selection) -> list[str]:
        return [one.name for one in attention.patterns(make_case(), selection)]

    assert names(Selection()) == ["window32-69", "causal-49", "16x16-80", "random-90"]
    assert names(Selection(blocks=("4x4",), sparsities=(95.0,))) == ["4x4-95"]
    assert names(Selection(masks=("clustered",))) == ["clustered-90"]


def test_windows() -> None:
    window, causal = attention.patterns(make_case(), Selection())[:2]
    assert torch.equal(causal.elements, torch.ones(96, 96, dtype=torch.bool).tril())
    assert window.elements[48].sum() == 33
    for one in (window, causal):
        assert one.elements.float().mean().item() == pytest.approx(1 - one.percent / 100, abs=0.006)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding(dtype: str) -> None:
    keys = {**KEYS, "shape": (2, 4, 96, 16), "queries": 2, "key_heads": 2, "windows": [96, 32], "blocks": ["1x8"]}
    case = Case("masked", "decode/2x4x96x16", "forward", dtype, "cpu", 2, True, {**keys, "masks": []})
    patterns = attention.patterns(case, Selection())
    assert [one.name for one in patterns] == ["window96-1", "window32-67", "1x8-80"]
    assert patterns[1].elements.sum(1).tolist() == [32, 32]
    assert patterns[1].elements[:, -2:].tolist() == [[True, False], [True, True]]
    records, notes = measure(case, Selection())
    assert {name: (one.status, notes) for name, one in records.items()} == dict.fromkeys(records, ("ok", notes))
    assert {one.kind for one in records.values()} == {"dense", "dense+mask", "ours", "ours+prepare"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pass_", ["forward", "forward+backward"])
def test_every_variant_is_right(monkeypatch: pytest.MonkeyPatch, pass_: str, dtype: str) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    records, notes = measure(make_case(pass_, dtype), Selection())
    assert {name: (one.status, notes) for name, one in records.items()} == dict.fromkeys(records, ("ok", notes))
    kinds = {one.kind for one in records.values()}
    assert kinds == {"dense", "dense+mask", "ours", "ours+prepare"} | ({"flex"} if pass_ == "forward" else set())
    ours = records["ours:random-90"]
    assert ours.max_error is not None
    share = 1 if pass_ == "forward" else 3.5
    assert ours.details["gflop"] == pytest.approx(share * 0.1 * 4e-9 * 2 * 2 * 96 * 96 * 16, rel=1e-2)


def test_flex_attention_that_does_not_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, **_: object) -> object:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    records, notes = measure(make_case(), Selection(masks=("random",)))
    assert records["flex:random-90"].status == "unavailable"
    assert any("no compiler" in note for note in notes)


@pytest.mark.parametrize(("pass_", "wrong"), [("forward", 0), *(("forward+backward", one) for one in range(4))])
def test_one_wrong_number_is_found(monkeypatch: pytest.MonkeyPatch, pass_: str, wrong: int) -> None:
    right = attention.Inputs.call

    def broken(inputs: attention.Inputs, of: attention.Attention) -> Any:
        call = right(inputs, of)

        def run() -> tuple[torch.Tensor, ...]:
            results = [result.clone() for result in call()]
            results[wrong].view(-1)[-1] += 1e-3
            return tuple(results)

        return run

    monkeypatch.setattr(attention.Inputs, "call", broken)
    selection = Selection(masks=("random",), quick=True)
    records, notes = measure(make_case(pass_), selection)
    assert (records["ours:random-90"].status, records["ours:random-90"].p50_ms) == ("wrong", None)
    assert any("ours:random-90: wrong" in note for note in notes)


def test_attention_that_ignores_its_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(sparsekernels, "masked_attention", lambda q, k, v, mask, enable_gqa: plain(q, k, v))
    records, _ = measure(replace(make_case(), quick=True), Selection(masks=("random",), quick=True))
    assert {one.status for one in records.values() if one.kind.startswith("ours")} == {"wrong"}
    assert records["dense+mask:random-90"].status == "ok"
