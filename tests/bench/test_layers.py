# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `layers`: masks, cases, the check before the timing, files of weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import one_line, run
from torch import Tensor, nn

from sparsekernels import _library, timing
from sparsekernels.bench import layers, suite, worker
from sparsekernels.bench.defaults import MEMORY_FORMATS
from sparsekernels.bench.layer import LAYOUTS, Inputs, Layer
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=2, most=2)
LAYERS: dict[str, dict[str, Any]] = {
    "conv": {"weight": [6, 4, 3, 3], "size": 7, "padding": 1},
    "strided": {"weight": [4, 3, 5, 5], "size": 11, "stride": 2, "padding": 2},
    "pointwise": {"weight": [8, 5, 1, 1], "size": 4, "stride": 2},
    "groups": {"weight": [6, 2, 3, 3], "size": 5, "groups": 2},
    "depthwise": {"weight": [10, 1, 3, 3], "size": 7, "padding": 1, "groups": 10},
    "channels_last": {"weight": [6, 4, 3, 3], "size": 7, "padding": 1, "layout": "channels_last"},
    "linear": {"weight": [7, 12]},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nothing here is large enough for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(layer: str, pass_: str = "forward", batch: int = 9) -> Case:
    return Case("layers", f"test/{layer}", pass_, "float32", "cpu", batch, True, LAYERS[layer], True)


def measure(case: Case, selection: Selection) -> tuple[dict[str, Record], list[str]]:
    notes: list[dict[str, Any]] = []
    session = worker.Session(CpuClock(), BRIEF, notes.append)
    found = worker.measure(layers.SUITE, case, layers.variants(case, selection), session)
    return {one.variant: one for one in found}, [note["text"] for note in notes]


class TestCases:
    @pytest.mark.parametrize(
        ("net", "parameters"),
        [
            ("lenet-5-caffe", 430_500),
            ("alexnet-s", 5_066_784),
            ("vgg16-d", 15_239_872),
            ("wrn-28-2", 1_463_984),
            ("wrn-16-10", 17_107_632),
            ("resnet-50", 25_502_912),
        ],
    )
    def test_every_layer_of_a_net_is_there(self, net: str, parameters: int) -> None:
        """By the number of its weights, without biases and norms."""
        cases = layers.SUITE.cases(Selection(cases=(net,), passes=("forward",)))
        found = [Layer.of(case) for case in cases]
        assert sum(torch.Size(layer.weight).numel() * layer.count for layer in found) == parameters
        assert {case.batch for case in cases} == {16 if net == "resnet-50" else 64}

    def test_the_short_benchmark_has_all_kinds(self) -> None:
        cases = layers.SUITE.cases(Selection(quick=True))
        assert len(cases) <= 16
        found = [Layer.of(case) for case in cases if case.pass_ == "forward"]
        assert {layer.weight[1] for layer in found if layer.weight[2:] == (3, 3)} >= {64, 128, 256, 512}
        assert any(layer.weight[2:] == (1, 1) for layer in found)
        assert any(layer.linear and layer.batch >= 512 for layer in found)
        assert any(layer.batch == 1 for layer in found)
        assert {case.pass_ for case in cases} == set(layers.RESULTS)

    def test_a_batch_replaces_that_of_the_file(self) -> None:
        cases = layers.SUITE.cases(Selection(cases=("conv2_2",), passes=("all",), batches=(64, 8, 8)))
        assert [(case.name, case.batch) for case in cases] == [("vgg16-d/conv2_2", 64), ("vgg16-d/conv2_2@8", 8)]
        assert Layer.of(cases[1]).input_shape == (8, 128, 16, 16)

    def test_other_suites_have_nothing_sparse(self) -> None:
        for options in ({"sparsities": (90.0,)}, {"masks": ("random",)}):
            assert suite.load("rmsnorm").cases(Selection(**options)) == []
            assert layers.SUITE.cases(Selection(**options))

    def test_names_of_variants(self) -> None:
        case = make_case("conv")

        def sparse(selection: Selection) -> list[tuple[str, float | None]]:
            dense, half, *found = layers.variants(case, selection)
            assert (dense.name, half.name, dense.sparsity) == ("dense", "dense-bf16", None)
            return [(one.name, one.sparsity) for one in found]

        assert sparse(Selection(quick=True)) == [(f"sparse:random-{p}", p / 100) for p in (80, 90, 95)]
        assert len(sparse(Selection())) == 12
        chosen = Selection(quick=True, masks=("clustered",), sparsities=(97.5, 97.5))
        assert sparse(chosen) == [("sparse:clustered-97.5", 0.975)]

    @pytest.mark.parametrize("layer", LAYERS)
    def test_shapes_and_work(self, layer: str) -> None:
        one = Layer.of(make_case(layer))
        module: nn.Module
        if one.linear:
            module = nn.Linear(one.weight[1], one.weight[0])
        else:
            channels = one.weight[1] * one.groups
            module = nn.Conv2d(channels, one.weight[0], one.weight[2], one.stride, one.padding, groups=one.groups)
        output = module(torch.randn(one.input_shape))
        assert tuple(module.weight.shape) == one.weight
        assert tuple(output.shape) == one.output_shape
        positions = output.numel() // one.weight[0]
        assert one.gflop(10, "forward") == pytest.approx(20e-9 * positions, rel=1e-4)
        assert one.gflop(10, "all") == pytest.approx(60e-9 * positions, rel=1e-4)


class TestMeasuring:
    @pytest.mark.parametrize("pass_", layers.RESULTS)
    @pytest.mark.parametrize("layer", LAYERS)
    def test_every_variant_is_right(self, layer: str, pass_: str) -> None:
        case = make_case(layer, pass_)
        records, notes = measure(case, Selection(sparsities=(50.0, 90.0)))
        assert {name: (one.status, notes) for name, one in records.items()} == dict.fromkeys(records, ("ok", notes))
        assert list(records)[2:] == [f"sparse:{kind}-{p}" for kind in ("random", "clustered") for p in (50, 90)]
        assert records["dense"].max_error is None
        assert records["dense"].details.get("layout") in ((None,) if layer == "linear" else MEMORY_FORMATS)
        ours, dense = records["sparse:random-90"], records["dense"]
        assert ours.max_error is not None
        assert ours.sparsity == 0.9
        assert ours.speedup is not None
        assert ours.ideal_fraction == pytest.approx(ours.speedup * 0.1, rel=1e-3)
        assert (ours.details["batch"], ours.details["count"]) == (9, 1)
        weights = torch.Size(LAYERS[layer]["weight"]).numel()
        kept = round(weights * 0.1)
        assert ours.details["gflop"] == pytest.approx(dense.details["gflop"] * kept / weights, rel=1e-3)

    @pytest.mark.parametrize("batch", [0, 1])
    @pytest.mark.parametrize("pass_", ["forward", "all"])
    def test_batches_at_the_edge(self, pass_: str, batch: int) -> None:
        records, _ = measure(make_case("conv", pass_, batch), Selection(quick=True, variants=("sparse",)))
        assert {one.status for one in records.values()} == {"ok"}

    @pytest.mark.parametrize("pass_", layers.RESULTS)
    @pytest.mark.parametrize("layer", ["conv", "linear"])
    def test_one_wrong_number_is_found(self, monkeypatch: pytest.MonkeyPatch, layer: str, pass_: str) -> None:
        """In each result of the pass in turn, and wherever in it: the last image's, or that of the last nonzero."""
        right = layers.sparse_call
        for wrong in range(len(layers.RESULTS[pass_])):

            def broken(*arguments: Any, wrong: int = wrong) -> layers.Call:
                call = right(*arguments)

                def run() -> tuple[Tensor, ...]:
                    results = [result.clone() for result in call()]
                    results[wrong].view(-1)[-1] += 1e-3
                    return tuple(results)

                return run

            monkeypatch.setattr(layers, "sparse_call", broken)
            records, notes = measure(make_case(layer, pass_), Selection(quick=True, sparsities=(80.0,)))
            ours = records["sparse:random-80"]
            assert (ours.status, ours.p50_ms, ours.speedup) == ("wrong", None, None)
            assert ours.details["batch"] == 9
            assert records["dense"].status == records["dense-bf16"].status == "ok"
            assert "sparse:random-80: wrong" in notes[0]

    def test_a_kernel_that_ignores_the_pattern_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def dense(layer: Layer, pass_: str, input: Tensor, weight: Any, grad_output: Tensor) -> layers.Call:
            return layers.dense_call(layer, pass_, input, Inputs(layer).weight, grad_output)

        monkeypatch.setattr(layers, "sparse_call", dense)
        records, _ = measure(make_case("conv"), Selection(quick=True, variants=("sparse",)))
        assert records["sparse:random-95"].status == "wrong"

    def test_the_faster_layout_is_taken(self) -> None:
        import time

        calls: dict[str, layers.Call] = {"slow": lambda: time.sleep(2e-3) or (), "fast": lambda: ()}
        assert timing.fastest(calls, LAYOUTS) == "fast"
        only: dict[str, layers.Call] = {"only": lambda: pytest.fail("it need not be called")}
        assert timing.fastest(only, LAYOUTS) == "only"

    def test_the_layout_is_that_of_the_least_of_five_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A layout that was disturbed most of the time, but not always."""
        efforts = []

        def interleave(samplers: Any, effort: Effort, earlier: Any, stop: Any) -> dict[str, list[float]]:
            efforts.append(effort)
            return {"disturbed": [3.0, 3.0, 1.0, 3.0, 3.0], "steady": [2.0] * 5}

        monkeypatch.setattr(timing, "interleave", interleave)
        calls: dict[str, layers.Call] = {"disturbed": lambda: (), "steady": lambda: ()}
        assert timing.fastest(calls, LAYOUTS) == "disturbed"
        assert efforts[0].least >= 5

    @pytest.mark.parametrize("pass_", layers.RESULTS)
    def test_ours_is_given_the_layout_of_the_case(self, pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[Tensor] = []
        right = layers.sparse_call

        def record(layer: Layer, pass_: str, input: Tensor, weight: Any, grad_output: Tensor) -> layers.Call:
            call = right(layer, pass_, input, weight, grad_output)
            given.extend((input, grad_output, *(result for result in call() if result.dim() == 4)))
            return call

        monkeypatch.setattr(layers, "sparse_call", record)
        for layer in ("conv", "channels_last"):
            given.clear()
            measure(make_case(layer, pass_), Selection(quick=True, sparsities=(80.0,), variants=("sparse",)))
            format = MEMORY_FORMATS["channels_last" if layer == "channels_last" else "contiguous"]
            assert given
            assert all(one.is_contiguous(memory_format=format) for one in given)

    def test_the_peak_is_absent_where_nothing_measures_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layers.peak_gflops.cache_clear()
        monkeypatch.setattr(_library, "cpu", None)
        assert layers.peak_gflops() is None
        layers.peak_gflops.cache_clear()
        monkeypatch.setattr(_library, "cpu", "a library")
        monkeypatch.setattr(layers.kernels, "fma_from_l1_gflops", lambda: 280.123)
        assert layers.peak_gflops() == 280.1
        layers.peak_gflops.cache_clear()


@pytest.fixture
def arrays() -> dict[str, Any]:
    """A file of weights as it should be: of each layer three nonzeros."""
    found: dict[str, Any] = {}
    for case in suite.read_cases("layers"):
        if case.parameters.get("from_file"):
            name = case.name.partition("/")[2]
            values = {"shape": case.parameters["weight"], "index": [0, 5, 7], "value": [1.0, -2.0, 0.5]}
            found |= {f"{name}.{key}": torch.tensor(value).numpy() for key, value in values.items()}
    return found


def save(path: Path, arrays: dict[str, Any]) -> str:
    import numpy

    numpy.savez(path, **arrays)
    return str(path)


class TestWeights:
    def test_without_a_file_there_are_no_such_cases(self, tmp_path: Path, arrays: dict[str, Any]) -> None:
        def names(weights: str | None) -> list[str]:
            selection = Selection(cases=("alexnet-pruned",), quick=True, weights=weights)
            return [case.name.partition("/")[2] for case in layers.SUITE.cases(selection)]

        assert names(None) == []
        assert names(save(tmp_path / "w.npz", arrays)) == ["conv1", "conv2", "conv3", "conv4", "conv5"]

    def test_the_pattern_is_that_of_the_file(self, tmp_path: Path, arrays: dict[str, Any]) -> None:
        selection = Selection(
            cases=("alexnet-pruned/conv4",), passes=("forward",), batches=(1,), weights=save(tmp_path / "w.npz", arrays)
        )
        (case,) = layers.SUITE.cases(selection)
        assert (case.name, Layer.of(case).input_shape) == ("alexnet-pruned/conv4@1", (1, 384, 13, 13))
        weight = layers.read_weights(str(tmp_path / "w.npz"))["conv4"]
        assert (weight.flatten()[:8].tolist(), weight.count_nonzero()) == ([1.0, 0, 0, 0, 0, -2.0, 0, 0.5], 3)
        records, notes = measure(case, selection)
        assert list(records) == ["dense", "dense-bf16", "sparse:real"]
        assert ({one.status for one in records.values()}, notes) == ({"ok"}, [])
        assert records["sparse:real"].sparsity == round(1 - 3 / weight.numel(), 5)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("conv2.index", None, "expected conv2.shape, conv2.index, conv2.value, got no conv2.index"),
            ("conv3.shape", [384, 256, 5, 5], r"expected conv3.shape to be \[384, 256, 3, 3\], got \[384, 256, 5, 5\]"),
            ("conv1.index", [0, 5, 96 * 3 * 121], "expected conv1.index from 0 to 34847, got 0 to 34848"),
            ("conv1.index", [-1, 5, 7], "expected conv1.index from 0 to 34847, got -1 to 7"),
            ("conv5.value", [1.0], "expected conv5.index and conv5.value to be equally many integers and values, got"),
            ("conv5.index", [0.5, 1.5, 2.5], "expected conv5.index and .* integers and values, got torch.float32"),
        ],
    )
    def test_bad_files_are_named(
        self, tmp_path: Path, arrays: dict[str, Any], key: str, value: Any, message: str
    ) -> None:
        del arrays[key]
        if value is not None:
            arrays[key] = torch.tensor(value).numpy()
        with pytest.raises(ValueError, match=message):
            layers.SUITE.cases(Selection(weights=save(tmp_path / "w.npz", arrays)))

    def test_what_is_no_such_file(self, tmp_path: Path) -> None:
        (tmp_path / "w.npz").write_text("nothing")
        result = run("bench", "layers", "--weights", tmp_path / "w.npz")
        assert result.exit_code == 2
        assert "expected an .npz file, got what cannot be read as one: " in one_line(result.output)
