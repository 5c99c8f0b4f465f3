# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What suites do on CUDA: graphs, inputs in turn, every format of a layer, and how much could be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda import case_of, measure
from torch import Tensor

import sparsekernels as sk
from sparsekernels.bench import (
    attention,
    block_layer,
    blocks,
    devices,
    few_rows,
    layers,
    masked,
    rmsnorm,
    roofline,
    suite,
    worker,
)
from sparsekernels.bench.devices import Built, Way
from sparsekernels.bench.layer import Inputs, Layer, with_copies
from sparsekernels.bench.suite import Case, Selection, Unavailable, Verdict
from sparsekernels.timing import Effort

LAYER = {"weight": [32, 16, 3, 3], "size": 5, "padding": 1}
LINEAR = {"weight": [32, 64]}
KEYS = {"masks": ["random"], "blocks": ["16x16", "8x8"], "sparsities": [50, 90]}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def judge_one(results: Any) -> Verdict:
    return Verdict(0.0, results == 1)


class TestModes:
    CASE = case_of("s", "forward", "float32", 1, {})

    def test_on_the_cpu_there_are_no_graphs(self) -> None:
        case = Case("s", "a/b", "forward", "float32", "cpu", 1, True)
        assert [one.name for one in devices.variants_of(case, [Way("ours:random-90", lambda: Built([int]))])] == [
            "ours:random-90"
        ]

    def test_each_way_eager_and_then_in_a_graph(self, graphs: type[fake_cuda.Graph]) -> None:
        calls: list[int] = []
        sets: list[Callable[[], object]] = [lambda i=i: calls.append(i) or 1 for i in range(3)]  # type: ignore[misc]
        ways = [Way("a:x-90", lambda: Built(sets, judge=judge_one), 0.9), Way("b", lambda: Built([int]), graphs=False)]
        eager, other, graph = devices.variants_of(self.CASE, ways)
        assert [(one.name, one.sparsity) for one in (eager, other, graph)] == [
            ("a:x-90", 0.9),
            ("b", None),
            ("a:x-90/graph", 0.9),
        ]
        prepared = eager.prepare()
        assert calls == [1, 2]  # all sets but the first, which the check calls
        assert prepared.check is not None
        assert prepared.check().passed
        for _ in range(4):
            prepared.call()
        assert calls == [1, 2, 0, 0, 1, 2, 0]
        calls.clear()
        prepared = graph.prepare()
        assert (prepared.calls, graphs.captured) == (devices.GRAPH_CALLS, 1)
        assert len(calls) == 3 + 1 + devices.GRAPH_CALLS  # warm, the result, and those that are captured
        prepared.call()
        assert (graphs.replayed, len(calls)) == (1, 3 + 1 + devices.GRAPH_CALLS)
        assert prepared.check is not None
        assert prepared.check().passed
        assert (graphs.captured, graphs.replayed) == (2, 2)

    def test_a_graph_has_a_call_for_every_set(self, graphs: type[fake_cuda.Graph]) -> None:
        many = Built([int] * 33)
        assert devices.in_graph(lambda: many).calls == 33
        assert devices.in_graph(lambda: Built([int], graphed=1)).calls == 1

    def test_what_cannot_be_captured_is_an_error_of_that_variant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_cuda.install(monkeypatch)

        def refused(*_: object, **__: object) -> object:
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "graph", refused)
        one = case_of("layers", "forward", "float32", 4, {**LINEAR, **KEYS, "sparsities": [90]})
        records, notes = measure(one, layers.SUITE, Selection(device="cuda", variants=("sparse",)))
        assert records["sparse:random-90"].status == "ok"
        assert records["sparse:random-90/graph"].status == "error"
        words = "NotCaptured: a CUDA graph cannot have it: operation not permitted when stream is capturing"
        assert any(words in note for note in notes)

    def test_that_others_cannot_be_captured_is_no_failure(self, graphs: type[fake_cuda.Graph]) -> None:
        def synchronizes() -> None:
            if graphs.captured:
                raise RuntimeError("first\nsecond")

        way = Way("torch-bsr:8x8-90", lambda: Built([synchronizes]), 0.9, ours=False)
        with pytest.raises(Unavailable, match="^a CUDA graph cannot have it: first$"):
            devices.variants_of(self.CASE, [way])[1].prepare()
        graphs.captured = 0
        with pytest.raises(devices.NotCaptured):
            devices.variants_of(self.CASE, [Way("ours", way.build)])[1].prepare()


class TestSets:
    def test_twice_the_cache(self, graphs: type[fake_cuda.Graph]) -> None:
        assert [devices.sets_beyond_cache("cuda", size) for size in (1, 1024, 8192, 8193, 10**9)] == [20, 8, 1, 1, 1]
        assert devices.sets_beyond_cache("cuda", 1, 64) == 64
        assert devices.sets_beyond_cache("cpu", 1) == 1

    def test_every_set_has_a_weight_and_a_pattern_of_its_own(self, graphs: type[fake_cuda.Graph]) -> None:
        inputs = Inputs(Layer((32, 64), 1), device="cuda", most=64)
        for weight in (
            sk.Unstructured.from_dense(inputs.weight, torch.rand(32, 64) < 0.1),
            sk.BlockSparse.from_dense(inputs.weight, block=(8, 8), sparsity=0.9),
        ):
            sets = with_copies(inputs, weight)
            assert len(sets) > 1
            for tensors in zip(*(own.to_tensors().values() for _, own in sets), strict=True):
                places = {one.data_ptr() for one in tensors}
                assert len(places) == len(sets)
                assert all(torch.equal(one, tensors[0]) for one in tensors)
            assert len({one.input.data_ptr() for one, _ in sets}) == len(sets)
            assert sets[0][1] is weight
            assert all(own.plans is not weight.plans for _, own in sets[1:])

    def test_on_the_cpu_there_is_one(self) -> None:
        inputs = Inputs(Layer((32, 64), 1))
        weight = sk.Unstructured.from_dense(inputs.weight, torch.rand(32, 64) < 0.1)
        assert with_copies(inputs, weight) == [(inputs, weight)]

    def test_the_fastest_by_the_clock_of_the_device(self, graphs: type[fake_cuda.Graph]) -> None:
        big, small = torch.randn(2**18), torch.randn(2)
        calls = {"slow": lambda: big.sin(), "fast": lambda: small.sin()}
        assert devices.fastest("cuda", calls, Effort(seconds=0, sample=1e-4, least=3, most=3)) == "fast"

    def test_cudnn_times_its_algorithms_but_not_for_the_truth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = torch.backends.cudnn.benchmark
        with devices.autotuned("cuda"):
            assert torch.backends.cudnn.benchmark
            with devices.autotuned("cuda", False):
                assert not torch.backends.cudnn.benchmark
            assert torch.backends.cudnn.benchmark
        with devices.autotuned("cpu"):
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark == before


FORMATS = ("dense", "copy", "dropped", "sparse", "block")


class TestSuites:
    @pytest.mark.parametrize(
        ("dtype", "pass_"), [*(("bfloat16", one) for one in layers.RESULTS), ("float32", "all"), ("float16", "forward")]
    )
    @pytest.mark.parametrize("layer", [LAYER, LINEAR], ids=["conv", "linear"])
    def test_layers_have_every_format(
        self, graphs: type[fake_cuda.Graph], layer: dict[str, Any], pass_: str, dtype: str
    ) -> None:
        case = case_of("layers", pass_, dtype, 5, {**layer, **KEYS, "blocks": ["16x16"]})
        records, notes = measure(case, layers.SUITE, Selection(device="cuda", variants=FORMATS))  # torch's need a GPU
        assert {name: one.status for name, one in records.items()} == dict.fromkeys(records, "ok"), notes
        assert {one.kind for one in records.values()} == set(FORMATS)
        assert {name.partition("/")[0] for name in records} == {
            name.removesuffix("/graph") for name in records if name.endswith("/graph")
        }
        for mode in ("", "/graph"):
            sparse = records[f"sparse:random-90{mode}"]
            assert sparse.max_error is not None
            assert sparse.details["reachable_fraction"] >= sparse.ideal_fraction  # type: ignore[operator]
            assert sparse.details["traffic_cap"] > 0
        assert records["dense"].details.get("precision") == (
            None if dtype != "float32" else "ieee" if "size" not in layer else "tf32"
        )

    def test_torchs_own_layouts_are_for_the_forward_of_a_linear_layer(self, graphs: type[fake_cuda.Graph]) -> None:
        def kinds(pass_: str, layer: dict[str, Any], dtype: str = "bfloat16") -> set[str]:
            case = case_of("layers", pass_, dtype, 5, {**layer, **KEYS})
            return {one.name.partition(":")[0] for one in layers.variants(case, Selection(device="cuda"))} - set(
                FORMATS
            )

        assert kinds("forward", LINEAR) - {"dense/graph", "copy/graph"} == {"torch-bsr", "torch-2to4"}
        assert kinds("forward", LINEAR, "float32") - {"dense/graph", "copy/graph"} == {"torch-bsr"}
        assert kinds("all", LINEAR) == kinds("forward", LAYER) == {"dense/graph", "copy/graph"}

    def test_options_choose_patterns(self, graphs: type[fake_cuda.Graph]) -> None:
        case = case_of("layers", "all", "bfloat16", 5, {**LAYER, **KEYS})
        chosen = Selection(device="cuda", blocks=("4x4",), sparsities=(75.0,))
        names = [one.name for one in layers.variants(case, chosen) if not one.name.endswith("/graph")]
        assert names == ["dense", "copy", "block:4x4-75"]

    @pytest.mark.parametrize("pass_", ["forward", "input-gradient", "weight-gradient", "all"])
    def test_blocks(self, graphs: type[fake_cuda.Graph], pass_: str) -> None:
        keys = {"blocks": {"bfloat16": ["8x8"]}, "sparsities": [90], "fine_sparsities": [90]}
        records, notes = measure(case_of("blocks", pass_, "bfloat16", 5, {**LAYER, **keys}), blocks.SUITE)
        assert {name: one.status for name, one in records.items()} == dict.fromkeys(records, "ok"), notes
        names = ["dense", "copy", "block:8x8-90", "fine-grained:8x8-90"]
        assert list(records) == [*names, *(f"{name}/graph" for name in names)]

    def test_decode(self, graphs: type[fake_cuda.Graph]) -> None:
        case = Case("few-rows", "1-row/32x64", "forward", "bfloat16", "cuda", 1, True, {**LINEAR, **KEYS}, True)
        records, notes = measure(case, few_rows.SUITE, Selection(device="cuda", variants=FORMATS))
        assert {name: one.status for name, one in records.items()} == dict.fromkeys(records, "ok"), notes
        sparse = records["sparse:random-90/graph"]
        values, places = 2 * 204.8, 2048 / 8
        assert few_rows.gigabytes(sparse) == pytest.approx(1e-9 * (values + places))
        assert few_rows.gigabytes(records["dense"]) == pytest.approx(1e-9 * 4096)
        assert sparse.speedup is not None
        assert few_rows.of_bytes(sparse) == pytest.approx(sparse.speedup * (values + places) / 4096)

    @pytest.mark.parametrize("pass_", ["forward", "forward+backward"])
    def test_masked(self, graphs: type[fake_cuda.Graph], pass_: str) -> None:
        keys = {"shape": (33, 40, 50), "blocks": ["8x8"], "block_sparsities": [80], "masks": ["random"]}
        case = case_of("masked", pass_, "bfloat16", 33, {**keys, "sparsities": [90]})
        records, notes = measure(case, masked.SUITE)
        assert {name: one.status for name, one in records.items()} == dict.fromkeys(records, "ok"), notes
        assert {one.kind for one in records.values() if one.mode == "graph"} == {"dense", "dense+mask", "ours"}

    def test_attention(self, graphs: type[fake_cuda.Graph], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        keys = {"shape": (1, 2, 96, 16), "windows": [32, 0], "blocks": [], "block_sparsities": [], "masks": []}
        case = case_of("masked", "forward", "bfloat16", 2, {**keys, "sparsities": []})
        records, notes = measure(case, masked.SUITE)
        assert {name: one.status for name, one in records.items()} == dict.fromkeys(records, "ok"), notes
        assert "ours:causal-49/graph" in records
        assert "ours+prepare:causal-49/graph" not in records
        assert "flex:causal-49" in {one.name for one in attention.variants(case, Selection(device="cuda"))}

    @pytest.mark.parametrize("pass_", rmsnorm.TENSORS_MOVED)
    def test_rmsnorm(self, graphs: type[fake_cuda.Graph], pass_: str) -> None:
        case = case_of("rmsnorm", pass_, "float32", 3, {"shape": (3, 64)})
        records, notes = measure(case, rmsnorm.SUITE, Selection(device="cuda", quick=True))
        assert {name: one.status for name, one in records.items()} == dict.fromkeys(records, "ok"), notes
        assert {"ours/graph", "torch/graph", "copy/graph"} <= set(records)

    @pytest.mark.parametrize("mode", ["", "/graph"])
    def test_a_wrong_number_has_no_time_in_either_mode(
        self, graphs: type[fake_cuda.Graph], monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        right = block_layer.block_call

        def broken(*arguments: Any) -> Callable[[], tuple[Tensor, ...]]:
            call = right(*arguments)
            return lambda: tuple(result * 1.01 for result in call())

        monkeypatch.setattr(block_layer, "block_call", broken)
        case = case_of("layers", "all", "float32", 5, {**LAYER, **KEYS})
        records, _ = measure(case, layers.SUITE)
        for name in (f"sparse:random-50{mode}", f"block:16x16-90{mode}"):
            assert (records[name].status, records[name].p50_ms) == ("wrong", None)
        assert records[f"dense{mode}"].status == "ok"

    @pytest.mark.parametrize("name", [name for name in suite.SUITES if name != "decode"])  # which is of CPUs
    def test_every_suite_has_cases_there(self, name: str) -> None:
        assert suite.load(name).cases(Selection(device="cuda"))

    def test_the_targets_are_among_them(self) -> None:
        found = {
            (Layer.of(case).weight, Layer.of(case).size, case.batch, case.pass_): case.parameters["blocks"]["bfloat16"]
            for case in blocks.SUITE.cases(Selection(device="cuda", dtypes=("bfloat16",)))
        }
        for shape in (((4096, 4096), 1, 4096), ((512, 512, 3, 3), 28, 64)):
            assert found[(*shape, "forward")] == ["64x64", "32x32", "16x16"]
            for pass_ in ("input-gradient", "weight-gradient", "all"):
                assert (*shape, pass_) in found
        for channels, size in ((64, 56), (128, 28), (256, 14)):
            assert ((channels, channels, 3, 3), size, 64, "forward") in found

    def test_the_records_have_what_could_be_reached(
        self, graphs: type[fake_cuda.Graph], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = {"dense": 8.0, "copy": 2.0, "dense/graph": 6.0, "copy/graph": 1.0}
        monkeypatch.setattr(worker, "interleave", lambda some, effort: {one: [times.get(one, 2.5)] * 3 for one in some})
        case = case_of("layers", "forward", "bfloat16", 5, {**LAYER, **KEYS})
        records, _ = measure(case, layers.SUITE)
        for mode, dense, copy in (("", 8.0, 2.0), ("/graph", 6.0, 1.0)):
            one = records[f"sparse:random-90{mode}"]
            assert one.speedup is not None
            assert one.details["traffic_cap"] == dense / copy
            expected = one.speedup / roofline.reachable(0.1, dense / copy)
            assert one.details["reachable_fraction"] == pytest.approx(expected, rel=1e-4)
