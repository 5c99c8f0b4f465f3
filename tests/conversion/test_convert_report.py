# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The report of convert: facts, and the sentences made of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.report import GraphObstacle, LayerObstacle, Note, Way

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_facts_become_sentences() -> None:
    assert str(LayerObstacle.NO_ZEROS.of()) == "it has no zeros"
    shared = LayerObstacle.SHARED.of(layers=("first", "second"))
    assert str(shared) == "its weight is shared with first, second"
    reason = GraphObstacle.VARIADIC.of(argument="*args")
    assert str(Note.NO_GRAPH.of(part="body", reason=reason)) == "body does not run as a graph: it takes *args."
    raised = Note.RAISED.of(way=Way.GRAPH, error="OSError: no")
    assert str(raised) == "Run as a graph, the model raised OSError: no: not used."


def test_the_report_holds_facts() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    report = sk.convert(nn.Sequential(first, second).eval(), torch.randn(2, 8))
    obstacles = [row.obstacle for row in report.layers]
    assert [fact and fact.kind for fact in obstacles] == [LayerObstacle.SHARED] * 2
    assert obstacles[0] is not None
    assert obstacles[0].operands == {"layers": ("1",)}
    assert [fact.kind for fact in report.facts] == [Note.NOT_PRUNED]
    value = json.loads(report.to_json())
    assert "facts" not in value
    assert value["notes"] == list(report.notes)
    assert value["layers"][0]["obstacle"] == value["layers"][0]["reason"] == "its weight is shared with 1"
