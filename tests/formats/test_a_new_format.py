# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A third-party format, which shares nothing with `Unstructured`: a class and a row in each of two tables."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from conversion_checks import Prefer
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.conversion import candidates
from sparsekernels.conversion.graph.fused_by_format import FusedByFormat
from sparsekernels.formats import FORMATS, SparseFormat
from sparsekernels.pruning import prune_


class Coordinates(SparseFormat):
    """Stores the place of each element."""

    format = "coordinates"

    def __init__(self, shape: tuple[int, ...], places: Tensor, values: Tensor) -> None:
        vars(self).update(shape=shape, places=places, values=values)

    flat_indices = property(lambda self: self.places)

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype = torch.float32) -> Coordinates:
        places = mask.flatten().nonzero()[:, 0]
        return cls(tuple(mask.shape), places, torch.zeros(len(places), dtype=dtype, device=mask.device))

    @classmethod
    def full(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Coordinates:
        size = math.prod(shape)
        return cls(shape, torch.arange(size, device=device), torch.zeros(size, dtype=dtype, device=device))

    def with_values(self, values: Tensor) -> Coordinates:
        return Coordinates(self.shape, self.places, values)


def test_a_new_format(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Coordinates.format
    build, serves = (functools.partial(one, format=name) for one in (candidates.sparse_layer, candidates.is_sparse))
    row = candidates.Candidate(name, candidates.fine_grained_obstacle, build, FusedByFormat, serves)
    monkeypatch.setattr(candidates, "CANDIDATES", [*candidates.CANDIDATES, row])
    monkeypatch.setitem(FORMATS, name, Coordinates)
    conv, linear = nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Linear(6, 4)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()
    prune_(model, "random", 0.7)
    expected = model(images := torch.randn(2, 4, 5, 5))
    prefer(name, "graph", "layers")
    report = sk.convert(model, images, decisions=[name])
    assert [row.decision for row in report.layers] == [name] * 2
    torch.testing.assert_close(model(images), expected)
