# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""`convert` on a GPU: what it measures by, and what it makes.

Where there is no GPU, `gpu` lets the CPU stand for one: torch multiplies by the weights of layers, graphs run the
Triton kernels in the interpreter. Clocks are held to CUDA events that count. At the end, tests that need a GPU.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graph_of, run
from torch import Tensor, nn

pytest.importorskip("triton")

import sparsekernels as sk
from sparsekernels import clocks
from sparsekernels._torch import FakeTensorMode
from sparsekernels.clocks import CpuClock, CudaClock, SynchronizedClock, clock_on
from sparsekernels.conversion import measure, rows
from sparsekernels.conversion.facts import LayerObstacle
from sparsekernels.conversion.graph import fused
from sparsekernels.conversion.watch.tensors import Tensors
from sparsekernels.nn import sparse
from sparsekernels.ops.sparse_conv2d import bitmap as bitmap_module
from sparsekernels.ops.sparse_conv2d import expanded
from sparsekernels.pruning import prune_
from sparsekernels.timing import Effort, samples_of
from sparsekernels.usage import Disturbed


def needs_gpu(test: Any) -> Any:
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test))


class Net(nn.Module):
    """Convolutions with a residual sum between them, and a linear layer on as many rows as there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        return self.last((y + self.second(y)).relu().flatten(1))


def net() -> nn.Module:
    model = Net().eval()
    prune_(model, "random", 0.8)
    return model


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The CPU stands for a GPU with Triton; what its kernels were called for is listed."""
    calls: list[str] = []

    def kernel(input: Tensor, *arguments: Any) -> Tensor:
        calls.append("x".join(map(str, input.shape)))
        return expanded.forward(input, *arguments)

    monkeypatch.setattr(fused, "may_plan", lambda pattern: False)
    monkeypatch.setattr(fused, "sparse_conv2d_kernel", kernel)
    monkeypatch.setattr(sparse, "is_for_torch_here", lambda pattern, weight: True)
    return calls


def test_a_graph_runs_the_kernels_of_the_gpu(gpu: list[str], prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is behind a layer in the same call; and its patterns' tables are made while it is converted."""
    made: list[int] = []
    make = bitmap_module._made
    monkeypatch.setattr(bitmap_module, "_made", lambda *of: made.append(1) or make(*of))
    model, x = net(), torch.randn(2, 3, 4, 4)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    report = sk.convert(model, x)
    assert [row.decision for row in report.layers] == [FINE] * 3
    assert len(made) >= 3
    made.clear()
    gpu.clear()
    assert_agree(model, dense, x)
    assert gpu == ["2x3x4x4", "2x8x4x4", "2x128x1x1"]
    assert "relu" not in str(graph_of(model))
    assert made == []


def test_layers_one_by_one_are_torchs(gpu: list[str], prefer: Prefer) -> None:
    model, x = net(), torch.randn(2, 3, 4, 4)
    dense = copy.deepcopy(model)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    assert isinstance(model.get_submodule("last"), sk.nn.SparseLinear)
    gpu.clear()
    assert all(map(torch.equal, run(model, x), run(dense, x)))
    assert gpu == []


def test_training_keeps_zeros(gpu: list[str], prefer: Prefer) -> None:
    model, x = net().train(), torch.randn(4, 3, 4, 4)
    zeros = {name: one == 0 for name, one in model.named_parameters() if one.dim() > 1}
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for name, one in model.named_parameters():
        if one.dim() > 1:
            assert not one[zeros[name]].any()
            assert one.grad is not None
            assert one.grad.any()


@pytest.mark.parametrize(("seconds", "decision"), [(0.98, DENSE), (0.9, FINE)])
def test_a_layer_has_to_be_faster_by_a_margin(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, seconds: float, decision: str
) -> None:
    """Layers that take as long as dense ones, or less by what two measurements differ by, stay."""
    known = dict.fromkeys((FINE, "dense_rows", "packed_dense_rows", GRAPH), seconds)

    def samples(calls: Mapping[str, Callable[[], object]], *_: object) -> dict[str, list[float]]:
        return {name: [known.get(name, 1.0)] * 5 for name in calls}

    monkeypatch.setattr(measure, "samples_of", samples)
    model = net()
    report = sk.convert(model, torch.randn(2, 3, 4, 4), decisions=[FINE])
    assert {row.decision for row in report.layers} == {decision}


# What a graph looks at in each call: not at what lies on a GPU, for which the host would wait


def test_tensors_that_are_elsewhere_are_not_read() -> None:
    """Such as those of "meta", which nobody can read: versions, addresses, sizes and dtypes tell."""
    here, there = torch.ones(3), torch.ones(4, device="meta")
    holder = {"here": here, "there": there}

    def watched() -> Tensors:
        return Tensors([(holder, "here", here), (holder, "there", there)], content=True)

    tensors = watched()
    assert not tensors.changed()
    there.add_(1)
    assert tensors.changed()
    tensors = watched()
    here.numpy()[0] = 5.0
    assert tensors.changed()
    tensors = watched()
    there.data = torch.ones(5, device="meta")
    assert tensors.changed()
    tensors = watched()
    holder["there"] = torch.ones(5, device="meta")
    assert tensors.changed()


# Clocks


class Device:
    """Stands for torch.cuda: a device whose time passes by one for each call, and what was asked of it in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.milliseconds = 0.0
        self.current = "the current one"
        device = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing
                self.at: float | None = None

            def record(self) -> None:
                device.log.append(f"record on {device.current}")
                self.at = device.milliseconds

            def elapsed_time(self, other: Event) -> float:
                assert device.log[-1].startswith("synchronize")  # else the second one may be to come
                assert self.at is not None
                assert other.at is not None
                return other.at - self.at

        @contextlib.contextmanager
        def on(which: torch.device | None) -> Iterator[None]:
            before = self.current
            self.current = before if which is None else str(which)
            yield
            self.current = before

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", on)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def synchronize(self, which: torch.device | None = None) -> None:
        self.log.append(f"synchronize {self.current if which is None else which}")

    def call(self) -> None:
        self.log.append("call")
        self.milliseconds += 1.0


def test_the_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events around the calls, nothing else between them, on the device that is asked for."""
    device = Device(monkeypatch)
    for which, name in ((None, "the current one"), (torch.device("cuda", 1), "cuda:1")):
        device.log.clear()
        clock = CudaClock(which)
        assert clock.seconds(device.call, 3) == pytest.approx(3e-3)
        record, synchronize = f"record on {name}", f"synchronize {name}"
        assert device.log == [synchronize, record, "call", "call", "call", record, synchronize]
        assert device.current == "the current one"


def test_the_clock_of_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    clock = SynchronizedClock([torch.device("cuda", 0), torch.device("cuda", 1)])
    assert clock.seconds(device.call, 2) > 0
    both = ["synchronize cuda:0", "synchronize cuda:1"]
    assert device.log == [*both, "call", "call", *both]


def test_which_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert isinstance(clock_on([]), CpuClock)
    assert isinstance(clock_on([first]), CudaClock)
    assert isinstance(clock_on([first, second]), SynchronizedClock)


def test_samples_on_a_gpu_take_turns_and_are_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another program does on the host says nothing of the device."""
    device = Device(monkeypatch)
    monkeypatch.setattr("sparsekernels.usage.Usage.disturbs", lambda *_: True)
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        device.call()

    calls = {name: lambda name=name: call(name) for name in "ab"}
    effort = Effort(seconds=0.0, sample=1e-6, least=4, most=4, slow=0.0)
    found = samples_of(calls, effort, clock=CudaClock())
    assert found == {"a": [pytest.approx(1e-3)] * 4, "b": [pytest.approx(1e-3)] * 4}
    assert not any(isinstance(one, Disturbed) for some in found.values() for one in some)
    assert len(set(order[:2])) == 2
    on_host = samples_of(calls, effort)
    assert all(isinstance(one, Disturbed) for some in on_host.values() for one in some)


def test_convert_measures_by_the_clock_of_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def clock_of_gpus(gpus: tuple[torch.device, ...]) -> CpuClock:
        asked.append([str(one) for one in gpus])
        return CpuClock()

    monkeypatch.setattr(measure, "clock_on", clock_of_gpus)
    device = Device(monkeypatch)
    effort = Effort(seconds=0.0, sample=1e-6, least=1, most=1)
    with FakeTensorMode():
        tensors = [torch.empty(1, device=one) for one in ("cuda:1", "cpu", "cuda:0", "cuda:1")]
    with measure.timed_on(tensors):
        measure.times_of({"a": lambda: None}, effort)
        measure.now()
    assert device.log == ["synchronize cuda:1", "synchronize cuda:0"]
    measure.times_of({"a": lambda: None}, effort)
    measure.now()
    assert asked == [["cuda:1", "cuda:0"], []]
    assert len(device.log) == 2


def test_the_clock_is_that_of_the_model(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its parameters, buffers and examples; and the previous one afterwards, whatever happens."""
    seen: list[Tensor] = []

    @contextlib.contextmanager
    def timed_on(tensors: Iterator[Tensor]) -> Iterator[None]:
        seen.extend(tensors)
        yield

    monkeypatch.setattr("sparsekernels.conversion.attempt.timed_on", timed_on)
    model, x = net(), torch.randn(2, 3, 4, 4)
    sk.convert(model, x, decisions=[])
    ids = set(map(id, seen))
    assert ids >= {id(one) for one in (*model.parameters(), *model.buffers(), x)}
    with pytest.raises(ZeroDivisionError), measure.timed_on([]):
        raise ZeroDivisionError
    assert measure._gpus == ()


def test_caches_are_emptied_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice what the second-level cache of a GPU holds, there; never more than the model has parameters."""

    class Properties:
        L2_cache_size = 1000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    made: list[tuple[int, str]] = []

    def zeros(count: int, device: torch.device) -> Tensor:
        made.append((count, str(device)))
        return torch.ones(1)

    monkeypatch.setattr(rows.torch, "zeros", zeros)
    for parameters in (400, 10**9):
        with rows.emptied(parameters, torch.device("cuda", 1))():
            pass
        rows.emptied(parameters, torch.device("cpu"))
    assert made == [(100, "cuda:1"), (100, "cpu"), (500, "cuda:1"), ((64 << 20) // 4, "cpu")]


def test_other_devices_are_left() -> None:
    report = sk.convert(nn.Sequential(nn.Linear(8, 8, device="meta")).eval(), torch.randn(2, 8, device="meta"))
    obstacle = report.layers[0].obstacle
    assert obstacle is not None
    assert obstacle.kind is LayerObstacle.DEVICE


def test_clocks_are_those_of_the_timer() -> None:
    from sparsekernels import timing

    assert timing.clock_of is clocks.clock_of


# On a GPU


def assert_close_on_gpu(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@needs_gpu
@pytest.mark.parametrize("choice", [(FINE, GRAPH), (FINE, LAYERS), (DROPPED, GRAPH)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_converted_on_a_gpu(choice: tuple[str, str], dtype: torch.dtype, prefer: Prefer) -> None:
    """Eager, captured as a CUDA graph, on another stream, and compiled: the same as the dense model."""
    model = net()
    if choice[0] == DROPPED:
        with torch.no_grad():
            model.get_submodule("first").weight[:3] = 0
    model, x = model.to("cuda", dtype), torch.randn(4, 3, 4, 4, device="cuda", dtype=dtype)
    dense = copy.deepcopy(model)
    prefer(*choice)
    sk.convert(model, x)
    expected = run(dense, x)
    assert_close_on_gpu(run(model, x), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = run(model, x)
    torch.cuda.current_stream().wait_stream(stream)
    assert_close_on_gpu(found, expected)
    graph = torch.cuda.CUDAGraph()
    static = x.clone()
    with torch.inference_mode():
        with torch.cuda.graph(graph):
            captured = model(static)
        other = torch.randn_like(x)
        static.copy_(other)
        graph.replay()
        assert_close_on_gpu([captured.clone()], run(dense, other))
    compiled = torch.compile(model)
    assert_close_on_gpu(run(compiled, x), expected)


@needs_gpu
def test_convert_on_a_gpu_is_not_slower() -> None:
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(4))).eval().to("cuda", torch.bfloat16)
    prune_(model, "random", 0.9)
    report = sk.convert(model, torch.randn(64, 2048, device="cuda", dtype=torch.bfloat16))
    assert report.speedup is None or report.speedup >= 0.97


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_the_second_gpu(prefer: Prefer) -> None:
    model, x = net().to("cuda:1"), torch.randn(4, 3, 4, 4, device="cuda:1")
    expected = run(model, x)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert_close_on_gpu(run(model, x), expected)
