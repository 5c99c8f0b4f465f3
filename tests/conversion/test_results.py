# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert, and what a model may return: how results are kept, looked at and compared."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy
import pytest
import torch
from conversion_checks import FINE, LAYERS, Prefer
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import agreement
from sparsekernels.conversion.agreement import are_close, differentiable, kept, leaves_of
from sparsekernels.conversion.facts import Way
from sparsekernels.pruning import prune_
from sparsekernels.testing import prefer

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@dataclasses.dataclass
class Output:
    """What a model may return; torch's pytrees do not know it."""

    scores: Tensor
    name: str


class Own(dict):
    """Neither do they know this."""


@dataclasses.dataclass(slots=True)
class WithSlots:
    scores: Tensor


@pytest.mark.parametrize("training", [True, False])
def test_results_in_an_object(prefer: Prefer, training: bool) -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Output:
            return Output(self.layer(x), "scores")

    model = Wraps().train(training)
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8)
    prefer(FINE, LAYERS)
    report = sk.convert(model, x)
    assert report.converted
    assert not any("has a gradient" in note for note in report.notes)
    torch.testing.assert_close(model(x).scores, dense(x).scores)


def test_a_model_without_gradients_in_training_mode(prefer: Prefer) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).train().requires_grad_(False)
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    assert any("has a gradient" in note for note in sk.convert(model, torch.randn(4, 8)).notes)


def test_a_result_that_cannot_be_looked_at_may_have_a_gradient(prefer: Prefer) -> None:
    """Its tensors are those that its class shows, whatever else raises when it is copied."""

    class Refuses(numpy.ndarray):
        def copy(self, order: Any = "C") -> Any:
            raise RuntimeError("not to be copied")

    class Closed:
        def __init__(self, scores: Tensor) -> None:
            self.scores = scores
            self.odd = numpy.zeros(1).view(Refuses)

    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Closed:
            return Closed(self.layer(x))

    model = Wraps().train()
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    notes = sk.convert(model, torch.randn(4, 8)).notes
    assert not any("has a gradient" in note for note in notes)


@pytest.mark.parametrize("conjugate", [False, True])
def test_complex_results_in_training_mode(conjugate: bool) -> None:
    """Whatever the clock says: torch has no gradient of a complex sum by itself."""

    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(self.layer(x))
            return spectrum.conj() if conjugate else spectrum

    model = Spectrum().train()
    prune_(model, "random", 0.9)
    dense, x = copy.deepcopy(model), torch.randn(256, 64)
    with sk.testing.prefer("fine-grained", "layers"):
        assert sk.convert(model, x).converted
    torch.testing.assert_close(model(x), dense(x), atol=1e-3, rtol=1e-3)
    sk.convert(model, x)
    torch.testing.assert_close(model(x), dense(x), atol=1e-3, rtol=1e-3)


def test_results_are_compared_whatever_they_are() -> None:
    ints = torch.arange(32)
    other = ints.clone()
    other[3] = 0
    assert are_close(other, ints)
    assert not are_close(ints + 1, ints)
    assert not are_close(torch.tensor([True, False]), torch.tensor([False, True]))
    assert are_close(torch.tensor([1 + 2j]), torch.tensor([1 + 2.0001j]))
    assert not are_close(torch.tensor([1 + 2j]), torch.tensor([0j]))
    assert are_close(Output(torch.ones(2), "a"), Output(torch.ones(2) * 1.0001, "a"))
    assert not are_close(Output(torch.ones(2), "a"), Output(torch.ones(2), "b"))
    assert not are_close(Output(torch.ones(2), "a"), Output(torch.zeros(2), "a"))
    assert are_close(slice(1, 2), slice(1, 2))
    assert not are_close("a", 1)
    assert are_close(Own(y=torch.ones(2)), Own(y=torch.ones(2) * 1.0001))
    assert not are_close(Own(y=torch.ones(2)), Own(y=torch.zeros(2)))
    assert not are_close(Own(y=torch.ones(2)), Own(z=torch.ones(2)))
    ones = numpy.ones(3, numpy.float32)
    assert are_close(ones, ones * numpy.float32(1.0001))
    assert not are_close(ones, ones * 0)
    assert are_close(WithSlots(torch.ones(2)), WithSlots(torch.ones(2)))
    assert not are_close(WithSlots(torch.ones(2)), WithSlots(torch.zeros(2)))
    assert are_close(1.0, 1.0001)
    assert not are_close(1.0, 1.1)
    assert are_close(math.nan, math.nan)
    assert not are_close(lambda: 1, lambda: 1)
    rings = [Own(), Own()]
    for ring, value in zip(rings, (1.0, 2.0), strict=True):
        ring["self"], ring["value"] = ring, torch.tensor(value)
    assert are_close(rings[0], rings[0])
    assert not are_close(*rings)
    assert [float(one) for one in leaves_of(rings)] == [1.0, 2.0]


def test_what_is_kept_of_a_result_does_not_change_with_it() -> None:
    ring = Own(y=[torch.ones(2), "a"])
    ring["self"] = ring
    for value, change in (
        (ring, lambda: ring["y"].append(1)),
        (output := Output(torch.ones(2), "a"), lambda: output.scores.zero_()),
        (slots := WithSlots(torch.ones(2)), lambda: slots.__setattr__(WithSlots.__slots__[0], torch.zeros(2))),
        (array := numpy.ones(3), lambda: array.fill(0)),
    ):
        as_it_was = kept(value)
        assert are_close(value, as_it_was)
        assert are_close(as_it_was, kept(value))
        change()
        assert not are_close(value, as_it_was)
    with torch.inference_mode():
        assert len(differentiable(kept((nn.Parameter(torch.ones(2)), torch.ones(2))))) == 1


def test_of_what_raises_when_it_is_looked_at_nothing_is_kept() -> None:
    class Refuses(dict):
        def items(self) -> Any:
            raise RuntimeError("no")

    one = Refuses()
    assert not are_close(one, kept(one))


def test_results_that_cannot_be_compared_are_no_error(prefer: Prefer) -> None:
    class Strange:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no")

        __hash__ = None

    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x), Strange()

    model = Returns().eval()
    prune_(model, "random", 0.7)
    prefer(FINE, LAYERS)
    report = sk.convert(model, torch.randn(4, 8))
    assert not report.converted
    assert any("results differed" in note for note in report.notes)
    assert not any("was not reliably faster" in note for note in report.notes)


@pytest.mark.parametrize(
    "error", [MemoryError("std::bad_alloc"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_no_memory_to_compare_is_no_other_result(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a copy of a result nor in its comparison; the report has the error."""

    class Starved:
        def __init__(self) -> None:
            self.tensor = torch.ones(2)

    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(agreement, "_copy_of", refuse)
    with pytest.raises(type(error), match=str(error)):
        kept(Starved())
    monkeypatch.undo()
    monkeypatch.setattr(agreement, "_are_numbers_close", refuse)
    with pytest.raises(type(error), match=str(error)):
        are_close(Starved(), Starved())
    net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU()).eval()
    prune_(net, "random", 0.9)
    with prefer("fine-grained"):
        report = str(sk.convert(net, torch.randn(1, 16, 8, 8)))
    assert f"was rejected: it raised {type(error).__name__}" in " ".join(report.split())
    assert "results differed" not in " ".join(report.split())


class WritesToItsArgument(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1.0)
        return torch.relu(self.layer(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_graph_that_did_not_run_in_the_check_does_not_run(memory_format: torch.memory_format) -> None:
    """In channels_last the modules run where something is written to an argument: nothing is known of the graph."""
    model = WritesToItsArgument().eval()
    prune_(model, "random", 0.8)
    with prefer(FINE, "graph", "layers"):
        report = sk.convert(model, torch.randn(2, 8, 8, 8).to(memory_format=memory_format))
    is_last = memory_format is torch.channels_last
    assert report.way is (Way.LAYERS if is_last else Way.GRAPH)
    assert any("the modules run" in note for note in report.notes) is is_last
