# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How a layer on a GPU learns of nonzeros outside of its pattern: which calls wait, and when the others know.

A GPU is not needed: answers come when the test says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.sparse_conv2d import looks as module
from sparsekernels.ops.sparse_conv2d.looks import EVERY, Looks, count


class Later:
    """An answer that is there once `arrive` was called."""

    started: ClassVar[list[Later]] = []

    def __init__(self, number: Tensor) -> None:
        self.number, self.is_there = int(number), False
        Later.started.append(self)

    def read(self) -> int | None:
        return self.number if self.is_there else None


class Layer:
    """A weight, its pattern, and calls."""

    def __init__(self) -> None:
        mask = torch.rand(16, 12) < 0.3
        self.weight = torch.randn(16, 12) * mask
        self.pattern = sk.Unstructured.from_dense(self.weight, mask)
        self.outside = int((~mask).flatten().nonzero()[0])
        self.looks, self.same = Looks(), False

    def call(self, trained: bool = False) -> int:
        same, self.same = self.same, True
        return self.looks.outside(self.pattern, self.weight, same, self.weight._version, trained)

    def write(self, value: float, data: bool = False) -> None:
        (self.weight.data if data else self.weight).view(-1)[self.outside] = value


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The answers that calls waited for."""
    found: list[int] = []
    wait = Looks._wait

    def counted(self: Looks, *given: object) -> int:
        found.append(wait(self, *given))  # type: ignore[arg-type]
        return found[-1]

    Later.started = []
    monkeypatch.setattr(Looks, "_wait", counted)
    monkeypatch.setattr(module, "Answer", Later)
    monkeypatch.setattr(module, "is_captured", lambda _: False)
    return found


def test_count() -> None:
    layer = Layer()
    assert int(count(layer.pattern, layer.weight)) == 0
    layer.write(float("nan"))
    assert int(count(layer.pattern, layer.weight)) == 1

    class ByMask:
        mask = layer.pattern.mask

    assert int(count(ByMask(), layer.weight)) == 1


def test_a_weight_that_stays_is_waited_for_once(waits: list[int]) -> None:
    layer = Layer()
    for _ in range(EVERY - 1):
        assert layer.call() == 0
    assert waits == [0]
    assert not Later.started


def test_another_version_is_waited_for(waits: list[int]) -> None:
    layer = Layer()
    layer.call()
    layer.write(1.0)
    assert layer.call() == 1
    assert layer.call() == 1
    layer.write(0.0)
    assert layer.call() == 0
    layer.call()
    assert waits == [0, 1, 1, 0]


def test_another_tensor_is_waited_for(waits: list[int]) -> None:
    layer = Layer()
    layer.call()
    layer.weight = layer.weight.clone()
    layer.same = False
    layer.call()
    layer.looks = Looks()
    layer.call()
    assert waits == [0, 0, 0]


def test_steps_of_training_do_not_wait(waits: list[int]) -> None:
    layer = Layer()
    layer.call(trained=True)
    for step in range(5):
        layer.weight.mul_(0.9)
        assert layer.call(trained=True) == 0
        assert len(Later.started) == step + 1
        Later.started[-1].is_there = True
    assert waits == [0]


def test_what_a_step_makes_counts_from_the_answer_on(waits: list[int]) -> None:
    layer = Layer()
    layer.call(trained=True)
    layer.write(1.0)
    assert layer.call(trained=True) == 0
    assert layer.call(trained=True) == 0
    assert len(Later.started) == 1
    Later.started[-1].is_there = True
    assert layer.call(trained=True) == 1
    assert waits == [0, 1]
    layer.write(0.0)
    assert layer.call(trained=True) == 0
    assert waits == [0, 1, 0]


def test_a_write_past_the_version_is_found_after_some_calls(waits: list[int]) -> None:
    layer = Layer()
    layer.call()
    layer.write(1.0, data=True)
    for _ in range(EVERY):
        layer.call()
    assert len(Later.started) == 1
    Later.started[-1].is_there = True
    assert layer.call() == 1
    assert waits == [0, 1]


def test_an_answer_of_before_is_asked_again(waits: list[int]) -> None:
    layer = Layer()
    layer.call(trained=True)
    layer.write(1.0)
    layer.call(trained=True)
    layer.write(0.0)
    Later.started[-1].is_there = True
    assert layer.call(trained=True) == 0
    assert waits == [0, 0]


def test_a_captured_graph_needs_a_call_before(waits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    monkeypatch.setattr(module, "is_captured", lambda _: True)
    with pytest.raises(RuntimeError, match="expected a call of the layer, with its weight as it is, before"):
        layer.call()
    monkeypatch.setattr(module, "is_captured", lambda _: False)
    layer.same = False
    layer.call()
    monkeypatch.setattr(module, "is_captured", lambda _: True)
    for _ in range(2 * EVERY):
        assert layer.call() == 0
    assert waits == [0]
    assert not Later.started


def test_a_weight_that_was_written_since_is_not_captured(waits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    layer.call()
    layer.write(1.0)
    monkeypatch.setattr(module, "is_captured", lambda _: True)
    with pytest.raises(RuntimeError, match="with its weight as it is"):
        layer.call()
    assert layer.call(trained=True) == 0  # the step is part of the graph
    monkeypatch.setattr(module, "is_captured", lambda _: False)
    assert layer.call() == 1


def test_the_last_step_counts_though_an_answer_was_on_its_way(waits: list[int]) -> None:
    layer = Layer()
    layer.call(trained=True)
    layer.weight.mul_(0.9)
    layer.call(trained=True)
    layer.write(1.0)
    layer.call(trained=True)
    assert len(Later.started) == 1  # it has not arrived
    assert layer.call() == 1
    assert waits == [0, 1]


def test_each_answer_is_followed_by_the_next_count(waits: list[int]) -> None:
    layer = Layer()
    layer.call(trained=True)
    layer.weight.mul_(0.9)
    layer.call(trained=True)
    layer.write(1.0)
    layer.call(trained=True)
    Later.started[-1].is_there = True
    assert layer.call(trained=True) == 0
    assert len(Later.started) == 2
    Later.started[-1].is_there = True
    assert layer.call(trained=True) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_layers_on_a_gpu_do_not_wait() -> None:
    mask = torch.rand(64, 64) < 0.1
    layer = sk.nn.SparseLinear.from_dense(torch.nn.Linear(64, 64).cuda(), mask.cuda())
    x = torch.randn(8, 64, device="cuda")
    layer(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            layer(x).sum().backward()
            with torch.no_grad():
                layer.weight.mul_(0.9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        layer(x)
        with torch.cuda.graph(graph):
            y = layer(x)
        graph.replay()
        assert torch.equal(y, layer(x))


def test_another_thread_takes_the_answer_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look whether there is one and the reading of it."""
    layer, places, weight = Looks(), Places(), torch.ones(2, 2)
    layer._clean = places, 0, weight.data_ptr()
    layer._answer = Taken()

    def between(tensor: Tensor) -> bool:
        layer._wait(places, weight, (places, 1, tensor.data_ptr()))
        return False

    monkeypatch.setattr(module, "is_captured", between)
    assert layer.outside(places, weight, same=True, version=0, trained=True) == 0


class Places:
    mask = torch.ones(2, 2, dtype=torch.bool)


class Taken:
    def read(self) -> int | None:
        return 0
