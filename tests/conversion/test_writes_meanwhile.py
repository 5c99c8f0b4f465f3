# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Another thread writes to parameters while the constants of a graph are made of them, and puts back what was there:
what they hold does not show it afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.conversion.graph import inference
from sparsekernels.pruning import prune_


def model_of() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, 4)).eval()
    prune_(model, "random", 0.8)
    return model


def written_to(weight: Tensor, meanwhile: Callable[[], Any]) -> Any:
    """What `meanwhile` gives while the weight is twice of what it was."""
    with torch.no_grad():
        weight.mul_(2)
        try:
            return meanwhile()
        finally:
            weight.div_(2)


def assert_same(model: nn.Module, dense: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_while_they_are_folded_anew(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(), torch.randn(2, 8, 7, 7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    (graph,) = graphs_of(model)
    plan: Any = graph._plan
    kind, folds = type(plan.fused[0]), []
    fold = kind.fold

    def fold_meanwhile(layer: Any) -> None:
        folds.append(layer)
        written_to(layer.parts[0].weight, lambda: fold(layer))

    with monkeypatch.context() as patch:
        patch.setattr(kind, "fold", fold_meanwhile)
        for one in (model, dense):
            with torch.no_grad():
                one[0].weight.mul_(1.5)
        for _ in range(4):
            assert_same(model, dense, x)
        assert folds
        assert plan.source is None
    for _ in range(3):
        assert_same(model, dense, x)
    assert not plan.is_stale()  # it runs again


def test_while_a_graph_is_made(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(), torch.randn(2, 8, 7, 7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    twin = copy.deepcopy(model)  # which makes its own when it is called
    fuse = inference.fuse
    monkeypatch.setattr(
        inference,
        "fuse",
        lambda graph, modules, layout: written_to(twin[0].weight, lambda: fuse(graph, modules, layout)),
    )
    for _ in range(3):
        assert_same(twin, dense, x)
    (graph,) = graphs_of(twin)
    plan: Any = graph._plan
    assert not plan.is_stale()


def test_a_frozen_model_gets_no_graph_of_what_never_was(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(), torch.randn(2, 8, 7, 7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, "layers")
    choose, weight = inference.choose_channels, model[0].weight
    monkeypatch.setattr(inference, "choose_channels", lambda links: written_to(weight, lambda: choose(links)))
    report = sk.convert(model, x, frozen=True)
    assert not list(graphs_of(model))
    assert any("other threads write to its parameters" in note for note in report.notes), report.notes
    assert_same(model, dense, x)
