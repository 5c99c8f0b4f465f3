# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A third-party format, from the operations to `convert`: a class and a row in each of two tables."""

from __future__ import annotations

import functools

import pytest
import torch
from conversion_checks import Prefer
from torch import Tensor

import sparsekernels as sk
from sparsekernels.conversion import candidates
from sparsekernels.conversion.graph.fused import FusedSparse
from sparsekernels.formats import FORMATS


class WholeRows(sk.Unstructured):
    """Stores a row of the weight as a whole, or not at all."""

    format = "whole-rows"

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype = torch.float32) -> WholeRows:
        return super().of_mask(mask.flatten(1).any(1).view(-1, *[1] * (mask.dim() - 1)).expand_as(mask), dtype)


def test_a_second_format(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, WholeRows.format, WholeRows)
    build = functools.partial(candidates.sparse_layer, format=WholeRows.format)
    serves = functools.partial(candidates.is_sparse, format=WholeRows.format)
    row = candidates.Candidate(WholeRows.format, candidates.fine_grained_obstacle, build, FusedSparse, serves)
    monkeypatch.setattr(candidates, "CANDIDATES", [*candidates.CANDIDATES, row])
    conv, linear = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Linear(6, 4)
    for dense in (conv, linear):
        dense.weight.data[1::2] = 0
        dense.weight.data[0, 0] = 0
    images, rows = torch.randn(2, 3, 5, 5), torch.randn(7, 6)
    with sk.use_backend("reference"):
        weight = WholeRows.from_dense(conv.weight)
        torch.testing.assert_close(sk.sparse_conv2d(images, weight, conv.bias, padding=1), conv(images))
        weight = WholeRows.from_dense(linear.weight)
        torch.testing.assert_close(sk.sparse_linear(rows, weight, linear.bias), linear(rows))
    layer = sk.nn.SparseLinear.from_dense(linear, format="whole-rows")
    other = sk.nn.SparseLinear(6, 4, format="whole-rows")
    other.load_state_dict(layer.state_dict())
    for one in (layer, other):
        assert (one.format, one.pattern.nnz) == ("whole-rows", 12)
        torch.testing.assert_close(one(rows), linear(rows))
    model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear).eval()
    expected = model(images)
    prefer("whole-rows", "graph", "layers")
    report = sk.convert(model, images, decisions=["whole-rows"])
    assert [row.decision for row in report.layers] == ["whole-rows"] * 2
    torch.testing.assert_close(model(images), expected)
