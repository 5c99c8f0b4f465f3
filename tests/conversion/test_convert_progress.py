# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert on its way: interrupted, with a time limit, and with a progress bar."""

from __future__ import annotations

import itertools
import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, attempt_module, convert_module, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library, usage
from sparsekernels.conversion import modes
from sparsekernels.conversion import progress as progress_module
from sparsekernels.conversion.facts import Note
from sparsekernels.conversion.progress import Progress
from sparsekernels.conversion.report import Ground
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Net(nn.Module):
    """It calls `on_call` whenever it runs, and keeps a count."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.calls: list[int] = []
        self.on_call: Callable[[], object] = int

    def forward(self, x: Tensor) -> Tensor:
        self.on_call()
        self.calls.append(len(self.calls))
        return self.layers(x) + torch.rand(())


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def pruned(training: bool) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    model = Net().train(training)
    model.layers[3].eval()
    model.layers[2].register_forward_hook(lambda *_: None)
    prune_(model, "random", 0.8)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model, torch.randn(2, 4, 8, 8)


def state_of(model: nn.Module) -> list[Any]:
    """Everything that there is to be compared: objects by their ids, tensors by their elements as well."""
    found: list[Any] = [torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_num_threads()]
    for name, module in model.named_modules():
        found += [name, type(module)]
        for key, value in sorted(vars(module).items()):
            if key not in ("_modules", "_parameters", "_buffers", "on_call"):
                found.append((key, value.copy() if isinstance(value, dict | list) else value))
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            found.append(
                (key, id(tensor), None if tensor is None else tensor.tolist(), id(getattr(tensor, "grad", None)))
            )
    return found


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_an_interrupt_leaves_the_model_as_it_was(prefer: Prefer, training: bool, converted: bool) -> None:
    """Wherever in `convert` it comes: in any of the model's runs, raised there, or as a signal during it."""
    prefer(FINE, GRAPH, LAYERS)
    model, x = pruned(training)
    if converted:
        sk.convert(model, x)
    before = state_of(model)
    for number in range(30):
        calls = itertools.count()  # which convert does not put back

        def on_call(number: int = number, calls: Iterator[int] = calls) -> None:
            if next(calls) == number:
                if (number + converted) % 2:  # the other one where it is the other way round
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGINT)

        model.on_call = on_call
        try:
            sk.convert(model, x)
        except KeyboardInterrupt:
            assert state_of(model) == before, number
        else:
            break
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert number >= 4


def test_a_signal_at_any_time(prefer: Prefer) -> None:
    """Also where no code of the model runs."""
    prefer(FINE, GRAPH, LAYERS)
    interrupted = 0
    for number in range(12):
        model, x = pruned(True)
        before = state_of(model)
        timer = threading.Timer(0.004 * number, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            sk.convert(model, x)
            timer.join()  # it came later
        except KeyboardInterrupt:
            timer.join()
            interrupted += not list(graphs_of(model))
            assert list(graphs_of(model)) or state_of(model) == before
    assert interrupted


def test_rounds_that_are_disturbed_end_at_a_signal_and_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: where nothing is measured undisturbed, they go on for half a second and more."""
    monkeypatch.setattr(usage.Usage, "disturbs", lambda *_: True)
    model, x = pruned(False)
    before = state_of(model)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sk.convert(model, x)
    assert state_of(model) == before
    report = sk.convert(model, x, max_seconds=0.3)
    assert Note.LIMIT in {fact.kind for fact in report.facts}
    sk.revert(model)
    assert state_of(model) == before


def test_the_second_interrupt_does_not_wait(prefer: Prefer) -> None:
    prefer(FINE, GRAPH, LAYERS)
    model, x = pruned(False)
    before, reached = state_of(model), queue.SimpleQueue()  # type: ignore[var-annotated]  # convert puts lists back

    def on_call() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        reached.put("one")
        os.kill(os.getpid(), signal.SIGINT)
        reached.put("two")

    model.on_call = on_call
    with pytest.raises(KeyboardInterrupt):
        sk.convert(model, x)
    assert reached.get_nowait() == "one"
    assert reached.empty()
    assert state_of(model) == before


def test_in_another_thread(prefer: Prefer) -> None:
    """Which cannot set what happens at a signal."""
    prefer(FINE, GRAPH, LAYERS)
    model, x = pruned(False)
    reports: list[Any] = []
    thread = threading.Thread(target=lambda: reports.append(sk.convert(model, x)))
    thread.start()
    thread.join()
    assert reports[0].converted


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), True, "2"])
def test_limits_that_are_none(limit: Any) -> None:
    model, x = pruned(False)
    expected = TypeError if isinstance(limit, bool | str) else ValueError
    with pytest.raises(expected, match="max_seconds"):
        sk.convert(model, x, max_seconds=limit)


@pytest.mark.parametrize("training", [False, True])
def test_a_limit_that_is_over_at_once(training: bool) -> None:
    model, x = pruned(training)
    before = state_of(model)
    report = sk.convert(model, x, max_seconds=1e-6)
    assert state_of(model) == before
    assert not report.converted
    assert {row.ground for row in report.layers} == {Ground.LIMIT}
    assert all("not measured within max_seconds" in row.reason for row in report.layers)
    (fact,) = [fact for fact in report.facts if fact.kind is Note.LIMIT]
    assert fact.operands["seconds"] == 1e-6
    assert "2 of 2 layers" in str(fact)
    assert "max_seconds" in report.to_json()
    assert "No faster" not in " ".join(report.notes)


def test_a_limit_that_is_not_met_changes_nothing(prefer: Prefer) -> None:
    prefer(FINE, GRAPH, LAYERS)
    model, x = pruned(False)
    report = sk.convert(model, x, max_seconds=600)
    assert [row.name for row in report.converted] == ["layers.0", "layers.3"]
    assert not any(fact.kind is Note.LIMIT for fact in report.facts)


def test_what_promises_most_is_measured_first(monkeypatch: pytest.MonkeyPatch, clock: Prefer) -> None:
    """And what is left becomes what the most similar of it became."""
    clock(FINE, LAYERS)
    sizes = [(8, 8), (8, 64), (64, 32), (32, 4)]
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes)).eval()
    prune_(model, "random", 0.6)
    order: list[str] = []
    genuine = attempt_module.decide

    def decide(layer: Any, *rest: Any, may_begin: bool) -> Any:
        order.append(layer.name)
        return genuine(layer, *rest, may_begin=may_begin and len(order) < 3)

    monkeypatch.setattr(attempt_module, "decide", decide)
    report = sk.convert(model, torch.randn(16, 8), max_seconds=600)
    assert order == ["2", "1", "3", "0"]
    rows = {row.name: row for row in report.layers}
    assert {name for name, row in rows.items() if row.ground is Ground.LIMIT} == {"0", "3"}
    assert rows["0"].measured_on == rows["3"].measured_on == "1"
    assert "as 1, the measured layer most like it" in rows["3"].reason
    assert {row.decision for row in report.layers} == {FINE}


def test_one_run_of_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch, clock: Prefer) -> None:
    """Is enough where it took so much longer and there is no time for more; the report says so."""
    monkeypatch.setattr(usage.Interruptions, "DISTURBING", math.inf)
    clock(FINE, GRAPH)
    model, x = pruned(False)
    monkeypatch.setattr(attempt_module.Attempt, "_decide", _in_time(attempt_module.Attempt._decide))
    monkeypatch.setattr(attempt_module.Attempt, "_offers", _in_time(attempt_module.Attempt._offers))
    monkeypatch.setattr(modes.Inference, "seconds", property(lambda self: 0.5, lambda self, value: None), raising=False)
    genuine = Progress.stop
    monkeypatch.setattr(Progress, "stop", lambda self, reserve=0.0: genuine(self, 0.0 if reserve == 0.0 else 1e9))
    report = sk.convert(model, x, max_seconds=600)
    assert report.runs == 1
    assert "before about 500 ms (about 250x, by one run, on " in report.summary()
    assert any("the model as it was (its time is that of one run)" in note for note in report.notes)


def test_time_that_is_short_at_the_end(monkeypatch: pytest.MonkeyPatch, clock: Prefer) -> None:
    """The model as it was is not run once more."""
    clock(FINE, GRAPH)
    model, x = pruned(False)
    monkeypatch.setattr(attempt_module.Attempt, "_decide", _in_time(attempt_module.Attempt._decide))
    genuine = Progress.stop
    monkeypatch.setattr(Progress, "stop", lambda self, reserve=0.0: genuine(self, 0.0 if reserve == 0.0 else 1e9))
    report = sk.convert(model, x, max_seconds=600)
    assert report.converted
    assert "Not measured:" in " ".join(report.notes)


def _in_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, for which there is time enough."""

    def call(self: Any, *args: Any) -> Any:
        pace, self._pace = self._pace, Progress(False, float("inf"))
        try:
            return function(self, *args)
        finally:
            self._pace = pace

    return call


def test_the_bar(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """On request, and on a terminal. What the model prints is not its business."""
    prefer(FINE, GRAPH, LAYERS)
    printed: dict[bool | None, str] = {}
    for show in (False, None, True):
        model, x = pruned(False)
        streams: queue.SimpleQueue[int] = queue.SimpleQueue()  # convert puts sets back
        model.on_call = lambda streams=streams: [streams.put(id(one)) for one in (sys.stdout, sys.stderr)]
        sk.convert(model, x, progress=show)
        assert {streams.get_nowait() for _ in range(streams.qsize())} == {id(sys.stdout), id(sys.stderr)}
        out, printed[show] = capfd.readouterr()
        assert not out
    assert not printed[False]
    assert not printed[None]
    monkeypatch.setattr(progress_module, "_is_terminal", lambda: True)
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()
    genuine = Progress.at
    monkeypatch.setattr(Progress, "at", lambda self, what, *counts: (seen.put(what), genuine(self, what, *counts)))
    model, x = pruned(False)
    count = threading.active_count()
    model.on_call = lambda: seen.put(f"{threading.active_count() - count} threads")
    sk.convert(model, x)
    bars = [seen.get_nowait() for _ in range(seen.qsize())]
    assert {"the first run", "measuring layers", "checking results", "timing the whole model"} <= set(bars)
    assert "0 threads" in bars
    assert len([one for one in set(bars) if one.endswith("threads")]) == 1


def test_without_rich(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "has_rich", lambda: False)
    monkeypatch.setattr(convert_module, "has_rich", lambda: False)
    monkeypatch.setattr(progress_module, "_is_terminal", lambda: True)
    prefer(FINE, GRAPH, LAYERS)
    model, x = pruned(False)
    with pytest.raises(ImportError, match="rich"):
        sk.convert(model, x, progress=True)
    with pytest.raises(TypeError, match="progress"):
        sk.convert(model, x, progress="yes")  # type: ignore[arg-type]
    assert sk.convert(model, x).converted
