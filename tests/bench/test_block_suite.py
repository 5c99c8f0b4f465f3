# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `blocks`: cases, the check before the timing, fractions, the crossover; blocks in `layers`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_cli import one_line, run

from sparsekernels.bench import block_layer, blocks, layers, report, suite, worker
from sparsekernels.bench.block_layer import Oracle
from sparsekernels.bench.crossover import crossover_table
from sparsekernels.bench.layer import Inputs, Layer
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection, Suite
from sparsekernels.formats import BlockSparse
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)
PASSES = ("forward", "input-gradient", "weight-gradient")
LAYERS: dict[str, dict[str, Any]] = {
    "conv": {"weight": [16, 8, 3, 3], "size": 5, "padding": 1},
    "strided": {"weight": [9, 5, 3, 3], "size": 7, "stride": 2, "padding": 1},
    "pointwise": {"weight": [16, 24, 1, 1], "size": 3},
    "linear": {"weight": [16, 24]},
}
KEYS = {
    "blocks": {"float32": ["4x4", "3x2"], "bfloat16": ["8x2", "16x1"]},
    "sparsities": [50, 90],
    "fine_sparsities": [90],
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nothing here is large enough for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(layer: str, pass_: str = "forward", dtype: str = "float32", batch: int = 19) -> Case:
    return Case("blocks", f"test/{layer}", pass_, dtype, "cpu", batch, True, {**LAYERS[layer], **KEYS}, True)


def measure(case: Case, selection: Selection, of: Suite = blocks.SUITE) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    found = worker.measure(of, case, list(of.variants(case, selection)), session)
    return {one.variant: one for one in found}, [note["text"] for note in notes]


class TestCases:
    def test_shapes_passes_and_dtypes(self) -> None:
        cases = blocks.SUITE.cases(Selection())
        assert {case.pass_ for case in cases} == set(PASSES)
        assert {case.dtype for case in cases} == {"float32", "bfloat16"}
        found = {(Layer.of(case).weight, Layer.of(case).size, case.batch) for case in cases}
        assert {
            ((2048, 2048), 1, 2048),
            ((2048, 2048), 1, 64),
            ((128, 128, 3, 3), 16, 64),
            ((256, 256, 3, 3), 8, 64),
            ((512, 512, 3, 3), 4, 64),
            ((256, 256, 3, 3), 14, 64),
            ((512, 512, 3, 3), 7, 64),
            ((256, 1024, 1, 1), 14, 64),
        } == found

    def test_names_of_variants(self) -> None:
        def names(case: Case, selection: Selection) -> list[str]:
            dense, copy, *found = (variant.name for variant in blocks.variants(case, selection))
            assert (dense, copy) == ("dense", "copy")
            return found

        both = ["block:{}-50", "block:{}-90", "fine-grained:{}-90"]
        expected = [one.format(block) for block in ("8x2", "16x1") for one in both]
        assert names(make_case("conv", dtype="bfloat16"), Selection()) == expected
        chosen = Selection(blocks=("24x40",), sparsities=(97.5,))
        assert names(make_case("conv"), chosen) == ["block:24x40-97.5", "fine-grained:24x40-97.5"]
        # torch has BSR for whole square blocks in float32
        assert [one for one in names(make_case("linear"), Selection()) if "bsr" in one] == ["torch-bsr:4x4-90"]
        chosen = Selection(blocks=("3x2", "8x8", "16x16"), sparsities=(80.0,))
        assert [one for one in names(make_case("linear"), chosen) if "bsr" in one] == ["torch-bsr:8x8-80"]
        assert [one for one in names(make_case("linear", "input-gradient"), Selection()) if "bsr" in one] == []

    @pytest.mark.parametrize("options", [{"blocks": ("4x4",)}, {"sparsities": (90.0,)}, {"masks": ("random",)}])
    def test_what_options_mean(self, options: dict[str, Any]) -> None:
        selection = Selection(**options)
        assert bool(blocks.SUITE.cases(selection)) == ("masks" not in options)
        assert suite.load("rmsnorm").cases(selection) == []

    @pytest.mark.parametrize("block", ["4", "0x4", "4x129", "4x4x4", "ax4", "-4x4", ""])
    def test_bad_blocks(self, block: str) -> None:
        message = f"expected block to be rows x columns, each from 1 to 128, such as 32x32, got '{block}'"
        with pytest.raises(ValueError, match=message):
            Selection(blocks=(block,))
        result = run("bench", "blocks", "--list", f"--block={block}")
        assert result.exit_code == 2
        assert message in one_line(result.output)


class TestMeasuring:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("pass_", PASSES)
    @pytest.mark.parametrize("layer", LAYERS)
    def test_every_variant_is_right(self, layer: str, pass_: str, dtype: str) -> None:
        records, notes = measure(make_case(layer, pass_, dtype), Selection())
        assert {name: (one.status, notes) for name, one in records.items()} == dict.fromkeys(records, ("ok", notes))
        block = KEYS["blocks"][dtype][0]  # type: ignore[index]
        ours, dense, copy = records[f"block:{block}-90"], records["dense"], records["copy"]
        assert dense.max_error is copy.max_error is None
        assert ours.max_error is not None
        assert ours.speedup is not None
        assert copy.p50_ms is not None
        assert ours.ideal_fraction == pytest.approx(ours.speedup * 0.1, rel=1e-3)
        assert ours.details["reachable_fraction"] >= ours.ideal_fraction
        assert "reachable_fraction" not in copy.details
        weight = torch.Size(LAYERS[layer]["weight"]).numel()
        assert ours.details["gflop"] < 0.3 * dense.details["gflop"]
        assert dense.details["gflop"] == Layer.of(make_case(layer)).gflop(weight, pass_)
        assert ours.details.get("layout") in ((None,) if layer == "linear" else ("contiguous", "channels_last"))

    @pytest.mark.parametrize(("percent", "bound"), [(50.0, 2.0), (90.0, 4.0)])
    def test_the_reachable_is_bounded_by_the_copy(
        self, monkeypatch: pytest.MonkeyPatch, percent: float, bound: float
    ) -> None:
        """The lesser of 1 / density and dense over copy, which is 4 here."""
        times = {"dense": 8.0, "copy": 2.0}
        monkeypatch.setattr(worker, "interleave", lambda some, effort: {one: [times.get(one, 2.5)] * 3 for one in some})
        records, _ = measure(make_case("conv"), Selection(blocks=("4x4",), sparsities=(percent,)))
        ours = records[f"block:4x4-{percent:g}"]
        assert ours.speedup == 3.2
        assert ours.details["reachable_fraction"] == pytest.approx(3.2 / bound)
        assert ours.ideal_fraction == pytest.approx(3.2 * (1 - percent / 100))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("pass_", PASSES)
    @pytest.mark.parametrize("layer", ["conv", "linear"])
    def test_one_wrong_number_is_found(
        self, monkeypatch: pytest.MonkeyPatch, layer: str, pass_: str, dtype: str
    ) -> None:
        right = block_layer.block_call

        def broken(*arguments: Any) -> block_layer.Call:
            call = right(*arguments)

            def wrong() -> tuple[torch.Tensor, ...]:
                results = [result.clone() for result in call()]
                last = (-1,) * results[-1].dim()
                results[-1][last] += 1e-3 if dtype == "float32" else results[-1].abs().max()
                return tuple(results)

            return wrong

        monkeypatch.setattr(block_layer, "block_call", broken)
        records, notes = measure(make_case(layer, pass_, dtype), Selection(variants=("block",)))
        found = [one for one in records.values() if one.kind == "block"]
        assert {(one.status, one.p50_ms) for one in found} == {("wrong", None)}
        assert records["dense"].status == "ok"
        assert "wrong" in notes[0]

    @pytest.mark.parametrize("result", ["shape", "nan"])
    def test_what_is_no_result_is_found(self, result: str) -> None:
        inputs = Inputs(Layer.of(make_case("linear")))
        weight = BlockSparse.from_dense(inputs.weight, block=(4, 4), sparsity=0.5)
        right = inputs.input @ weight.to_dense().t()
        oracle = Oracle("forward", inputs)
        assert oracle.judge((right,), weight).passed
        wrong = right[:-1] if result == "shape" else right.index_fill(0, torch.tensor([18]), float("nan"))
        assert not oracle.judge((wrong,), weight).passed

    @pytest.mark.parametrize("batch", [1, 16, 17])
    def test_batches_at_the_edge(self, batch: int) -> None:
        for pass_ in PASSES:
            records, _ = measure(make_case("conv", pass_, batch=batch), Selection(quick=True, sparsities=(80.0,)))
            assert {one.status for one in records.values()} == {"ok"}

    @pytest.mark.parametrize("pass_", layers.RESULTS)
    @pytest.mark.parametrize("layer", LAYERS)
    def test_blocks_in_the_suite_of_layers(self, layer: str, pass_: str) -> None:
        case = Case("layers", f"test/{layer}", pass_, "float32", "cpu", 9, True, LAYERS[layer], True)
        records, notes = measure(case, Selection(blocks=("4x4", "16x2"), sparsities=(90.0,)), layers.SUITE)
        assert {name: (one.status, notes) for name, one in records.items()} == dict.fromkeys(records, ("ok", notes))
        ours = [f"{kind}:{block}-90" for kind in ("block", "block-bf16") for block in ("4x4", "16x2")]
        assert list(records) == ["dense", "dense-bf16", *ours]


def speedups(curve: dict[float, float], block: str = "32x32", case: str = "linear/a") -> list[Record]:
    records, _ = measure(make_case("linear"), Selection(variants=("block",), blocks=("4x4",), sparsities=(50.0,)))
    one = records["block:4x4-50"]
    return [
        replace(one, case=case, variant=f"block:{block}-{percent:g}", sparsity=percent / 100, speedup=speedup)
        for percent, speedup in curve.items()
    ]


class TestCrossover:
    def test_it_is_interpolated_or_a_bound(self) -> None:
        records = [
            *speedups({50: 0.5, 90: 2.5}),
            *speedups({90: 4.0, 50: 1.5}, "16x16"),
            *speedups({50: 0.2, 90: 0.9}, "16x1"),
            *speedups({90: 3.0}, case="linear/b"),
        ]
        (table,) = crossover_table("block", "blocks, forward", records)
        assert table.header == ("case", "dtype", "32x32", "16x16", "16x1")
        # 1 / density from 2 to 10 takes the speedup from 0.5 to 2.5: it is 1 at 4
        assert table.rows == (
            ("linear/a", "fp32", "75%", "<= 50%", "> 90%"),
            ("linear/b", "fp32", "<= 90%", "", ""),
        )

    def test_it_needs_two_sparsities_and_the_kind(self) -> None:
        assert crossover_table("block", "t", speedups({90: 3.0})) == []
        assert crossover_table("ours", "t", speedups({50: 0.5, 90: 3.0})) == []

    def test_it_is_in_the_report(self) -> None:
        records = speedups({50: 0.5, 90: 2.5})
        first, second = report.tables(records, {"blocks": blocks.SUITE.layout})
        assert first.title == "blocks, forward (cpu, 1 thread)"
        assert (second.title, second.rows[0][2:]) == (f"{first.title}: faster from", ("75%",))
        assert "75%" in report.markdown(records, {"blocks": blocks.SUITE.layout})
