# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is computed for decisions by sizes, and what is looked at in each call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from test_sizes import Deciding, converted, images, of_a_pooled_one
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.graph.sizes import Sizes, upstream
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_nodes_are_computed_once_for_many_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = torch.fx.Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(300):
        nodes.append(graph.call_function(torch.relu, (nodes[-1],)))
    asked = [graph.call_method("size", (node, 0)) for node in nodes]
    sizes = Sizes({}, {"x": torch.randn(4, 2)}, lambda name: torch.empty(0))
    looked: list[int] = []
    monkeypatch.setattr(
        "sparsekernels.conversion.graph.sizes.upstream",
        lambda *args: looked.append(len(found := upstream(*args))) or found,
    )
    assert [sizes.value_of(node) for node in asked] == [4] * 301
    assert looked == [2] * 301


def test_guards_look_at_what_sizes_are_computed_from(prefer: Prefer) -> None:
    """A norm gives the sizes that it is given, whatever it holds."""
    model, _, _ = converted(of_a_pooled_one, prefer, images(2, 16))
    (graph,) = graphs_of(model)
    plan: Any = graph.prepare()
    args, weight, bias = (images(2, 16),), model.first.weight.data, model.first.bias
    assert plan.guard.holds(args)
    model.first.weight.data = weight[:, :, :1]
    assert not plan.guard.holds(args)
    model.first.weight.data = weight.double()
    assert not plan.guard.holds(args)
    model.first.weight.data = weight
    assert plan.guard.holds(args)
    model.first.bias = None
    assert not plan.guard.holds(args)
    model.first.bias, model.norm.weight.data = bias, torch.ones(1)
    assert plan.guard.holds(args)
    (guard,) = plan.guard._guards
    assert sorted(guard._held_as) == ["bias", "weight"]
    del model.first._parameters["bias"]
    assert not plan.guard.holds(args)


def test_guards_look_for_what_a_layer_did_not_have(prefer: Prefer) -> None:
    def decide(self: nn.Module, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2)
        return x if x.shape[-1] > 2 else x * 2

    torch.manual_seed(3)
    model = Deciding(decide).eval()
    model.first = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
    prune_(model, "random", 0.8)
    prefer(FINE, GRAPH)
    sk.convert(model, images(2, 16))
    plan: Any = next(iter(graphs_of(model))).prepare()
    assert plan.guard.holds((images(2, 16),))
    model.first.bias = nn.Parameter(torch.ones(8))
    assert not plan.guard.holds((images(2, 16),))
