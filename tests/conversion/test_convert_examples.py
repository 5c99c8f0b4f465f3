# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion on several example inputs, in none of which the model may become slower."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, FINE, LAYERS, Prefer, assert_agree, attempt_module
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library, usage
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion.measure import Times
from sparsekernels.nn.replacement import has_rows
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class _Net(nn.Module):
    """A language model in small: the second layer may be asked for the last token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        x = self.body(x).relu()
        return self.head(x[-1:]) if last else x


def _net() -> nn.Module:
    model = _Net().eval()
    prune_(model, "random", 0.8)
    return model


PROMPT, STEP = ((torch.randn(6, 16),), {"last": True}), ((torch.randn(1, 16),), {})


def _speeds(monkeypatch: pytest.MonkeyPatch, alone: list[float], whole: list[float]) -> None:
    """In the place of the clock: the speedups of everything in one example after the other, time after time."""
    monkeypatch.setattr(usage.Interruptions, "DISTURBING", math.inf)
    for module, speedups, base in ((decide_module, alone, DENSE), (attempt_module, whole, "as before")):
        asked = [0]

        def times_of(
            calls: Mapping[str, Callable[[], object]],
            *_: Any,
            speedups: list[float] = speedups,
            base: str = base,
            asked: list[int] = asked,
            **__: Any,
        ) -> Times:
            gain = speedups[asked[0] % len(speedups)]
            asked[0] += 1
            return Times({name: [1e-3 if name == base else 1e-3 / gain] * 3 for name in calls})

        monkeypatch.setattr(module, "times_of", times_of)


def test_the_mean_decides_where_nothing_is_slower(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _net()
    dense = copy.deepcopy(model)
    clock(FINE)
    _speeds(monkeypatch, [3.8, 1.05], [4.0, 1.0])
    report = sk.convert(model, example_inputs=[PROMPT, STEP])
    assert [row.gains[FINE] for row in report.layers] == pytest.approx([1.9975, 1.9975], rel=1e-3)
    assert [row.decision for row in report.layers] == [FINE, FINE]
    assert report.speedup == pytest.approx(2.0)
    assert [one.speedup for one in report.examples] == pytest.approx([4.0, 1.0])
    prompt, step = report.notes[-2:]
    assert prompt == "example_inputs[0] (a tensor of shape [6, 16], last=a bool): 0.25 ms, before 1 ms (4.00x)"
    assert step == "example_inputs[1] (a tensor of shape [1, 16]): 1 ms, before 1 ms (1.00x)"
    assert "2.00x by the geometric mean over 2 examples" in report.summary()
    assert len(json.loads(report.to_json())["examples"]) == 2
    assert_agree(model, dense, PROMPT[0][0])


def test_the_example_that_decides_is_named(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer, in training, where none falls back to its dense weight, and of the model."""
    model = _net().train()
    clock(FINE)
    _speeds(monkeypatch, [4.0, 0.9, 2.0, 2.0], [4.0, 1.0])
    report = sk.convert(model, example_inputs=[PROMPT, STEP])
    assert [row.decision for row in report.layers] == [DENSE, FINE]
    assert "fine-grained would be 1.90x (but 0.90x with example_inputs[1])" in report.layers[0].reason
    sk.revert(model)
    _speeds(monkeypatch, [2.0], [4.0, 0.9])
    report = sk.convert(model, example_inputs=[PROMPT, STEP])
    assert not report.converted
    assert not report.examples
    assert report.speedup is None
    name = "example_inputs[1] (a tensor of shape [1, 16])"
    assert f"Running as layers one by one would be faster on the whole, but 0.90x with {name}." in report.notes


def test_a_layer_is_dense_where_it_is_slower(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is judged by the example in which it is not; one that gains only once it falls back to nothing stays."""
    model = _net()
    clock(FINE)
    _speeds(monkeypatch, [4.0, 0.9, 1.0, 2.0, 0.9, 1.0, 1.0], [4.0, 1.0])
    report = sk.convert(model, example_inputs=[PROMPT, STEP])
    assert [row.decision for row in report.layers] == [FINE, DENSE]
    assert report.layers[0].gains[FINE] == pytest.approx(2.0)
    assert has_rows(model.body.dense_rows, 1)
    assert not has_rows(model.body.dense_rows, 6)


@pytest.mark.parametrize("again", [1.0, 0.96])
def test_a_model_slower_by_little_is_measured_once_more(
    again: float, clock: Prefer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _net()
    clock(FINE, LAYERS)
    _speeds(monkeypatch, [2.0], [4.0, 0.95, 4.0, again])
    report = sk.convert(model, example_inputs=[PROMPT, STEP])
    assert bool(report.converted) == (again == 1.0)
    assert any("but 0.96x with example_inputs[1]" in note for note in report.notes) == (again == 0.96)


def test_results_are_compared_in_each(prefer: Prefer) -> None:
    """An offer that is wrong in the second alone is refused; in training mode by each one's passes as well."""
    prefer(FINE, LAYERS)

    class Peeks(_Net):
        def forward(self, x: Tensor, last: bool = False) -> Tensor:
            result: Tensor = super().forward(x, last)
            return result if last or isinstance(self.body, sk.nn.SparseLinear) else result + 1

    model = Peeks().eval()
    prune_(model, "random", 0.8)
    assert sk.convert(model, example_inputs=[PROMPT]).converted
    sk.revert(model)
    for training in (False, True):
        report = sk.convert(model.train(training), example_inputs=[PROMPT, STEP])
        assert not report.converted
        assert any("layers one by one was rejected: its results differed" in note for note in report.notes)
        assert sk.convert(_net().train(training), example_inputs=[PROMPT, STEP]).converted


@pytest.mark.parametrize("training", [False, True])
def test_the_time_limit_is_for_all_of_them(training: bool) -> None:
    """Whatever it leaves out, results stay what they were."""
    for seconds in (1e-6, 0.3):
        model = _net().train(training)
        dense = copy.deepcopy(model)
        report = sk.convert(model, example_inputs=[PROMPT, STEP], max_seconds=seconds)
        assert any("max_seconds" in note for note in report.notes) or seconds > 0.1
        for args, kwargs in (PROMPT, STEP):
            torch.testing.assert_close(model(*args, **kwargs), dense(*args, **kwargs))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"example_input": torch.ones(1, 16), "example_inputs": [STEP]}, TypeError, "or example_inputs, got both"),
        ({"example_kwargs": {}, "example_inputs": [STEP]}, TypeError, "or example_inputs, got both"),
        ({"example_inputs": torch.ones(1, 16)}, TypeError, "to be a list of pairs .args, kwargs., got a Tensor"),
        ({"example_inputs": []}, ValueError, "of at least one pair"),
        ({"example_inputs": [STEP, torch.ones(2, 16)]}, TypeError, r"example_inputs\[1\] to be a pair"),
        ({"example_inputs": [(torch.ones(2, 16), {})]}, TypeError, r"example_inputs\[0\] to be a pair"),
        ({"example_inputs": [((torch.ones(0, 16),), {})]}, ValueError, r"example_inputs\[0\] of tensors with elements"),
        (
            {"example_inputs": [STEP, ((), {})]},
            ValueError,
            r"example_inputs\[1\] that model .of torch.float32 on cpu. can be called with, got \(\)",
        ),
    ],
)
def test_what_is_no_list_of_calls(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    model = _net()
    before = list(model.modules())
    with pytest.raises(error, match=message):
        sk.convert(model, **kwargs)
    assert list(model.modules()) == before
